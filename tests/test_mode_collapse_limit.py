"""A limit for mode collapse in the gate: what passes, fails and stays open, alone and in an experiment."""

from dataclasses import replace

import pytest
import tiny_experiment
from test_mode_collapse import LABELS, OPEN, rows

from harness import gating, release
from harness.comparison import Estimate, compare_commonest_answers
from harness.gating import Measurement, TargetFacts
from harness.gating.answer_rules import mode_collapse_rule
from harness.metrics import mean_metric
from harness.spec import GatePolicy, Task

LIMITED = GatePolicy(mode_collapse=0.1)
SCORE = mean_metric("score", lambda output, example: None)


def judge_task(new, base=OPEN, references=None, policy=LIMITED, **changes):
    old = None if base is None else rows(base, references, **changes)
    found = compare_commonest_answers(old, rows(new, references, **changes))
    return mode_collapse_rule({"chat": found}, policy, identical=False)


def test_a_rise_passes_is_open_or_fails_by_what_is_shown_of_the_limit():
    rule = judge_task(["I do not know."] * 60 + OPEN[60:])
    assert rule.outcome == "fail"
    assert rule.sentence.startswith("mode collapse: the commonest answer to chat 1.0 → 60.0 %, +59.0 [")
    assert rule.sentence.endswith("limit 10.0 pp: more is shown")
    assert (rule.numbers["base"], rule.numbers["new"], rule.numbers["limit"]) == (0.01, 0.6, 0.1)
    rule = judge_task([f"another {n}" for n in range(100)])
    assert rule.outcome == "pass"
    assert 0 < rule.numbers["p"] < LIMITED.alpha
    rule = judge_task(["yes"] * 12 + OPEN[12:])
    assert rule.outcome == "inconclusive"
    assert "neither less nor more is shown" in rule.sentence


def test_references_count_as_the_base_that_may_repeat_answers():
    assert judge_task(LABELS, OPEN, LABELS).outcome == "pass"
    assert judge_task(["late"] * 100, OPEN, LABELS).outcome == "fail"
    assert judge_task(["late"] * 100, None, LABELS).outcome == "fail"
    assert judge_task(["late"] * 100, None).outcome == "skipped"


def test_a_failed_answer_counts_as_the_commonest_and_a_ranked_one_not_at_all():
    new = [replace(row, status="error", parts={}) if i < 30 else row for i, row in enumerate(rows(OPEN))]
    (found,) = compare_commonest_answers(rows(OPEN), new)
    assert found.new == pytest.approx((30 + 1) / 100)
    ranked = [replace(row, finish_reason="ranked") for row in rows(["yes"] * 100)]
    assert compare_commonest_answers(rows(OPEN), ranked) == ()


def test_of_several_tasks_the_one_that_collapsed_decides_and_no_limit_is_no_rule():
    fine = compare_commonest_answers(rows(OPEN), rows(OPEN))
    collapsed = compare_commonest_answers(rows(OPEN), rows(["yes"] * 80 + OPEN[80:]))
    rule = mode_collapse_rule({"facts": fine, "chat": collapsed}, LIMITED, identical=False)
    assert (rule.outcome, rule.numbers["task"]) == ("fail", "chat")
    assert mode_collapse_rule({}, LIMITED, identical=True).outcome == "pass"
    assert mode_collapse_rule({}, GatePolicy(), identical=False) is None


def _measurement(new, role="capability"):
    task = Task(name="chat", data={}, metrics=("score",))
    arms = [[replace(row, parts={"score": (1.0,)}) for row in rows(texts)] for texts in (OPEN, new)]
    return Measurement(task, role, "", {"score": SCORE}, *arms)


def _outcome(measured, target=None):
    found = gating.judge([measured], LIMITED, target=target, identical=False)
    return next(rule.outcome for rule in found.verdict.rules if rule.name == "mode collapse")


def test_the_gate_judges_capability_tasks_and_the_target_and_no_refusals():
    assert _outcome(_measurement(["yes"] * 100)) == "fail"
    assert _outcome(_measurement(["yes"] * 100, role="safety")) == "skipped"
    score = Estimate(0.5, 0.4, 0.6, 100)
    commonest = compare_commonest_answers(rows(OPEN), rows(["yes"] * 100))
    target = TargetFacts(score, None, commonest=commonest)
    assert _outcome(_measurement(OPEN), target) == "fail"


@pytest.mark.e2e
def test_compare_and_the_stored_gate_say_the_same_of_a_trained_candidate(tiny, own_cache, tmp_path):
    path = tiny_experiment.write(tmp_path, tiny, extra="gate: {mode_collapse: 0.3}\n")
    made = tiny_experiment.run(path, candidates=("prompt", "lora"))
    verdict = next(f.verdict for f in made.facts if f.name == "lora")
    rule = next(rule for rule in verdict.rules if rule.name == "mode collapse")
    (stored,) = release.gate(path, "lora")
    assert next(r for r in stored.verdict.rules if r.name == "mode collapse") == rule
    assert rule.numbers["task"] in ("the target", "facts")
