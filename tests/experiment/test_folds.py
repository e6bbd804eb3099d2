"""Folds of the target's rows: test and training rows of each fold, and an experiment in folds."""

import json
import re
from collections import Counter

import pytest
import tiny_experiment
from pydantic import ValidationError
from tiny_experiment import letters, rows, runs_of

from harness import report, stats, store
from harness.analysis import comparison
from harness.data import load_task
from harness.errors import IncompatibleRuns, UserError
from harness.metrics import mean_metric
from harness.records import SampleResult
from harness.spec import Experiment, Task
from harness.stats import Variance
from harness.store import Store
from reports.studies import k_fold as study

pytestmark = pytest.mark.usefixtures("own_cache")
METRIC = mean_metric("right", lambda output, example: None)
LABELS = ("late", "money")


def task(folder, rows, *, labels=LABELS, **data):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"all": str(path), "folds": 5} | data
    return Task.model_validate({"name": "letters", "data": data, "labels": labels})


def make_letters(n, label=lambda i: LABELS[i % 2], **columns):
    base_rows = ({"id": f"r{i}", "prompt": f"letter {i} {i * i}", "reference": label(i)} for i in range(n))
    return [row | {name: make(i) for name, make in columns.items()} for i, row in enumerate(base_rows)]


def make_rows(scores, folds=None):
    return [
        SampleResult("t", "test", f"{i:04d}", i, "ok", "", "", (), {"right": (float(score),)}, fold=fold)
        for i, (score, fold) in enumerate(zip(scores, folds or [0] * len(scores), strict=True))
    ]


def test_every_row_but_validation_is_tested_in_one_fold_and_trained_on_in_the_others(tmp_path):
    items = load_task(task(tmp_path, make_letters(50)), 0)
    folds = [items.in_fold(fold) for fold in range(1, 6)]
    assert len(items.validation) == 10
    assert Counter(e.id for fold in folds for e in fold.test) == {e.id: 1 for e in items.train}
    for fold in folds:
        assert {e.id for e in fold.train} | {e.id for e in fold.test} == {e.id for e in items.train}
        assert not {e.id for e in fold.train} & {e.id for e in (*fold.test, *items.validation)}
        assert Counter(e.references[0] for e in fold.test) == {"late": 4, "money": 4}
    assert items.without_test().test == ()


def test_rows_of_a_cluster_or_question_never_straddle_folds(tmp_path):
    rows = make_letters(60, cluster=lambda i: f"c{i // 4}", prompt=lambda i: f"question {i // 2}")
    items = load_task(task(tmp_path, rows), 0)
    for fold in range(1, 6):
        fold_items = items.in_fold(fold)
        assert not {item.cluster for item in fold_items.train} & {item.cluster for item in fold_items.test}
        assert not {item.prompt for item in fold_items.train} & {item.prompt for item in fold_items.test}


def test_folds_do_not_depend_on_the_seed_or_a_limit_and_the_split_is_said(tmp_path):
    letters_task = task(tmp_path, make_letters(40))
    assert load_task(letters_task, 0).folds == load_task(letters_task, 7).folds
    all_items = load_task(task(tmp_path, make_letters(60)), 0)
    limited_items = load_task(task(tmp_path, make_letters(60), limits={"test": 12, "train": 20}), 0)
    assert limited_items.folds == all_items.folds
    assert (len(limited_items.test), len(limited_items.train)) == (12, 20)
    (remark,) = load_task(task(tmp_path, make_letters(50)), 0).read_as[-1:]
    assert "10 rows for validation, and 5 folds of 8 rows" in remark
    assert "made without it, of some 32; what is shipped is made of all 40" in remark
    items = load_task(task(tmp_path, make_letters(100), limits={"test": 20, "train": 40}), 0)
    assert sorted(Counter(items.folds[item.id] for item in items.test).values()) == [4] * 5
    assert sorted(Counter(items.folds[item.id] for item in items.train).values()) == [8] * 5
    assert Counter(item.references[0] for item in items.test) == {"late": 10, "money": 10}


