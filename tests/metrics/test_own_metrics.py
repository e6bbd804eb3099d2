"""Users' metrics and code: files next to the suite, the evaluate library, plugins by file name."""

import json
import math
import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
import tiny_experiment
from conftest import refused

import harness
from harness import config, metrics, plugins
from harness.data import load_task, task_version
from harness.errors import UserError
from harness.evaluation.runner import KINDS
from harness.experiment.study import load_study
from harness.methods import command
from harness.models.openai_api import PROTOCOLS
from harness.plugins import Method
from harness.provenance import code_versions, digest_code
from harness.records import Example, Output, read_training_record
from harness.report import describe_unread
from harness.spec import Task, TaskData
from harness.training import Weights
from harness.training.trainer import LoopParams

STARTS = """\
from harness.metrics import mean_metric

def metric(task):
    return mean_metric("starts", lambda output, example: float(output.text.startswith(example.references)))
"""

WHERE = """\
from harness.metrics import mean_metric

def metric(task):
    return mean_metric("where", lambda output, example: 1.0 if "Where" in example.prompt else None)
"""

SCRIPT = """\
import datasets
import evaluate

TEXT = datasets.Value("string")


class Shared(evaluate.Metric):
    def _info(self):
        features = datasets.Features({{"predictions": {said}, "references": {gold}}})
        return evaluate.MetricInfo(description="words", citation="", features=features)

    def _compute(self, predictions, references):
        best = [
            max(len(set(p.split()) & set(r.split())) / len(r.split()) for r in ([rs] if isinstance(rs, str) else rs))
            for p, rs in zip(predictions, references)
        ]
        return {returned}
"""


def script(folder, name, said="TEXT", gold="TEXT", returned='{"shared": sum(best) / len(best)}'):
    path = folder / f"{name}.py"
    path.write_text(SCRIPT.format(said=said, gold=gold, returned=returned))
    return path


def load_written(source):
    return metrics.load_metrics(Task(name="t", data=TaskData(), metrics=(str(source),)))


def score_answer(source, text, *references):
    (metric,) = load_written(source).values()
    parts = metric.score(Output(text), Example("e", (), references=references))
    return float(metric.aggregate(np.array([parts]), np.ones(1)))


def test_a_metric_of_ones_own_is_a_file_whose_path_is_relative_to_the_suite(folder):
    (folder / "suites" / "starts.py").write_text(STARTS.replace('"starts"', '"other name"'))
    loaded = config.load(folder / "harness.yaml", ["target.metrics=[exact_match, suites/starts.py]"])
    by_name = metrics.load_metrics(loaded.experiment.target)
    assert [*by_name] == [metric.name for metric in by_name.values()] == ["exact_match", "starts"]

    with (folder / "suites" / "tiny.yaml").open("a") as suite:
        suite.write("    metrics: [./starts.py]\n    primary: starts\n")
    task = config.load(folder / "harness.yaml").experiment.target
    assert task.metrics == (str(folder / "suites" / "starts.py"),)
    assert task.primary_metric == "starts"


@pytest.mark.e2e
def test_a_report_counts_unscored_answers_and_names_choices_without_chance_and_cut_refusals(
    tiny, own_cache, tmp_path
):
    path = tiny_experiment.write(tmp_path, tiny)
    suite = tmp_path / "suites" / "general.yaml"
    suite.write_text(suite.read_text().replace("[contains]", "[refusal]"))
    (tmp_path / "where.py").write_text(WHERE)
    report = tiny_experiment.run(path, "target.metrics=[where.py]", candidates=("bag",))
    notes = " ".join(report.notes)
    assert "bag: where gave no score to 8 of 12 test answers, which are left out; first " in notes
    assert "sums: a guess is right in 33.3 % of its items, which the gate takes for skill" in notes
    assert "facts: answers end after 4 tokens, and a refusal may be said later in their first 200" in notes
    assert describe_unread(report.facts, report.metric) == ["* left out, without a score by where: bag 67 %"]


