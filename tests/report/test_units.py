"""Unit and direction belong to a number: ranking, choosing, drawing and printing read them from it."""

import csv
import io
import re
from dataclasses import replace
from math import inf

import fake_project
import pytest
from fake_facts import candidate, comparison, make_decision, make_fine_tune, verdict

from harness import store
from harness.analysis import comparison as compared
from harness.analysis.candidate_facts import best_untrained
from harness.analysis.run_diff import differences
from harness.analysis.seeds import summarize_seeds
from harness.experiment.rescue import select_case
from harness.experiment.rescue_trials import HalfVerdict, Rescue, TrialResult
from harness.experiment.rescue_trials import rows as rescue_rows
from harness.formatting import RATE, Unit
from harness.lifecycle.nightly_changes import compare_base
from harness.metrics import Metric, is_flipped, mean_metric, weighted_mean
from harness.records import RowsIdentity, Run
from harness.report import ExperimentReport
from harness.report.columns import result_headings, result_rows
from harness.report.interchange import to_csv
from harness.report.pictures import front, points_of
from harness.report.wording import best_first
from tests.fake_rows import EXACT, rows

WER = Unit(1.0, "wer", higher_is_better=False)
ERRORS = Unit(higher_is_better=False)  # a rate of errors
UNTRAINED = [
    candidate("prompt", 0.50, WER),
    candidate("fixed", 0.40, WER, prompting="few_shot(select=fixed, shots=4)"),
    candidate("knn", 0.30, WER, prompting="few_shot(select=knn, shots=8)"),
]


def a_report(*tuned_ones, untrained=UNTRAINED, metric="wer") -> ExperimentReport:
    facts = (*untrained, *tuned_ones)
    decision = make_decision(facts, closed_labels=False, metric=metric)
    return ExperimentReport("e", "m", metric, facts, decision=decision, task="speech")


def test_the_table_ranks_compares_and_says_a_gain_as_the_decision_does():
    doc = a_report(make_fine_tune("lora", 0.10, 0.20, unit=WER))
    assert [f.name for f in best_first(doc)] == ["lora", "knn", "fixed", "prompt"]
    assert doc.decision.candidate == "lora"
    assert "over knn" in doc.decision.sentence
    marked = [row["candidate"] for row in result_rows(doc) if row["gain"] == "(this one)"]
    assert marked == ["knn"] == [best_untrained(doc.facts)]
    lines = list(csv.DictReader(io.StringIO(to_csv(doc, "results"))))
    assert [line["candidate"] for line in lines] == ["lora", "knn", "fixed", "prompt"]
    assert lines[0]["compared_with"] == "knn"
    doc = a_report(make_fine_tune("lora", 0.20, 0.10, unit=WER, vs_untrained=comparison(-0.1, unit=WER)))
    lora = next(row for row in result_rows(doc) if row["candidate"] == "lora")
    assert lora["gain"].startswith("+0.100 [")
    assert f"{lora['gain']} wer over knn" in " ".join(doc.decision.reasons)
    assert result_headings(doc)["gain"] == "gain vs best\nuntrained"
    assert result_headings(doc)["target"] == "target\nwer ↓"


def test_the_front_holds_the_lowest_and_draws_it_on_the_right():
    worse = make_fine_tune("dpo", 0.20, 0.10, unit=WER)
    doc = a_report(make_fine_tune("lora", 0.10, 0.20, unit=WER), worse)
    assert {p.label for p in points_of(doc) if p.on_front} == {"lora"}
    assert "target: wer, lower is better →" in front(doc)
    x_of = {name: float(x) for x, name in re.findall(r'<text x="([\d.]+)"[^>]*>(lora|dpo)', front(doc))}
    assert x_of["dpo"] < x_of["lora"]
    endless = replace(worse, target=worse.target._replace(high=inf))
    assert "dpo" in front(a_report(endless))


def test_the_fine_tune_with_the_lowest_score_is_the_one_to_rescue_and_the_lowest_trial_first():
    doc = a_report(
        make_fine_tune("dpo", 0.20, 0.10, "fail", unit=WER),
        make_fine_tune("lora", 0.10, 0.20, "fail", unit=WER),
    )
    runs = [
        Run(f.run_id, "e", f.name, f.method, f.prompting, f.answer, 0, "m", "w", "b", "done", "", {}, {})
        for f in doc.facts
    ]
    chosen = select_case(doc, runs)
    assert (chosen.facts.name, chosen.reference.name) == ("lora", "knn")

    def make_trial(name, wer):
        half = HalfVerdict("search", 50, 100, verdict("fail"), gains=True)
        return TrialResult(name, "", name, {}, make_fine_tune(name, wer, 0.1, unit=WER), half)

    lora, low = make_trial("lora", 0.3), make_trial("low", 0.1)
    rescued = Rescue("e", "m", "lora", 0, "wer", "knn", lora, (low,), (), 0.02)
    assert [row[0] for row in rescue_rows(rescued)] == ["low", "lora"]
    assert rescued.front == ("low",)