def test_pairs_that_ask_what_a_fold_tests_are_not_trained_on_there(tmp_path):
    pairs_file = tmp_path / "pairs.jsonl"
    rows = make_letters(40)
    pair_rows = [{"prompt": row["prompt"], "chosen": "late", "rejected": "money"} for row in rows]
    pairs_file.write_text("".join(json.dumps(row) + "\n" for row in pair_rows))
    items = load_task(task(tmp_path, rows, pairs=str(pairs_file)), 0)
    fold_items = items.in_fold(1)
    assert len(fold_items.pairs) == len(items.pairs) - len(fold_items.test)
    assert not {pair.prompt for pair in fold_items.pairs} & {item.prompt for item in fold_items.test}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (make_letters(5), "at least 5, one a fold"),
        (make_letters(40, lambda i: LABELS[i < 4]), "rows of the label 'money', none in fold"),
        (make_letters(40, cluster=lambda i: f"c{i % 3}"), "in 2 groups of one cluster or question"),
    ],
    ids=["few rows", "a missing class", "few clusters"],
)
def test_folds_that_there_cannot_be_are_refused(tmp_path, rows, said):
    with pytest.raises(UserError, match=said):
        load_task(task(tmp_path, rows), 0)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"train": "a.jsonl", "test": "b.jsonl", "folds": 5}, "leave one out"),
        ({"test": "b.jsonl", "folds": 5}, "leave one out"),
        ({"documents": "d.jsonl", "folds": 5}, "no rows to deal"),
        ({"all": "a.jsonl", "folds": 2}, "greater than or equal to 3"),
    ],
)
def test_folds_that_contradict_the_files_are_refused(data, said):
    with pytest.raises(ValidationError, match=said):
        Task.model_validate({"name": "t", "data": data})


def test_folds_go_with_one_seed_with_the_target_alone_and_without_win_rates():
    target = {"name": "t", "data": {"all": "a.jsonl", "folds": 5}}
    experiment = {"name": "e", "target": target, "candidates": {"prompt": {}}}
    with pytest.raises(ValidationError, match="and 3 seeds; leave one of the two out"):
        Experiment.model_validate({**experiment, "seeds": [0, 1, 2]})
    with pytest.raises(ValidationError, match="and gate\\.target\\.win_rate"):
        Experiment.model_validate({**experiment, "gate": {"target": {"win_rate": 0.5}}})
    suite = {"name": "s", "tasks": [{**target, "name": "other"}]}
    with pytest.raises(ValidationError, match="folds at other: only the target"):
        Experiment.model_validate(
            {**experiment, "target": {**target, "data": {"all": "a"}}, "suites": [suite]}
        )


def test_the_variance_between_folds_is_that_of_a_mean_over_clusters_and_unknown_of_few():
    # By hand: d̄ = 0.3; Σ (1/4)² (d − d̄)² · 4/3 = 0.05 / 16 · 4/3.
    variance = stats.cross_validated_variance(Variance(0.01, None), [0.2, 0.4, 0.2, 0.4], [8] * 4)
    assert variance.variance == pytest.approx(0.01 + 0.04 / 12)
    assert variance.df == pytest.approx(variance.variance**2 / ((0.04 / 12) ** 2 / 3))
    with pytest.raises(ValueError, match="at least 3 folds"):
        stats.cross_validated_variance(Variance(0.01, None), [0.1, 0.2], [5, 5])


