"""Provenance: a number's dependencies are found without heavy imports and without failures."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_experiment

from harness import plugins, provenance
from harness.experiment.candidate_weights import Fit
from harness.methods import dpo
from harness.methods.supervised import Lora, Peft
from harness.provenance import TABLE, code_versions
from harness.records import canonical_json
from tests import pins

pytestmark = pytest.mark.usefixtures("own_cache")

ROOT = Path(__file__).parents[2]


def git(folder, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path):
    git(tmp_path, "init", "--quiet")
    (tmp_path / ".gitignore").write_text("runs/\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    return tmp_path


@pytest.mark.parametrize("name", [".gitignore", "new_metric.py"])
def test_a_changed_or_a_new_file_makes_the_checkout_dirty(repository, name):
    (repository / name).write_text("changed\n")
    assert provenance.git_state(repository)[1] is True


@pytest.mark.parametrize("name", ["PATH", "GIT_DIR"], ids=["without git", "outside a repository"])
def test_the_commit_is_unknown(repository, monkeypatch, name):
    monkeypatch.setenv(name, "")
    assert provenance.git_state(repository) == (None, None)


def test_what_is_collected_is_json_and_names_code_packages_and_machine(repository):
    facts = provenance.collect("Some GPU", repository)
    assert json.loads(canonical_json(facts)) == facts
    assert facts["git_sha"] == git(repository, "rev-parse", "HEAD")
    assert (facts["device"], facts["git_dirty"]) == ("Some GPU", False)
    assert set(facts["packages"]) == set(provenance.PACKAGES)
    assert facts["packages"]["numpy"]


def test_the_environment_changes_with_the_device_and_a_machine_may_lack_cpuinfo(tmp_path):
    assert provenance.describe_environment("x") == provenance.describe_environment("x")
    assert provenance.describe_environment("x") != provenance.describe_environment("y")
    assert provenance.processor_name(tmp_path / "none") != ""


@pytest.mark.e2e
def test_packages_are_not_imported_to_learn_their_versions():
    program = (
        "import sys, harness.provenance as p; p.collect(); p.describe_environment();"
        "print(sorted(set(p.PACKAGES) & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", program], cwd=ROOT, text=True) == "[]\n"


CANDIDATES = """\
  lora: {method: lora, params: {r: 2, max_steps: 1}}
  dpo: {method: dpo, params: {r: 2, max_steps: 1}}
  own: {method: dpo, system: Be kind., params: {r: 2, max_steps: 1}}
"""
PAIR = {"prompt": "Where is it?", "chosen": "late", "rejected": "money"}


@pytest.fixture
def name_weights(tiny, tmp_path):
    path = tiny_experiment.write(tmp_path, tiny, CANDIDATES, pairs=[PAIR])
    suite = tmp_path / "suites" / "letters.yaml"
    written = suite.read_text()

    def name(lines=""):
        suite.write_text(written + lines)
        session = tiny_experiment.session(path)
        return {c.name: Fit(session, c, 0).folder(None).name for c in session.candidates.values()}

    return name


def test_preference_pairs_that_are_asked_otherwise_make_other_weights(name_weights):
    before = name_weights()
    for lines in ("    system: Be brief.\n", "    chat_template: false\n"):
        after = name_weights(lines)
        assert before["dpo"] != after["dpo"]
        assert before["lora"] != after["lora"]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"r": 8, "lora_alpha": 16}, {"r": 8}, True),
        ({"r": 8, "lora_alpha": 8}, {"r": 8}, False),
        ({"target_modules": ["v_proj", "q_proj"]}, {"target_modules": ["q_proj", "v_proj"]}, True),
        ({"target_modules": ["q_proj"]}, {"target_modules": ["q_proj", "v_proj"]}, False),
    ],
)
def test_a_low_rank_adapter_is_named_by_what_is_trained_and_not_by_what_is_written(one, other, same):
    for params in (Lora.Params, dpo.Params):
        assert (params(**one).identity() == params(**other).identity()) is same


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"lora_alpha": 8, "r": 8, "lora_dropout": 0, "rank_pattern": {}}, {}, True),
        ({"lora_alpha": 16}, {}, False),
        ({"rank_pattern": {"v_proj": 2, "q_proj": 4}}, {"rank_pattern": {"q_proj": 4, "v_proj": 2}}, True),
    ],
)
def test_an_adapter_of_a_family_is_named_without_what_is_at_pefts_default(one, other, same):
    identities = [Peft.Params(peft_type="LORA", **params).identity() for params in (one, other)]
    assert (identities[0] == identities[1]) is same
    assert Peft.Params(peft_type="LORA").identity() == {"peft_type": "LORA"}


@pytest.mark.parametrize("concern", code_versions())
def test_a_pin_is_the_digest_of_the_code_it_stands_for(concern):
    listed = code_versions()[concern]
    assert listed.pin == pins.pin_of(pins.files_of(listed)), (
        f"the code of {concern!r} changed. If no result changes, run `make pins`; else raise its version in "
        f"{TABLE.name} and say why in the commit"
    )


def test_every_pattern_finds_a_file_and_every_plugin_and_default_is_listed():
    patterns = [pattern for listed in code_versions().values() for pattern in listed.files]
    assert [pattern for pattern in patterns if not list(pins.PACKAGE.glob(pattern))] == []
    assert pins.list_unlisted_plugins() == [], "run `make pins`"

    unchanged = {(model, name) for model, fields in pins.read_known_defaults().items() for name in fields}
    now = {(model, name) for model, fields in pins.defaults().items() for name in fields}
    assert now - unchanged == set(), "run `make pins`"


def test_another_computation_changes_the_pin_and_a_plugin_that_is_not_listed_its_version(tmp_path):
    before, after = tmp_path / "one.py", tmp_path / "two.py"
    before.write_text("def g(x):\n    return x + 1\n")
    after.write_text("def g(x):\n    return x + 2\n")
    assert pins.pin_of([before]) != pins.pin_of([after])

    metric_file = tmp_path / "own.py"
    metric_file.write_text("x = 1")
    first = plugins.version("metrics", str(metric_file))
    metric_file.write_text("x = 2")
    assert plugins.version("metrics", str(metric_file)) != first
    assert plugins.version("metrics", "exact_match") == code_versions()["metrics/exact_match"].version


def test_a_method_leaves_out_what_is_at_its_default():
    assert plugins.method("lora").params().identity() == {}
    assert plugins.method("lora").params(learning_rate=0.01).identity() == {"learning_rate": 0.01}


@pytest.mark.parametrize("model", pins.read_known_defaults())
def test_a_default_that_identities_leave_out_has_not_changed(model):
    current, known_defaults = pins.defaults()[model], pins.read_known_defaults()[model]
    assert {name: current.get(name, value) for name, value in known_defaults.items()} == known_defaults, (
        f"a default of {model} changed, which no digest shows: raise the version of the concern that reads it, "
        f"say why in the commit, and change {pins.DEFAULTS.name}"
    )
