"""A file in a folder is a plugin."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import tiny_experiment

import harness
from harness import plugins
from harness.errors import UserError
from harness.evaluation.runner import OPENERS
from harness.models.openai_api import PROTOCOLS
from harness.plugins import Method
from harness.provenance import code_versions
from harness.spec import TaskData
from harness.training import Weights
from harness.training.trainer import LoopParams


@pytest.mark.parametrize("kind", plugins.KINDS)
def test_the_names_of_a_kind_are_its_public_files(kind):
    files = (Path(harness.__file__).parent / kind).iterdir()
    public = sorted(f.stem for f in files if f.suffix == ".py" and not f.name.startswith("_"))
    assert plugins.names(kind) == public


@pytest.mark.parametrize("kind", ["methods", "prompting", "regularizers"])
def test_every_recipe_plugin_exports_its_parameters(kind):
    assert all(hasattr(plugins.load(kind, name), "Params") for name in plugins.names(kind))


def test_the_needs_of_a_prompting_are_files_of_the_data():
    promptings = [plugins.load("prompting", name) for name in plugins.names("prompting")]
    needs = {need for plugin in promptings for need in getattr(plugin, "NEEDS", ())}
    assert needs <= set(TaskData.model_fields)


@pytest.mark.parametrize("name", plugins.names("methods"))
class TestAMethod:
    def test_declares_the_parameters_of_its_file(self, name):
        assert plugins.method(name).params is plugins.load("methods", name).Params

    def test_draws_from_a_file_of_the_data(self, name):
        assert plugins.method(name).draws_from in {"", *TaskData.model_fields}

    def test_trains_where_it_has_the_parameters_of_the_training_loop(self, name):
        method = plugins.method(name)
        assert method.trains == issubclass(method.params, LoopParams)

    def test_has_a_row_in_the_table_of_the_docs(self, name):
        docs = Path(harness.__file__).parents[1] / "docs" / "howto" / "model.md"
        first_cells = [
            line.split("|")[1] for line in docs.read_text("utf-8").splitlines() if line.startswith("|")
        ]
        assert any(f"`{name}`" in cell for cell in first_cells)

    def test_runs_code_whose_versions_are_listed(self, name):
        assert set(plugins.method(name).loops) <= set(code_versions())


@pytest.mark.parametrize("name", plugins.methods(interpolates=True))
def test_a_method_that_interpolates_starts_from_weights_of_its_kind_and_takes_a_share(name):
    method = plugins.method(name)
    assert method.init_from == method.makes
    assert "scale" in method.params.model_fields


def test_a_misspelt_plugin_is_refused_with_the_nearest_name_or_all():
    with pytest.raises(UserError) as caught:
        plugins.load("prompting", "few_shots", "harness.yaml:7")
    problem = caught.value.problems[0]
    assert problem.where == "harness.yaml:7"
    assert problem.found == "unknown prompting 'few_shots'"
    assert problem.next_step == "did you mean 'few_shot'?"
    with pytest.raises(UserError) as caught:
        plugins.load("prompting", "qqqq")
    assert all(name in caught.value.problems[0].next_step for name in plugins.names("prompting"))


@pytest.mark.parametrize("name", plugins.names("regularizers"))
def test_a_regularizer_has_a_hook_and_a_method_that_calls_it(name):
    plugin = plugins.load("regularizers", name)
    assert any(hasattr(plugin, hook) for hook in plugins.HOOKS)
    assert hasattr(plugin, "sample") or not hasattr(plugin, "mix")
    assert any(plugins.takes(plugins.method(method), name) for method in plugins.names("methods"))


@pytest.mark.parametrize("name", plugins.names("methods"))
def test_the_hooks_of_a_method_are_known_and_one_that_trains_nothing_has_none(name):
    method = plugins.method(name)
    assert set(method.hooks) <= set(plugins.HOOKS)
    assert method.trains or not method.hooks


NORMS = """
from dataclasses import replace

from harness.plugins import Method
from harness.training import FitContext, SupervisedParams, Weights, model_digest, fine_tune


class Params(SupervisedParams):
    pass


def only_norms(model):
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("norm" in name)


def fit(context, params):
    folder = context.folder / "model"
    training = fine_tune(replace(context, prepare=only_norms), params, None, folder)
    return Weights("model", model_digest(folder, context.source.weights_digest), context.folder, training)


