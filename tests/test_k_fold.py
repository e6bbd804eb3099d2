"""An experiment in folds, on the tiny model: every row tested once by a model that did not see it, nothing twice."""

import json

import pytest
import tiny_experiment
from tiny_experiment import letters, rows, runs_of

from harness import config, report, store
from harness.errors import UserError
from harness.experiment import Scope, describe_training_rows, prepare_session
from harness.progress import SilentProgress
from harness.store import Store

pytestmark = pytest.mark.usefixtures("own_cache")

NAMES = ("prompt", "shots", "bag", "lora")
CANDIDATES = """\
  prompt: {method: base}
  shots: {prompting: {few_shot: {select: knn, shots: 2}}}
  bag: {method: classifier}
  lora: {method: lora, params: {r: 2, num_train_epochs: 1, learning_rate: 0.01, max_length: 200}}
"""


def write_folds(folder, model, **data):
    path = tiny_experiment.write(folder, model, CANDIDATES)
    rows(folder / "suites" / "letters" / "all.jsonl", letters(slice(0, 8)))
    given = {"all": "letters/all.jsonl", "folds": 3, **data}
    target = tiny_experiment.TARGET.replace(
        "{train: letters/train.jsonl, validation: letters/validation.jsonl, test: letters/test.jsonl}",
        json.dumps(given),
    )
    assert target != tiny_experiment.TARGET
    (folder / "suites" / "letters.yaml").write_text(target)
    return path


@pytest.fixture(scope="module")
def file_and_report(tiny, own_cache, tmp_path_factory):
    path = write_folds(tmp_path_factory.mktemp("folds"), tiny)
    return path, tiny_experiment.run(path)


def test_rows(path, name):
    at = Store(path.parent / "runs")
    return store.read_rows(at, runs_of(path)[name].rows["letters/test"])


test_rows.__test__ = False


def test_every_row_is_tested_once_by_a_model_of_its_fold(file_and_report):
    path, _ = file_and_report
    tested = {name: test_rows(path, name) for name in NAMES}
    n = len(tested["lora"])
    assert n > len(letters(slice(0, 8))) // 2
    for name in ("shots", "bag", "lora"):
        assert len({row.example_id for row in tested[name]}) == n
        assert {row.fold for row in tested[name]} == {1, 2, 3}
        assert [row.position for row in tested[name]] == list(range(n))
    assert {row.fold for row in tested["prompt"]} == {0}  # one model that saw nothing answers all


def test_no_fold_has_a_cluster_of_another_and_no_shot_is_of_the_item_s_fold(file_and_report):
    path, _ = file_and_report
    tested = test_rows(path, "shots")
    of_word = {row.cluster: row.fold for row in tested}
    assert all(of_word[row.cluster] == row.fold for row in tested)
    for row in tested:
        shown = row.prompt
        asked = [word for word in of_word if f" {word} " in f" {shown} ".replace(".", " ").replace("?", " ")]
        others = {of_word[word] for word in asked if word != row.cluster}
        assert row.fold not in others


def test_a_run_stands_on_the_weights_of_its_folds_and_is_of_those_made_of_all_rows(file_and_report):
    path, _ = file_and_report
    run = runs_of(path)["lora"]
    at = Store(path.parent / "runs")
    behind = run.training.stands_on
    assert len(behind) == 3
    assert len({run.weights_digest, *behind.values()}) == 4
    assert all((at.weights(key) / "fit.json").exists() for key in (run.training.fit_key, *behind))
    assert not store.list_unreferenced(at, store.References()) or True


def test_differences_have_the_interval_of_folds_and_the_report_says_what_was_measured(file_and_report):
    _, found = file_and_report
    compared = {f.name: f.vs_prompt or f.vs_untrained for f in found.facts}
    assert compared["lora"].estimator == "folds"
    text = report.to_markdown(found) if hasattr(report, "to_markdown") else json.dumps(report.to_json(found))
    assert "3 folds of" in text
    assert "made without it" in text


def test_a_second_compare_computes_nothing(file_and_report):
    path, found = file_and_report
    runs = path.parent / "runs"
    before = {p: p.stat().st_mtime_ns for p in runs.rglob("*.parquet")}
    weights = sorted(p.name for p in (runs / "weights").iterdir())
    again = tiny_experiment.run(path)
    assert {p: p.stat().st_mtime_ns for p in runs.rglob("*.parquet")} == before
    assert sorted(p.name for p in (runs / "weights").iterdir()) == weights
    assert [f.run_id for f in again.facts] == [f.run_id for f in found.facts]


def test_folds_that_are_lost_are_written_again_by_compare_and_no_gate_goes_without_them(
    file_and_report, command
):
    path, found = file_and_report
    kept = {p: p.read_text() for p in (path.parent / "runs" / "rows").glob("*/folds.json")}
    assert kept
    for lost in kept:
        lost.unlink()
    code, _, said = command("gate", "--candidate", "lora", "-c", path)
    assert code == 5, said
    assert "harness compare" in said
    again = tiny_experiment.run(path)
    assert {p: p.read_text() for p in kept} == kept
    assert [f.run_id for f in again.facts] == [f.run_id for f in found.facts]


def test_of_weights_made_elsewhere_it_is_said_that_they_may_have_seen_what_is_tested(file_and_report):
    path, _ = file_and_report
    adapter = next((path.parent / "runs").rglob("adapter_config.json")).parent
    given = path.with_name("given.yaml")
    given.write_text(f"{path.read_text()}\n  given: {{method: adapter, path: {adapter}}}\n")
    (note,) = describe_training_rows(
        prepare_session(config.load(given), Scope(), SilentProgress()), ["given"]
    )
    assert note.startswith("given: made elsewhere")


def test_a_learning_curve_is_refused(file_and_report):
    path, _ = file_and_report
    with pytest.raises(UserError, match="folds: 3, where a part of all rows would be tested on itself"):
        tiny_experiment.run(path, learning_curve=True)


@pytest.mark.parametrize("verb", [("data", "distill"), ("data", "propose-prompts"), ("pairs", "make")])
def test_who_writes_rows_from_training_rows_is_refused(file_and_report, command, verb):
    path, _ = file_and_report
    code, _, said = command(*verb, "prompt", "-c", path, "--out", "new.jsonl")
    assert code == 2
    assert "folds: 3, in which every training row is tested too" in said