def test_its_source_is_among_the_sources_and_its_folder_not_in_the_version(tmp_path):
    versions = set()
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        (folder / "starts.py").write_text(STARTS)
        (folder / "test.jsonl").write_text('{"prompt": "Q", "reference": "A"}\n')
        data = {"test": str(folder / "test.jsonl")}
        task = Task(name="t", data=TaskData(**data), metrics=(str(folder / "starts.py"),))
        versions.add(task_version(task, load_task(task, 0), "test"))
    assert len(versions) == 1


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("def metric(task:", r"own\.py:1: found SyntaxError"),
        ("x = 1\nimport no_such_package_anywhere", r"own\.py:2: found ModuleNotFoundError"),
        ("x = 1", "no function 'metric'"),
    ],
)
def test_a_file_that_is_no_metric_is_refused_at_its_line(tmp_path, source, found):
    (tmp_path / "own.py").write_text(source)
    with pytest.raises(UserError, match=found):
        load_written(tmp_path / "own.py")


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("./nothing.py", "no file"),
        ("exact_mach", "unknown metric 'exact_mach'"),
        ("own/exact_match.py", "a file of the name of our own metric exact_match"),
    ],
)
def test_a_metric_that_is_not_there_is_refused_with_the_file(folder, written, found):
    (folder / "own").mkdir()
    (folder / "own" / "exact_match.py").write_text(STARTS)
    error = refused(config.load, folder / "harness.yaml", [f"target.metrics=['{written}']"])
    assert [problem.found.split(" /")[0] for problem in error.problems] == [found]


def test_a_script_of_evaluate_scores_each_answer_by_its_nearest_reference(tmp_path):
    source = f"evaluate:{script(tmp_path, 'shared')}"
    assert score_answer(source, "a blue lamp", "blue cup") == 0.5
    assert score_answer(source, "a blue lamp", "red", "blue lamp") == 1
    (metric,) = load_written(source).values()
    assert metric.signature.startswith("mean of single answers|key:shared|evaluate:")
    assert math.isinf(metric.bounds[1])


def test_of_evaluates_numbers_one_is_named_and_errors_are_better_when_fewer(tmp_path):
    path = script(tmp_path, "two", returned='{"first": best, "second": 2.0}')
    with pytest.raises(UserError, match=r"a metric that gives first, second.*evaluate:two:first"):
        load_written(f"evaluate:{path}")
    assert score_answer(f"evaluate:{path}:second", "a", "a") == 2
    assert score_answer(f"evaluate:{path}:first", "a", "a") == 1

    path = script(tmp_path, "wer", returned='{"wer": 1 - best[0]}')
    (metric,) = load_written(f"evaluate:{path}").values()
    assert not metric.higher_is_better
    assert metric.worst(Example("e", ())) == (1.0,)
    assert score_answer(f"evaluate:{path}", "a blue lamp", "red", "blue") == 0


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"said": 'datasets.Value("int32")'}, "does not compare an answer with references as texts"),
        ({"returned": '{"list": [1, 2]}'}, "gives no number at all"),
        ({"returned": "1 / 0"}, "could not score an answer \\(ZeroDivisionError"),
    ],
)
def test_a_script_that_cannot_score_texts_is_refused(tmp_path, changes, found):
    with pytest.raises(UserError, match=found):
        load_written(f"evaluate:{script(tmp_path, 'odd', **changes)}")
    (tmp_path / "broken.py").write_text("import evaluate\n1 / 0\n")
    with pytest.raises(UserError, match=r"could not be loaded .*next: check the name or path"):
        load_written(f"evaluate:{tmp_path / 'broken.py'}")


REWARD = """\
import importlib
import json
import lengths
from words import stems
from harness.records import Output

tables = importlib.import_module("named.late")

def reward(prompts, completions, references):
    return [lengths.of(text) for text in completions]
"""
FILES = {
    "reward.py": REWARD,
    "lengths.py": "import units.scale\n\nof = len\n",
    "units/__init__.py": "",
    "units/scale.py": "from . import tables\nfrom .names import METRE\n",
    "units/tables.py": "",
    "units/names.py": "METRE = 1\n",
    "words/__init__.py": "",
    "words/stems.py": "import reward\n",
    "named/late.py": "",
    "beside.py": "",
    "units/unused.py": "",
    "harness/records.py": "",
}


@pytest.fixture
def reward(tmp_path):
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    return tmp_path / "reward.py"


NOT_IMPORTED = ("beside.py", "units/unused.py", "harness/records.py")


def test_what_it_imports_from_its_folder_counts_and_nothing_else(reward):
    digest_before = digest_code(reward)
    for name, text in FILES.items():
        (reward.parent / name).write_text(text + "\nCHANGED = 1\n")
        assert (digest_code(reward) == digest_before) is (name in NOT_IMPORTED), name
        (reward.parent / name).write_text(text)


