"""Metrics and code that are not ours: files beside the suite, the evaluate library, and what a file imports."""

import math

import numpy as np
import pytest

from harness import config, metrics
from harness.data import load_task, task_version
from harness.errors import UserError
from harness.methods.command import files_digest
from harness.provenance import digest_code
from harness.records import Example, Output, checksum
from harness.spec import Task, TaskData, metric_name
from tests import tiny_experiment

STARTS = """\
from harness.metrics import mean_metric

def metric(task):
    return mean_metric("starts", lambda output, example: float(output.text.startswith(example.references)))
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


def load_written(written):
    return metrics.load_metrics(Task(name="t", data=TaskData(), metrics=(str(written),)))


def score_answer(written, text, *references):
    (metric,) = load_written(written).values()
    parts = metric.score(Output(text), Example("e", (), references=references))
    return float(metric.aggregate(np.array([parts]), np.ones(1)))


@pytest.fixture
def metric_folder(folder):
    (folder / "suites" / "starts.py").write_text(STARTS)
    return folder


def test_a_metric_of_ones_own_is_a_file_beside_the_suite(metric_folder):
    target = config.load(metric_folder / "harness.yaml", ["target.metrics=[exact_match, suites/starts.py]"])
    task = target.experiment.target
    assert list(metrics.load_metrics(task)) == ["exact_match", "starts"]


def test_a_path_in_a_suite_is_relative_to_it(metric_folder):
    text = (
        metric_folder / "suites" / "tiny.yaml"
    ).read_text() + "    metrics: [./starts.py]\n    primary: starts\n"
    (metric_folder / "suites" / "tiny.yaml").write_text(text)
    task = config.load(metric_folder / "harness.yaml").experiment.target
    assert task.metrics == (str(metric_folder / "suites" / "starts.py"),)
    assert task.primary_metric == "starts"


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


@pytest.mark.e2e
def test_a_changed_metric_of_ones_own_is_computed_anew(tmp_path, tiny, own_cache):
    path = tiny_experiment.write(tmp_path, tiny, "  prompt: {method: base}\n")
    (tmp_path / "starts.py").write_text(STARTS)
    settings = ("target.metrics=[starts.py]", "suites=[]")
    tiny_experiment.run(path, *settings)
    before = set((tmp_path / "runs" / "rows").iterdir())
    tiny_experiment.run(path, *settings)
    assert set((tmp_path / "runs" / "rows").iterdir()) == before
    (tmp_path / "starts.py").write_text(STARTS.replace("float(", "1.0 - float("))
    tiny_experiment.run(path, *settings)
    assert set((tmp_path / "runs" / "rows").iterdir()) > before


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
        ("evaluate:./nothing.py", "no file"),
        ("exact_mach", "unknown metric 'exact_mach'"),
        ("own/exact_match.py", "a file of the name of our own metric exact_match"),
    ],
)
def test_a_metric_that_is_not_there_is_refused_with_the_file(folder, written, found):
    (folder / "own").mkdir()
    (folder / "own" / "exact_match.py").write_text(STARTS)
    with pytest.raises(UserError) as caught:
        config.load(folder / "harness.yaml", [f"target.metrics=['{written}']"])
    assert [p.found.split(" /")[0] for p in caught.value.problems] == [found]


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("exact_match", "exact_match"),
        ("/x/mine.py", "mine"),
        ("evaluate:rouge:rougeL", "evaluate:rouge:rougeL"),
        ("evaluate:/x/mine.py:f", "evaluate:mine:f"),
        ("evaluate:owner/name", "evaluate:owner/name"),
    ],
)
def test_a_metric_is_shown_by_a_name_without_folders(written, name):
    assert metric_name(written) == name


def test_a_script_of_evaluate_is_known_by_the_modules_beside_it(tmp_path):
    (tmp_path / "scale.py").write_text("factor = 1.0")
    written = f"evaluate:{script(tmp_path, 'shared')}"
    before = metrics.version(written)
    (tmp_path / "scale.py").write_text("factor = 7.0")
    assert metrics.version(written) != before


def test_a_script_of_evaluate_scores_each_answer_by_its_nearest_reference(tmp_path):
    written = f"evaluate:{script(tmp_path, 'shared')}"
    assert score_answer(written, "a blue lamp", "blue cup") == 0.5
    assert score_answer(written, "a blue lamp", "red", "blue lamp") == 1
    (metric,) = load_written(written).values()
    assert metric.signature.startswith("mean of single answers|key:shared|evaluate:")
    assert math.isinf(metric.bounds[1])


def test_of_several_numbers_one_is_named(tmp_path):
    path = script(tmp_path, "two", returned='{"first": best, "second": 2.0}')
    with pytest.raises(UserError, match=r"a metric that gives first, second.*evaluate:two:first"):
        load_written(f"evaluate:{path}")
    assert score_answer(f"evaluate:{path}:second", "a", "a") == 2
    assert score_answer(f"evaluate:{path}:first", "a", "a") == 1


def test_errors_are_better_when_they_are_fewer(tmp_path):
    path = script(tmp_path, "wer", returned='{"wer": 1 - best[0]}')
    (metric,) = load_written(f"evaluate:{path}").values()
    assert not metric.higher_is_better
    assert metric.worst(Example("e", ())) == (1.0,)
    assert score_answer(f"evaluate:{path}", "a blue lamp", "red", "blue") == 0


def make_bounded_task(path, **bounds):
    return Task(name="t", data=TaskData(), metrics=(f"evaluate:{path}",), bounds=bounds["bounds"])


def test_bounds_may_be_declared_for_a_metric_of_evaluate(tmp_path):
    task = make_bounded_task(script(tmp_path, "shared"), bounds={"evaluate:shared": (0, 1)})
    (metric,) = metrics.load_metrics(task).values()
    assert (metric.bounds, metric.unit.is_rate) == ((0.0, 1.0), True)
    assert metric.worst(Example("e", ())) == (0.0,)
    assert metric.signature.endswith("|bounds:0,1")


def test_a_score_outside_of_the_declared_bounds_is_refused_with_its_item(tmp_path):
    path = script(tmp_path, "many", returned='{"n": 3.0}')
    (metric,) = metrics.load_metrics(make_bounded_task(path, bounds={"evaluate:many": (0, 2)})).values()
    with pytest.raises(UserError, match=r"a score of 3 \(item e\).*0 to 2"):
        metric.score(Output("a"), Example("e", (), references=("a",)))


@pytest.mark.parametrize(
    "bounds", [{"chrf": (0, 1)}, {"exact_match": (1, 0)}, {"exact_match": (0, math.inf)}]
)
def test_bounds_of_no_metric_of_the_task_or_that_bound_nothing_are_refused(bounds):
    with pytest.raises(ValueError, match=r"bounds( of|\.exact_match)"):
        Task(name="t", data=TaskData(), bounds=bounds)
    with pytest.raises(UserError, match="its own bounds, 0 to 1"):
        metrics.load_metrics(Task(name="t", data=TaskData(), bounds={"exact_match": (0, 2)}))


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
    with pytest.raises(UserError, match=r"could not be loaded .*next: correct the path, or fix the script"):
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


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        *(
            (name, True)
            for name in FILES
            if name not in ("beside.py", "units/unused.py", "harness/records.py")
        ),
        ("beside.py", False),
        ("units/unused.py", False),
        ("harness/records.py", False),
    ],
)
def test_what_it_imports_from_its_folder_counts_and_nothing_else(reward, name, counts):
    before = digest_code(reward)
    (reward.parent / name).write_text(FILES[name] + "\nCHANGED = 1\n")
    assert (digest_code(reward) != before) is counts


def test_a_file_alone_has_its_checksum_whatever_stands_above_it(tmp_path):
    (tmp_path / "alone.py").write_text("import json\n")
    assert digest_code(tmp_path / "alone.py") == checksum(tmp_path / "alone.py")
    (tmp_path / "above.py").write_text("")
    file = tmp_path / "own" / "metric.py"
    file.parent.mkdir()
    file.write_text("from .. import above\n")
    assert digest_code(file) == checksum(file)


def test_the_folder_itself_is_no_part_of_it_and_metrics_and_trainers_count_alike(reward, tmp_path):
    def digests():
        return metrics.version(str(reward)), files_digest("python reward.py {data}", reward.parent, None)

    before = digests()
    (reward.parent / "lengths.py").write_text("of = hash\n")
    assert all(one != other for one, other in zip(before, digests(), strict=True))
    before = digest_code(reward)
    assert digest_code(tmp_path.rename(tmp_path.with_name("elsewhere")) / "reward.py") == before
