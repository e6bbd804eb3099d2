"""The study of the general suite: its checks, its ranks, and an experiment that the harness reads."""

import json

import numpy as np
import pytest
from conftest import find_shared_data

from harness import config
from harness.metrics import load_metrics
from harness.records import Example, Output
from harness.spec import Task, TaskData
from reports.studies import general_suite, ifeval_like
from reports.studies.general_suite import Change, Size, rank

SIZE = Size(6, 6, 3, 4, (1e-3, 2e-3), (1, 2))


def changes(**columns):
    """Give LoRAs changes by column, each list one change a LoRA."""
    n = len(next(iter(columns.values())))
    return {f"lora-{i}": {name: Change(xs[i], 0.01) for name, xs in columns.items()} for i in range(n)}


def test_the_interval_of_a_rank_correlation_is_that_of_bonett_and_wright():
    """ρ = .5 of 12 LoRAs: artanh .5 ± 1.96 √(1.125/9) = .549 ± .693."""
    rng, n = np.random.default_rng(0), 12
    x = np.arange(n, dtype=float)
    y = next(
        y
        for y in (rng.permutation(x) for _ in range(100_000))
        if abs(1 - 6 * ((x - y) ** 2).sum() / (n * (n * n - 1)) - 0.5) < 0.004
    )
    found = rank(changes(a=list(x), b=list(y)), "a", "b")
    assert found.rho == pytest.approx(0.5, abs=0.004)
    assert (found.low, found.high) == (
        pytest.approx(np.tanh(0.549 - 0.693), abs=0.01),
        pytest.approx(np.tanh(0.549 + 0.693), abs=0.01),
    )


@pytest.mark.parametrize(
    ("kind", "given", "text", "kept"),
    [
        ("punctuation:no_comma", {}, "All is well", True),
        ("punctuation:no_comma", {}, "Well, no", False),
        ("change_case:english_lowercase", {}, "all small.", True),
        ("change_case:english_lowercase", {}, "Not all", False),
        ("change_case:english_capital", {}, "ALL LARGE", True),
        ("change_case:english_capital", {}, "12", False),
        ("keywords:forbidden_words", {"forbidden_words": ["sea"]}, "The season", True),
        ("keywords:forbidden_words", {"forbidden_words": ["sea"]}, "By the Sea.", False),
        ("startend:quotation", {}, '"So it', True),
        ("detectable_format:title", {}, "<<a title>> and text", True),
        ("detectable_format:title", {}, "<<>>", False),
        ("detectable_format:constrained_response", {}, "My answer is yes.", True),
        ("detectable_format:constrained_response", {}, "My answer is yes. My answer is no.", False),
        ("punctuation:no_comma", {}, "  ", False),
    ],
)
def test_an_instruction_is_kept_or_not(kind, given, text, kept):
    metric = ifeval_like.metric(Task(name="t", data=TaskData()))
    example = Example("x", (), constraints=({"kind": kind, **given},))
    assert metric.score(Output(text), example) == (float(kept),)


def test_the_experiment_of_the_study_is_read_with_its_loras(tmp_path):
    datasets = find_shared_data("hub/google/IFEval/default/train.jsonl").parents[3]
    path = general_suite.prepare(tmp_path / "study", Size(), datasets)
    experiment = config.load(path).experiment
    assert len(experiment.candidates) == 18
    general, benchmarks = experiment.suites
    assert [task.name for task in general.tasks][:2] == ["world_facts", "reading"]
    assert {task.lm_eval for task in benchmarks.tasks} >= {"arc_easy", "piqa", "winogrande"}
    ifeval = benchmarks.tasks[-1]
    assert list(load_metrics(ifeval)) == ["ifeval_like"]
    rows = [json.loads(line) for line in (path.parent / "ifeval_like.jsonl").read_text().splitlines()]
    assert len(rows) >= Size().instructions
    assert {c["kind"] for row in rows for c in row["constraints"]} <= set(ifeval_like.CHECKS)