def test_the_folder_itself_is_no_part_of_it_and_metrics_and_trainers_count_alike(reward, tmp_path):
    def digests():
        params = command.Params(run="python reward.py {data}", folder=str(reward.parent))
        return metrics.version(str(reward)), command.digest_files(params)

    digests_before = digests()
    (reward.parent / "lengths.py").write_text("of = hash\n")
    assert all(old != new_digest for old, new_digest in zip(digests_before, digests(), strict=True))
    digest_before = digest_code(reward)
    assert digest_code(tmp_path.rename(tmp_path.with_name("elsewhere")) / "reward.py") == digest_before


@pytest.mark.parametrize("kind", plugins.KINDS)
def test_the_plugins_of_a_kind_are_in_its_public_files_and_found_without_importing_them(kind):
    files = (Path(harness.__file__).parent / kind).iterdir()
    public_files = {file for file in files if file.suffix == ".py" and not file.name.startswith("_")}
    places = plugins.places(kind)
    assert {place.file for place in places.values()} == public_files
    for name, place in places.items():
        module = import_module(f"harness.{kind}.{place.file.stem}")
        plugins_of = getattr(module, "PLUGINS", {place.file.stem: module})
        assert (plugins_of[name], plugins.names(kind)) == (plugins.load(kind, name), sorted(places))


def test_two_files_cannot_declare_one_plugin(tmp_path):
    for name in ("one.py", "two.py"):
        (tmp_path / name).write_text('PLUGINS = {"same": Same}\n')
    assert "which one.py declares too" in refused(plugins._places_in, tmp_path, 0).problems[0].found


@pytest.mark.parametrize(
    ("text", "declared"),
    [
        ("PLUGINS = {'loud': Loud,\n  \"quiet\": Quiet,  # softly\n}\n", {"loud": "Loud", "quiet": "Quiet"}),
        ('PLUGINS: dict[str, type]={"loud":Loud}\nx = 1\n', {"loud": "Loud"}),
        ("# -*- coding: latin-1 -*-\n# caf\xe9\n", {"voice": ""}),
        ("PLUGINS = dict(loud=Loud)\n", "a PLUGINS that is not understood"),
        ("PLUGINS = {'loud': mine.Loud}\n", "a PLUGINS that is not understood"),
        ("# caf\xe9\n", "a file that cannot be read"),
    ],
)
def test_what_a_file_declares_is_understood_or_refused_by_its_path(tmp_path, text, declared):
    (tmp_path / "voice.py").write_bytes(text.encode("latin-1"))
    (tmp_path / ".#voice.py").symlink_to("editor@host")
    if isinstance(declared, dict):
        places = plugins._places_in(tmp_path, 0)
        assert {name: place.declared for name, place in places.items()} == declared
    else:
        (problem,) = refused(plugins._places_in, tmp_path, 0).problems
        assert (problem.where, declared in problem.found) == (str(tmp_path / "voice.py"), True)


def test_a_training_figure_of_a_wrong_type_is_named():
    for name, value in (("size_bytes", "abc"), ("trainable_share", []), ("n_tokens", "abc")):
        with pytest.raises(ValueError, match=f"training.{name}: found "):
            read_training_record({name: value})


def test_the_needs_of_a_prompting_are_files_of_the_data():
    promptings = [plugins.load("prompting", name) for name in plugins.names("prompting")]
    all_needs = {data_file for plugin in promptings for data_file in getattr(plugin, "NEEDS", ())}
    assert all_needs <= set(TaskData.model_fields)


@pytest.mark.parametrize("name", plugins.names("methods"))
def test_a_method_declares_what_its_file_and_the_docs_say(name):
    method = plugins.method(name)
    assert method.params is plugins.load("methods", name).Params
    assert method.draws_from in {"", *TaskData.model_fields}
    assert method.trains == issubclass(method.params, LoopParams)
    assert set(method.loops) <= set(code_versions())
    assert set(method.hooks) <= set(plugins.HOOKS)
    assert method.trains or not method.hooks
    docs = Path(harness.__file__).parents[1] / "docs" / "howto" / "model.md"
    rows = [line for line in docs.read_text("utf-8").splitlines() if line.startswith("|")]
    assert any(f"`{name}`" in row.split("|")[1] for row in rows), f"add a row for {name} to {docs}"


@pytest.mark.parametrize("name", plugins.methods(interpolates=True))
def test_a_method_that_interpolates_starts_from_weights_of_its_kind_and_takes_a_share(name):
    method = plugins.method(name)
    assert method.init_from == method.makes
    assert "scale" in method.params.model_fields


