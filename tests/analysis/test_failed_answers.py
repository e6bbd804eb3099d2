"""Failed answers count as lost, appear in every report and are never dropped."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from fake_rows import EXACT, LOWER, flips, rows

from harness import config, formatting, store
from harness.analysis import gate_verdict
from harness.analysis.admission import Measurement
from harness.analysis.comparison import compare_rows, estimate
from harness.analysis.estimators import orient
from harness.analysis.gate_verdict import exit_code
from harness.experiment.study import load_study
from harness.lifecycle import release
from harness.lifecycle.release import candidate_runs
from harness.metrics import mean_metric
from harness.records import BLOCK
from harness.spec import GatePolicy, Task, TaskData
from harness.store import Store

POLICY = GatePolicy()


def make_measurement(base, new, name="facts", metric=EXACT, **fields):
    """Make one capability task; a score of None is an answer that failed."""
    task = Task(name=name, data=TaskData(), metrics=(metric.name,), kind="choice", **fields)
    base_rows, new_rows = (rows(scores, metric, task=name) for scores in (base, new))
    return Measurement(task, "capability", "suite", {metric.name: metric}, base_rows, new_rows)


def judge_tasks(*tasks, policy=POLICY, target=None):
    return gate_verdict.judge(tasks, policy, target=target, identical=False).verdict


def outcomes(verdict):
    return {rule.name: rule.outcome for rule in verdict.rules}


def evidence(verdict, name):
    return next(rule for rule in verdict.rules if rule.name == name)


# The candidate's errors


def test_a_candidate_that_errs_on_what_it_would_lose_does_not_pass():
    base, new = [1.0] * 1000, [None] * 300 + [1.0] * 700
    assert judge_tasks(make_measurement(base[300:], new[300:])).outcome == "pass"
    verdict = judge_tasks(make_measurement(base, new))
    assert (verdict.outcome, evidence(verdict, "macro").outcome) == ("inconclusive", "fail")
    assert verdict.macro.score == pytest.approx(-0.3)
    assert verdict.sentence == (
        "UNDECIDED: invalid: 300 of 1,000 answers on facts (30.0 %) failed: 300 by the candidate (no answer), "
        "more than the 1.0 % that gate.max_errors allows"
    )


def test_errors_on_the_target_score_worst_for_everybody():
    base = [1.0] * 40 + [0.0] * 20 + [1.0] * 30 + [0.0] * 10
    new = [1.0] * 41 + [0.0] * 19 + [None] * 40
    comparison = compare_rows(EXACT, rows(base), rows(new))
    assert (comparison.n, formatting.points(comparison.delta)) == (100, "−29.0")
    score = estimate(EXACT, rows(new))
    assert (score.score, score.n, score.n_errors) == (pytest.approx(0.41), 100, 40)


def test_a_few_errors_are_lost_items_and_the_policy_says_how_many_may_fail():
    base, new = [1.0] * 1000, [None] + [1.0] * 999
    verdict = judge_tasks(make_measurement(base, new))
    assert (verdict.outcome, verdict.lost) == ("pass", 1)
    text = "errors: 1 of 1,000 answers on facts (0.1 %) failed: 1 by the candidate (no answer); at most 1.0 %"
    assert evidence(verdict, "errors").sentence.startswith(text)
    for n, max_errors, outcome in ((10, 0.01, "pass"), (11, 0.01, "inconclusive"), (5, 0.0, "inconclusive")):
        task = make_measurement([1.0] * 1000, [None] * n + [1.0] * (1000 - n))
        assert outcomes(judge_tasks(task, policy=GatePolicy(max_errors=max_errors)))["errors"] == outcome

    policy = GatePolicy(critical=("facts",), max_errors=0.5)
    verdict = judge_tasks(make_measurement([1.0] * 200, [None] * 30 + [1.0] * 170), policy=policy)
    assert "30 of 200 items that the base passed are lost" in evidence(verdict, "critical").sentence
    assert outcomes(verdict)["critical"] == "fail"


def test_no_policy_lets_an_invalid_verdict_through():
    policy = GatePolicy(on_inconclusive="pass")
    verdict = judge_tasks(make_measurement([1.0] * 100, [None] * 30 + [1.0] * 70), policy=policy)
    assert (verdict.outcome, exit_code(verdict, policy)) == ("inconclusive", 4)


# The base's errors


def test_what_the_base_did_not_answer_lies_between_two_bounds():
    base, new = [None] * 4 + [1.0] * 396, [1.0, 1.0, 0.0, 0.0] + [1.0] * 396
    (task,) = gate_verdict.judge([make_measurement(base, new)], POLICY, target=None, identical=False).tasks
    comparison = task.comparison
    assert (comparison.n, comparison.delta, comparison.errors.base) == (396, 0.0, 4)
    assert (comparison.errors.delta_lost, comparison.errors.delta_kept) == pytest.approx((-2 / 400, 2 / 400))
    if_lost, if_kept = (compare_rows(EXACT, rows([score] * 4 + base[4:]), rows(new)) for score in (1.0, 0.0))
    assert comparison.lower == pytest.approx(if_lost.lower)
    assert comparison.upper == pytest.approx(if_kept.upper)


def test_what_the_base_did_not_answer_counts_against_a_pass():
    # No other item is lost, but the candidate fails the items that the base did not answer.
    base, new = [None] * 10 + [1.0] * 990, [0.0] * 10 + [1.0] * 990
    policy = GatePolicy(macro=0.012)
    assert judge_tasks(make_measurement(base[10:], new[10:]), policy=policy).outcome == "pass"
    assert outcomes(judge_tasks(make_measurement(base, new), policy=policy))["macro"] == "inconclusive"

    failed = make_measurement([None] * 10, [1.0] * 10, "sums")
    verdict = judge_tasks(make_measurement(*flips(2000, 2, 2)), failed)
    assert verdict.outcome == "inconclusive"
    assert "1 task not answered by both (sums)" in verdict.sentence


@pytest.mark.parametrize("metric", [EXACT, LOWER])
def test_the_interval_holds_the_delta_whatever_the_base_would_have_answered(metric):
    rng = np.random.default_rng(5)
    for _ in range(20):
        scores, new = rng.integers(0, 2, (2, 60)).astype(float)
        base = [None if failed else score for score, failed in zip(scores, rng.random(60) < 0.1, strict=True)]
        comparison = compare_rows(metric, rows(base, metric), rows(new, metric), base_errors="bounds")
        full_comparison = compare_rows(metric, rows(scores, metric), rows(new, metric))
        lowest, highest = sorted((comparison.errors.delta_lost, comparison.errors.delta_kept))
        assert lowest - 1e-12 <= full_comparison.delta <= highest + 1e-12
        assert comparison.lower <= full_comparison.delta <= comparison.upper
        assert orient(comparison).errors.delta_lost <= orient(comparison).errors.delta_kept


def judge_critical(base, new):
    policy = GatePolicy(critical=("facts",), max_errors=0.5)
    return evidence(judge_tasks(make_measurement(base, new), policy=policy), "critical")


def test_a_critical_loss_has_to_show_whatever_the_base_would_have_answered():
    # 10 of 80 are lost; the base may have passed 40 more that the candidate answers: 10 of 120.
    base, new = [None] * 40 + [1.0] * 80, [1.0] * 40 + [0.0] * 10 + [1.0] * 70
    without_errors, with_errors = judge_critical(base[40:], new[40:]), judge_critical(base, new)
    assert (without_errors.outcome, with_errors.outcome) == ("fail", "inconclusive")
    assert without_errors.numbers["facts_low"] == pytest.approx(0.0695, abs=1e-4)
    assert with_errors.numbers["facts_low"] == pytest.approx(0.0460, abs=1e-4)  # the margin is 0.05
    assert with_errors.numbers["facts_high"] == without_errors.numbers["facts_high"]
    base, new = [None] * 40 + [1.0] * 80, [1.0] * 40 + [0.0] * 20 + [1.0] * 60
    assert judge_critical(base, new).outcome == "fail"

    base = [None] * 10 + [1.0] * 90
    if_right, if_wrong = (judge_critical(base, [answer] * 10 + [1.0] * 90) for answer in (1.0, 0.0))
    assert (if_right.outcome, if_wrong.outcome) == ("pass", "inconclusive")
    assert if_right.numbers["facts_high"] == pytest.approx(0.0327, abs=1e-4)


# Metrics and their worst value


POINTS = mean_metric("points", lambda output, example: None, bounds=(-np.inf, np.inf))


@pytest.mark.parametrize("critical", [(), ("facts",)])
def test_without_a_worst_value_one_error_is_enough(critical):
    base = np.random.default_rng(0).uniform(5, 6, 2000)
    task = make_measurement(base, [None, *base[1:]], metric=POINTS)
    role = "safety" if critical else "regression"
    result = judge_tasks(task._replace(role=role), policy=GatePolicy(critical=critical))
    assert result.sentence.startswith("UNDECIDED: invalid: 1 of 2,000 answers on facts (0.1 %) failed")
    assert "points has no worst value to count them by, which bounds: of the task declares" in result.sentence
    assert result.items_needed is None


# Stored runs


@pytest.fixture
def run(copy):
    return candidate_runs(load_study(config.load(copy)), "lora")[0]


def fail(run_store, digest, n):
    """Turn the first n stored answers of a row set into errors."""
    identity, stored_rows = store.read_identity(run_store, digest), store.read_rows(run_store, digest)
    shutil.rmtree(run_store.rows(digest))
    error_fields = {"status": "error", "text": "", "error": "the server was busy"}
    failed_rows = [replace(row, parts=dict.fromkeys(row.parts), **error_fields) for row in stored_rows[:n]]
    new_rows = [*failed_rows, *stored_rows[n:]]
    for i in range(0, len(stored_rows), BLOCK):
        store.append_block(run_store, identity, i // BLOCK, new_rows[i : i + BLOCK])
    store.complete_rows(run_store, identity, len(stored_rows))


def test_a_stored_run_with_failed_answers_is_invalid(copy, run):
    fail(Store(copy.parent / "runs"), run.rows["sums/test"], 5)
    (result,) = release.gate(copy, "lora")
    assert result.verdict.sentence.startswith("UNDECIDED: invalid: 5 of ")
    assert "5 by the candidate (the server was busy)" in result.verdict.sentence
    assert release.combine_exit_codes([result]) == 4
    assert "(5 errors)" in str(release.gate_document(result).sections[0].rows)


def test_a_stored_verdict_that_is_another_now_says_why(copy, run):
    store_pass(copy, run)
    fail(Store(copy.parent / "runs"), run.rows["sums/test"], 5)
    (result,) = release.gate(copy, "lora", ["gate.macro=0.03"])
    (note,) = [note for note in result.notes if "was PASS" in note]
    assert "against the base was PASS and would now be UNDECIDED: invalid: 5 of " in note
    assert note.endswith("(since then: gate.macro 0.02 → 0.03)")
    assert not [n for n in release.gate(copy, "lora", ["gate.macro=0.03"])[0].notes if "would now" in n]


def store_pass(copy, run, **changes):
    """Replace the newest verdict on a run by a pass with these changes; returns the original."""
    run_store = Store(copy.parent / "runs")
    release.gate(copy, "lora")
    newest_verdict = store.newest_verdict(run_store, run.run_id, run.base_digest)
    shutil.rmtree(run_store.folder / "verdicts")
    store.save_verdict(run_store, replace(newest_verdict, outcome="pass", **changes))
    return newest_verdict


def test_a_stored_run_that_did_not_answer_a_task_does_not_pass(copy, run):
    file = copy.parent / "runs" / run.run_id / "run.json"
    rows_without_facts = {key: digest for key, digest in run.rows.items() if key != "facts/test"}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rows": rows_without_facts}))
    (result,) = release.gate(copy, run.run_id)
    assert outcomes(result.verdict)["tasks"] == "inconclusive"
    assert "tasks: 1 task not answered by both (facts)" in result.verdict.sentence