def test_the_interval_widens_with_the_folds_and_items_of_few_or_other_folds_show_nothing():
    folds = [i // 12 + 1 for i in range(60)]
    steady = [float(i % 3 == 0) for i in range(60)]
    scores = [float(fold <= 2) for fold in folds]  # 40 % right: all rows of two folds, no other row
    base = [0.0] * 60
    narrow_result, wide_result = (
        comparison.compare_rows(METRIC, make_rows(base), make_rows(new, folds)) for new in (steady, scores)
    )
    assert wide_result.high - wide_result.low > 2 * (narrow_result.high - narrow_result.low)

    folds = [i % 2 + 1 for i in range(40)]
    two_fold_result = comparison.compare_rows(METRIC, make_rows([0.0] * 40), make_rows([1.0] * 40, folds))
    assert (two_fold_result.low, two_fold_result.high) == (-1.0, 1.0)
    assert "items of 2 folds alone" in two_fold_result.refused
    five_folds, three_folds = [i % 5 + 1 for i in range(30)], [i % 3 + 1 for i in range(30)]
    with pytest.raises(IncompatibleRuns, match="other folds: 5 of them in the base, 3 in the new"):
        comparison.compare_rows(METRIC, make_rows([0.0] * 30, five_folds), make_rows([1.0] * 30, three_folds))


@pytest.mark.e2e
@pytest.mark.parametrize(("new", "n", "k"), [("nearest neighbour", 60, 5), ("unsteady", 120, 3)])
def test_the_interval_holds_the_average_over_training_sets_as_often_as_it_says(new, n, k):
    coverage = study.measure(study.World(new, "rule", n, k), 150)
    assert coverage.in_folds >= 0.92


def test_an_interval_that_forgets_the_folds_of_an_unsteady_recipe_holds_it_too_seldom():
    assert study.measure(study.World("unsteady", "rule", 120, 3), 100).plain < 0.9


NAMES = ("prompt", "shots", "bag", "lora")
CANDIDATES = """\
  prompt: {method: base}
  shots: {prompting: {few_shot: {select: knn, shots: 2}}}
  bag: {method: classifier}
  lora: {method: lora, params: {r: 2, num_train_epochs: 1, learning_rate: 0.01, max_length: 200}}
"""


@pytest.fixture(scope="module")
def file_and_report(tiny, own_cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("folds")
    path = tiny_experiment.write(folder, tiny, CANDIDATES)
    rows(folder / "suites" / "letters" / "all.jsonl", letters(slice(0, 8)))
    target = re.sub(r"data: \{.*\}", "data: {all: letters/all.jsonl, folds: 3}", tiny_experiment.TARGET)
    (folder / "suites" / "letters.yaml").write_text(target)
    return path, tiny_experiment.run(path)


def read_test_rows(path, name):
    run_store = Store(path.parent / "runs")
    return store.read_rows(run_store, runs_of(path)[name].rows["letters/test"])


def test_every_row_is_tested_once_by_a_model_that_saw_no_row_of_its_fold_or_cluster(file_and_report):
    path, _ = file_and_report
    rows_by_candidate = {name: read_test_rows(path, name) for name in NAMES}
    n = len(rows_by_candidate["lora"])
    assert n > len(letters(slice(0, 8))) // 2
    for name in ("shots", "bag", "lora"):
        assert len({row.example_id for row in rows_by_candidate[name]}) == n
        assert {row.fold for row in rows_by_candidate[name]} == {1, 2, 3}
        assert [row.position for row in rows_by_candidate[name]] == list(range(n))
    assert {row.fold for row in rows_by_candidate["prompt"]} == {0}  # one untrained model answers all rows

    shots_rows = read_test_rows(path, "shots")
    of_word = {row.cluster: row.fold for row in shots_rows}
    assert all(of_word[row.cluster] == row.fold for row in shots_rows)
    for row in shots_rows:
        prompt = row.prompt
        words = [word for word in of_word if f" {word} " in f" {prompt} ".replace(".", " ").replace("?", " ")]
        prompt_folds = {of_word[word] for word in words if word != row.cluster}
        assert row.fold not in prompt_folds

    run = runs_of(path)["lora"]
    run_store = Store(path.parent / "runs")
    weights = run.training.stands_on
    assert len(weights) == 3
    assert len({run.weights_digest, *weights.values()}) == 4
    assert all((run_store.weights(key) / "fit.json").exists() for key in (run.training.fit_key, *weights))


def test_differences_have_the_interval_of_folds_and_the_report_says_what_was_measured(file_and_report):
    _, result = file_and_report
    differences = {fact.name: fact.vs_prompt or fact.vs_untrained for fact in result.facts}
    assert differences["lora"].estimator == "folds"
    text = json.dumps(report.to_json(result))
    assert "3 folds of" in text
    assert "made without it" in text


def test_a_second_compare_computes_nothing_but_folds_that_were_lost_without_which_no_gate_goes(
    file_and_report, command
):
    path, first_report = file_and_report

    def list_computed():
        runs = path.parent / "runs"
        return {p: p.stat().st_mtime_ns for p in runs.rglob("*.parquet")}, {*(runs / "weights").iterdir()}

    times_before = list_computed()
    second_report = tiny_experiment.run(path)
    assert list_computed() == times_before
    assert [fact.run_id for fact in second_report.facts] == [fact.run_id for fact in first_report.facts]

    fold_texts = {p: p.read_text() for p in (path.parent / "runs" / "rows").glob("*/folds.json")}
    assert fold_texts
    for fold_file in fold_texts:
        fold_file.unlink()
    assert "harness compare" in command("gate", "--candidate", "lora", "-c", path, check=5).stderr
    second_report = tiny_experiment.run(path)
    assert {p: p.read_text() for p in fold_texts} == fold_texts
    assert [fact.run_id for fact in second_report.facts] == [fact.run_id for fact in first_report.facts]


def test_who_writes_rows_from_training_rows_is_refused(file_and_report, command):
    path, _ = file_and_report
    for verb in (("data", "distill"), ("data", "propose-prompts"), ("pairs", "make")):
        problem = command(*verb, "prompt", "-c", path, "--out", "new.jsonl", check=2).stderr
        assert "folds: 3, in which every training row is tested too" in problem