def test_a_misspelt_plugin_is_refused_with_the_nearest_name_or_all():
    problem = refused(plugins.load, "prompting", "few_shots", "harness.yaml:7").problems[0]
    assert problem.where == "harness.yaml:7"
    assert problem.found == "unknown prompting 'few_shots'"
    assert problem.next_step == "did you mean 'few_shot'?"
    caught = refused(plugins.load, "prompting", "qqqq")
    assert all(name in caught.problems[0].next_step for name in plugins.names("prompting"))


@pytest.mark.parametrize("name", plugins.names("regularizers"))
def test_a_regularizer_has_a_hook_and_a_method_that_calls_it(name):
    plugin = plugins.load("regularizers", name)
    assert any(hasattr(plugin, hook) for hook in plugins.HOOKS)
    assert hasattr(plugin, "sample") or not hasattr(plugin, "mix")
    assert any(plugins.takes(plugins.method(method), name) for method in plugins.names("methods"))


def run_own(folder, cache, program, *words):
    env = {**os.environ, "PYTHONPATH": str(folder), "HARNESS_CACHE": str(cache)}
    command = [sys.executable, "-c", program, *words]
    result = subprocess.run(command, cwd=folder / "own", env=env, capture_output=True, text=True, check=False)
    assert result.stdout, result.stderr
    return {fact["name"]: fact for fact in json.loads(result.stdout)["facts"]}, result.stderr


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
from importlib import import_module
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
    """The new plugin is checked, documented, trained with, part of the identity and a step of a rescue."""
    root, ignore = Path(harness.__file__).parents[1], shutil.ignore_patterns("*.md")
    for folder in ("harness", "docs"):
        shutil.copytree(root / folder, tmp_path / folder, ignore=ignore)
    (tmp_path / "suites").symlink_to(root / "suites")
    (tmp_path / "harness" / "regularizers" / "l1.py").write_text(L1)
    candidates = f"  prompt: {{method: base}}\n  free: {{{LORA}}}\n"
    candidates += f"  held: {{{LORA}, regularize: {{l1: {{strength: 0.5}}}}}}\n"
    tiny_experiment.write(tmp_path / "own", tiny, candidates, extra="rescue: {steps: [l1]}\n")
    facts_by_name, log = run_own(tmp_path, own_cache, ONE_FILE)
    assert {fact["state"] for fact in facts_by_name.values()} == {"done"}
    runs = tiny_experiment.runs_of(tmp_path / "own" / "harness.yaml")
    folders = {
        name: tmp_path / "own" / "runs" / "weights" / runs[name].training.fit_key for name in ("free", "held")
    }
    adapter_sizes = {
        name: _size(folder / "adapter" / "adapter_model.safetensors") for name, folder in folders.items()
    }
    assert adapter_sizes["held"] < 0.9 * adapter_sizes["free"]
    assert "`l1`" in (tmp_path / "own" / "reference.md").read_text()
    assert "l1.strength=0: found strength: 0; expected a value greater than 0" in log
    assert " half l1\n" in log, "a step without a place comes last by default"


def _size(file):
    from safetensors.torch import load_file

    return sum(tensor.abs().sum().item() for key, tensor in load_file(file).items() if "lora_B" in key)


SILENT = {"reward"}  # has no answers, so it is never opened as a candidate


def test_every_kind_of_weights_that_a_method_makes_can_be_opened():
    assert set(get_args(get_type_hints(Weights)["kind"])) - SILENT == set(KINDS)

    declared_kinds = get_args(get_type_hints(Method)["makes"])
    kinds = {kind for declared in declared_kinds for kind in declared.split(" or ")}
    assert (kinds - {"endpoint"} - SILENT) | set(PROTOCOLS) == set(KINDS)


@pytest.mark.e2e
def test_a_goal_or_a_guess_that_no_score_can_reach_is_refused_in_the_metrics_own_scale(tiny, tmp_path):
    path = tiny_experiment.write(tmp_path, tiny, tiny_experiment.TUNED)
    for change, problem in (
        ("gate.target.min=1.5", "gate.target.min: found 1.5; expected 0 to 1, a share of the range of"),
        ("suites.0.tasks.1.chance=1.2", "task facts: chance: found 1.2; expected 0 or more, less than 1;"),
    ):
        for read in (tiny_experiment.session, lambda file, text: load_study(config.load(file, (text,)))):
            assert problem in str(refused(read, path, change))
    unbounded = STARTS.replace("references)))", "references)), bounds=(-math.inf, math.inf))")
    (tmp_path / "suites" / "far.py").write_text(f"import math\n{unbounded}")
    tiny_experiment.session(path, "gate.target.min=1.5", "target.metrics=[suites/far.py]")