@pytest.mark.parametrize(
    ("bounds", "higher", "unit"),
    [
        ((0.0, 1.0), True, RATE),
        ((0.0, 1.0), False, ERRORS),
        ((0.0, float("inf")), False, Unit(1.0, "of x", False, 0.0)),
        ((-1.0, 1.0), True, Unit(1.0, "of x", True, -1.0, 1.0)),
    ],
)
def test_a_metric_says_its_unit_by_its_bounds_and_its_direction(bounds, higher, unit):
    assert mean_metric("of_x", lambda output, example: None, higher, bounds).unit == unit


def test_goals_and_means_over_seeds_know_the_range_of_a_metric():
    stars, reward = Unit(1.0, "stars", True, 1.0, 5.0), Unit(1.0, "reward")
    assert [unit.value_at(0.8) for unit in (RATE, stars, reward)] == pytest.approx([0.8, 4.2, 0.8])
    assert [unit.change_at(0.1) for unit in (RATE, stars, reward)] == pytest.approx([0.1, 0.4, 0.1])
    seeds = [make_fine_tune("lora", 4.8 + 0.1 * i, 0.1, unit=stars, seed=i) for i in range(3)]
    (summary,) = summarize_seeds(seeds)
    assert (summary.score.score, summary.score.high) == (pytest.approx(4.9), 5.0)


GRADED = mean_metric("f1", lambda output, example: None)
RATING = mean_metric("rating", lambda output, example: None, bounds=(1.0, 5.0))
BITS = Metric(
    "bits", False, (0.0, float("inf")), ("bits",), lambda o, e: None, weighted_mean, lambda e: (8.0,)
)


@pytest.mark.parametrize(
    ("metric", "before", "after", "expected"),
    [
        (EXACT, 1.0, 0.0, True),
        (GRADED, 0.10, 0.105, False),  # half a point, though 5 % of the score
        (GRADED, 0.90, 0.915, True),
        (RATING, 5.0, 4.97, False),  # under a hundredth of its range of 4
        (RATING, 2.0, 1.95, True),
        (BITS, 100.0, 100.5, False),  # half a percent, though 0.5 bits
        (BITS, 0.100, 0.102, True),
        (EXACT, None, 1.0, True),
        (EXACT, None, None, False),
    ],
)
def test_an_item_flips_alike_in_a_comparison_a_control_arm_and_a_night(metric, before, after, expected):
    old, new = (rows([x, 1.0], metric)[0] for x in (before, after))
    assert is_flipped(old, new, metric) is expected
    night = compare_base({("task", "i"): new}, {("task", "i"): old}, [[("task", "i")]], {}, {"task": metric})
    assert night.flips == {"task/i": expected}
    if before is not None:
        c = compared.compare_rows(metric, rows([before, 1.0], metric), rows([after, 1.0], metric))
        assert bool(c.lost or c.gained) is expected


def store_slow_run(at, name, latency_s, metric="latency", **changes):
    """Store a run of eight answers that each took this long or have a score of another metric."""
    identity = RowsIdentity(name, "t", "support", "v", "test", "p", "generate", "fp32", "hf", "l", "cpu", "s")
    sample = [
        replace(fake_project.row_of("support", i, 1.0, "x"), parts={metric: (latency_s + i,)})
        for i in range(8)
    ]
    store.append_block(at, identity, 0, sample)
    store.complete_rows(at, identity, len(sample))
    rows_of = {"support/test": identity.digest}
    run = Run(name, "e", name, "base", "zero_shot", "generate", 0, "m", name, name, "done", "", rows_of, {})
    store.save_run(at, replace(run, **changes))


def test_a_metric_whose_unit_is_not_known_is_not_taken_for_a_rate(tmp_path):
    at = store.Store(tmp_path)
    for name in ("one", "other"):
        store_slow_run(at, name, 0.1 if name == "one" else 0.05, "edits")
    change = differences(at, "one", "other").scores["support/test"]["edits"]
    assert (change.a, change.difference) == (None, None)
    assert "do not say the unit" in change.why_not