METHOD = Method(params=Params, fit=fit, makes="model", trains=True, draws_from="train", seeded=True)
"""
TUNED = "{method: norms, params: {num_train_epochs: 1, learning_rate: 0.01, max_length: 200}}"


def run_own(folder, cache, program, *words):
    env = {**os.environ, "PYTHONPATH": str(folder), "HARNESS_CACHE": str(cache)}
    command = [sys.executable, "-c", program, *words]
    done = subprocess.run(command, cwd=folder / "own", env=env, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    return {fact["name"]: fact for fact in json.loads(done.stdout)["facts"]}, done.stderr


@pytest.mark.slow
def test_a_new_method_is_one_file(tmp_path, tiny, own_cache):
    """What only its file knows of is checked, trained, evaluated, judged and can be rescued."""
    shutil.copytree(
        Path(harness.__file__).parent, tmp_path / "harness", ignore=shutil.ignore_patterns("__pycache__")
    )
    (tmp_path / "harness" / "methods" / "norms.py").write_text(NORMS)
    candidates = (
        f"  prompt: {{method: base}}\n  norms: {TUNED}\n  half: {{method: interpolated, init_from: norms}}\n"
    )
    tiny_experiment.write(tmp_path / "own", tiny, candidates)
    facts, _ = run_own(tmp_path, own_cache, "from harness.cli import main; main()", "compare", "--json")
    assert {name: fact["state"] for name, fact in facts.items()} == dict.fromkeys(
        ("prompt", "norms", "half"), "done"
    )
    assert facts["norms"]["verdict"]["outcome"] in ("pass", "fail", "inconclusive")
    assert 0 < facts["norms"]["training"]["n_trainable"] < 2000


L1 = '''
"""Sum of the absolute values of what is trained, as a penalty on the loss.

Example: `regularize: {l1: {strength: 0.5}}`
"""

from pydantic import Field

from harness.plugins import RescueStep, TrialSetting
from harness.spec import Spec


class Params(Spec):
    """`strength` of the pull to zero."""

    strength: float = Field(gt=0, allow_inf_nan=False)


def penalty(start, params):
    trained = [parameter for parameter in start.model.parameters() if parameter.requires_grad]

    def terms(step):
        for parameter in trained:
            yield params.strength * parameter.abs().sum()

    return terms


RESCUE = RescueStep("l1", lambda at: [TrialSetting({"strength": 2.0}, "l1=2", "absolute values as a penalty")])
'''
LORA = "method: lora, params: {r: 2, max_steps: 4, learning_rate: 0.01, max_length: 200, warmup_steps: 0}"
ONE_FILE = """
import sys
from pathlib import Path
from harness import config, plugins
from harness.cli import main
from harness.errors import UserError
from docs.generate import plugin_parameters

try:
    config.load(Path("harness.yaml"), ["candidates.held.regularize.l1.strength=0"])
except UserError as error:
    print(error, file=sys.stderr)
print("\\n".join(plugin_parameters()), file=open("reference.md", "w"))
print(" ".join(plugins.rescue_steps()), file=sys.stderr)
sys.argv = ["harness", "compare", "--json"]
main()
"""


@pytest.mark.slow
def test_a_new_regularizer_is_one_file(tmp_path, tiny, own_cache):
    """What only its file knows of is checked, documented, trained with, part of the identity and a step of a rescue."""
    root, ours = Path(harness.__file__).parents[1], shutil.ignore_patterns("__pycache__", "*.md")
    for folder in ("harness", "docs"):
        shutil.copytree(root / folder, tmp_path / folder, ignore=ours)
    (tmp_path / "suites").symlink_to(root / "suites")
    (tmp_path / "harness" / "regularizers" / "l1.py").write_text(L1)
    candidates = f"  prompt: {{method: base}}\n  free: {{{LORA}}}\n"
    candidates += f"  held: {{{LORA}, regularize: {{l1: {{strength: 0.5}}}}}}\n"
    tiny_experiment.write(tmp_path / "own", tiny, candidates, extra="rescue: {steps: [l1]}\n")
    facts, said = run_own(tmp_path, own_cache, ONE_FILE)
    assert {fact["state"] for fact in facts.values()} == {"done"}
    runs = tiny_experiment.runs_of(tmp_path / "own" / "harness.yaml")
    folders = {
        name: tmp_path / "own" / "runs" / "weights" / runs[name].training.fit_key for name in ("free", "held")
    }
    sizes = {
        name: _size(folder / "adapter" / "adapter_model.safetensors") for name, folder in folders.items()
    }
    assert sizes["held"] < 0.9 * sizes["free"]
    assert "`l1`" in (tmp_path / "own" / "reference.md").read_text()
    assert "l1.strength=0: found strength: 0; expected a value greater than 0" in said
    assert " half l1\n" in said, "a step without a place comes last by default"


def _size(file):
    from safetensors.torch import load_file

    return sum(w.abs().sum().item() for key, w in load_file(file).items() if "lora_B" in key)


SILENT = {"reward"}  # answers nothing, so nothing opens it as a candidate


def test_every_kind_of_weights_is_opened_by_its_entry():
    assert set(get_args(get_type_hints(Weights)["kind"])) - SILENT == set(OPENERS)


def test_what_a_method_makes_can_be_opened():
    written = get_args(get_type_hints(Method)["makes"])
    made = {kind for one in written for kind in one.split(" or ")}
    assert (made - {"endpoint"} - SILENT) | set(PROTOCOLS) == set(OPENERS)
