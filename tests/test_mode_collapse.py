"""Mode collapse: what is counted of answers, where a report shows it, and the gate's limit for it."""

from dataclasses import replace

import pytest
import tiny_experiment
from fake_facts import alternatives, make_fine_tune

from harness import gating, release, report, store
from harness.comparison import (
    AnswerCounts,
    AnswerDiversity,
    Estimate,
    answer_diversity,
    compare_commonest_answers,
)
from harness.gating import Measurement, TargetFacts
from harness.gating.answer_rules import mode_collapse_rule
from harness.metrics import mean_metric
from harness.records import SampleResult
from harness.report import ExperimentReport
from harness.spec import GatePolicy, Task
from harness.stats import tango_interval
from harness.store import Store

OPEN = [f"text {n}" for n in range(100)]
LABELS = ["late", "money"] * 50


def rows(texts, references=None, cluster_size=1, **changes):
    return [
        SampleResult(
            task="chat",
            split="test",
            example_id=f"item-{i:03d}",
            position=i,
            status="ok",
            text=text,
            prompt="",
            references=(references[i],) if references else (),
            parts={},
            cluster="" if cluster_size == 1 else f"family-{i // cluster_size}",
            finish_reason="stop",
            **changes,
        )
        for i, text in enumerate(texts)
    ]


def find_collapse(new, base, references=None, **changes):
    found = answer_diversity(rows(new, references, **changes), rows(base, references, **changes))
    return found.collapsed


def test_answers_are_counted_beside_the_bases_with_a_paired_interval_of_the_commonest():
    found = answer_diversity(rows(["yes", " yes", "no", "yes\n"]), rows(["a", "b", "b", "c"]))
    assert found.new == AnswerCounts("yes", 0.75, 2, 0.5)
    assert found.base == AnswerCounts("b", 0.5, 3, 0.75)
    assert (found.task, found.n, found.reference_share) == ("chat", 4, None)
    # "yes" stands where the base's "b" stood once, and in two more places; one "b" is lost to "no".
    found = answer_diversity(rows(["yes", "yes", "no", "yes"]), rows(["a", "b", "b", "c"]))
    assert (found.low, found.high) == pytest.approx(tango_interval(2, 1, 4))
    found = answer_diversity(rows(["yes"] * 10))
    assert (found.new.share, found.base, found.collapsed) == (1.0, None, False)
    answer_diversity(rows(["\ud83d"] * 5)).new.commonest.encode("utf-8")


def test_items_that_share_clusters_say_less():
    many, few = ["same"] * 20 + OPEN[20:], OPEN
    alone = answer_diversity(rows(many), rows(few))
    together = answer_diversity(rows(many, cluster_size=10), rows(few, cluster_size=10))
    assert together.high - together.low > alone.high - alone.low


def test_one_answer_to_open_questions_is_a_collapse():
    assert find_collapse(["I do not know."] * 60 + OPEN[60:], OPEN)
    assert find_collapse([""] * 100, OPEN)
    lopsided = ["late"] * 60 + ["money"] * 40
    assert find_collapse(["late"] * 100, lopsided, LABELS)


def test_right_labels_a_base_that_gave_one_answer_and_a_rise_by_chance_are_no_collapse():
    assert not find_collapse(LABELS, OPEN, LABELS)
    assert not find_collapse(["I do not know."] * 100, ["I do not know."] * 100)
    assert not find_collapse(["yes", "yes", *OPEN[2:]], OPEN)
    before, after = ["yes"] * 40 + OPEN[40:], ["yes"] * 60 + OPEN[60:]
    found = answer_diversity(rows(after), rows(before))
    assert found.low > 0
    assert not found.collapsed


COLLAPSED = AnswerDiversity(
    "chat",
    100,
    AnswerCounts("I | do not\nknow.", 0.83, 18, 0.18),
    AnswerCounts("yes", 0.04, 96, 0.96),
    0.7,
    0.86,
    0.02,
    collapsed=True,
)
VARIED = replace(COLLAPSED, task="facts", collapsed=False)


def make_report(*found):
    return ExperimentReport(
        "support",
        "smollm2-135m",
        "exact_match",
        (*alternatives(), make_fine_tune("lora", 0.8, 0.06)),
        diversity={"lora": found},
    )


def test_markdown_html_and_json_show_base_beside_new(tmp_path):
    shown = report.markdown(report.experiment_document(make_report(VARIED)))
    assert "How varied the answers of lora are" in shown
    assert "lora: mode collapse" not in shown
    for shown in (
        report.markdown(report.experiment_document(make_report(COLLAPSED))),
        report.html(make_report(COLLAPSED)),
    ):
        assert "How varied the answers of lora are" in shown
        for cell in ("4.0", "83.0", "+79.0 [+70, +86]", "2.0", "96 (96.0 %)", "18 (18.0 %)"):
            assert cell in shown, cell
    report.write(make_report(COLLAPSED), tmp_path)
    assert report.read(tmp_path / "support.json").diversity == {"lora": (COLLAPSED,)}


def test_an_experiment_describes_every_fine_tune_on_what_it_generated(finished_run):
    found = finished_run[1].diversity
    assert set(found) == {"lora", "hybrid"}
    assert [d.task for d in found["lora"]] == ["letters", "facts"]
    assert all(d.base is not None and d.n in (6, 12) for of in found.values() for d in of)


@pytest.mark.e2e
def test_a_base_asked_in_the_same_way_stands_beside_a_fine_tune(tiny, own_cache, tmp_path):
    shots = "  fixed: {prompting: {few_shot: {select: fixed, shots: 2}}}\n"
    path = tiny_experiment.write(tmp_path, tiny, tiny_experiment.CANDIDATES + shots)
    made = tiny_experiment.run(path, candidates=("prompt", "fixed", "lora", "hybrid"))
    runs = tiny_experiment.runs_of(path)

    def count_answers(name):
        answered = store.read_rows(Store(tmp_path / "runs"), runs[name].rows["letters/test"])
        return answer_diversity(answered).new

    assert made.diversity["lora"][0].base == count_answers("prompt")
    assert made.diversity["hybrid"][0].base == count_answers("fixed")
    assert count_answers("prompt") != count_answers("fixed")


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
