"""Many candidates on the same items, chains of champions, A/A noise, and answers that collapse to one."""

from dataclasses import replace

import fake_facts
import numpy as np
import pytest
import tiny_experiment
from fake_facts import alternatives, find_reason, make_fine_tune
from fake_rows import EXACT, compare_flips, rows
from typer.testing import CliRunner

from harness import config, store
from harness.analysis import gate_rules_on_answers, gate_verdict
from harness.analysis.admission import Measurement, admit
from harness.analysis.answers import AnswerCounts, answer_diversity, compare_commonest_answers
from harness.analysis.decision import Decision
from harness.analysis.estimators import Estimate
from harness.analysis.gate_rules_on_answers import cumulative_of, cumulative_policy, cumulative_rule
from harness.analysis.gate_verdict import apply_rules
from harness.analysis.seeds import Family, family_of, place_in_family
from harness.analysis.verdict import Rule, TargetFacts, TaskComparison, Verdict
from harness.cli import app
from harness.errors import IncompatibleRuns, UserError
from harness.experiment import Reader, study_of_session
from harness.experiment import read_both_arms as measure_run
from harness.lifecycle import release
from harness.metrics import mean_metric
from harness.records import Noise, SampleResult, TaskNoise
from harness.spec import GatePolicy, Task
from harness.stats import tango_interval
from harness.store import Store

POLICY = GatePolicy()
EIGHT = Family({f"lora-{i}": f"lora-{i}" for i in range(8)})


def verdict_of(*counts: tuple[int, int], n: int = 300, level: float | None = None) -> Verdict:
    """Judge one task of n items for each pair of gains and losses."""
    tasks = [
        TaskComparison(Task(name=f"t{i}", data={}), "capability", compare_flips(n, *flip_counts), True, "")
        for i, flip_counts in enumerate(counts)
    ]
    return apply_rules(tasks, POLICY, validity=None, target=None, identical=False, level=level)


def make_decision(facts, family: Family = EIGHT) -> Decision:
    return fake_facts.make_decision([*alternatives(), *facts], family=family)


SAFE, DOUBTFUL, LOST = [(12, 10)] * 8, [(18, 20)] * 8, [(5, 30)] * 8


def test_one_of_eight_is_shipped_where_it_is_safe_and_one_alone_reads_as_before():
    facts = [make_fine_tune(f"lora-{i}", 0.81, 0.07, verdict=verdict_of(*SAFE)) for i in range(8)]
    assert make_decision(facts).candidate == "lora-0"

    lora = make_fine_tune("lora", 0.81, 0.07, verdict=verdict_of(*SAFE))
    assert make_decision([lora], Family({"lora": "lora"})) == make_decision([lora], Family())


def test_one_that_passes_alone_and_not_among_eight_leaves_it_undecided_and_says_what_would_settle_it():
    verdict = verdict_of(*DOUBTFUL)
    p = verdict.p
    assert verdict.outcome == "pass"
    assert p is not None
    assert 0.05 / 8 < p < 0.05
    corrected = verdict_of(*DOUBTFUL, level=0.05 / 8)
    lora = make_fine_tune("lora-0", 0.81, 0.07, verdict=verdict, corrected=corrected)
    other_facts = [make_fine_tune(f"lora-{i}", 0.70, 0.0, verdict=verdict_of(*LOST)) for i in range(1, 8)]
    decision = make_decision([lora, *other_facts])
    assert decision.action == "undecided"
    assert f"its gate passes alone (p 0.0{round(1000 * p)}), not as one of 8 fine-tunes" in decision.sentence
    assert f"{corrected.items_needed:,} more items would settle it" in decision.sentence
    assert "lora-0 not shown" in find_reason(
        decision, "would still pass its own gate with a chance of up to 34 %"
    )
    assert "UNDECIDED" in find_reason(decision, "as one of 8, at 0.6 %")


@pytest.mark.parametrize("counts", [SAFE, DOUBTFUL, [(0, 0)] * 3, [(8, 10), (0, 3), (20, 12)]])
def test_p_is_the_level_up_to_which_the_macro_passes(counts):
    p = verdict_of(*counts).p
    assert p is not None
    outcomes = [verdict_of(*counts, level=p * factor).rules[0].outcome for factor in (0.99, 1.01)]
    assert outcomes == ["inconclusive", "pass"]


def test_a_recipe_is_as_sure_as_its_least_sure_seed_and_not_shown_where_one_failed():
    sure, unsure = (verdict_of(*counts) for counts in (SAFE, DOUBTFUL))
    facts = [make_fine_tune("lora-0", 0.8, 0.07, verdict=v, seed=i) for i, v in enumerate((sure, unsure))]
    (member, *_) = make_decision(facts).family
    assert member.p == unsure.p

    fact = make_fine_tune("lora-0", 0.8, 0.07, None, seed=1, state="failed", target=None, validation=None)
    decision = make_decision([make_fine_tune("lora-0", 0.8, 0.07, verdict=verdict_of(*SAFE)), fact])
    assert (decision.family[0].p, decision.family[0].p_adjusted) == (None, 1.0)
    assert decision.candidate is None
    assert "but seed 1 failed" in decision.sentence

    (lora,) = place_in_family([make_fine_tune("lora-0", 0.8, 0.07, verdict=verdict_of(*SAFE))], EIGHT)
    assert lora.standing is not None
    assert lora.standing.level == pytest.approx(0.05 / 8)
    assert lora.standing.p_adjusted == pytest.approx(8 * lora.standing.p)


def test_a_grid_is_one_member_that_validation_chooses_for():
    family = Family({"lora[r=4]": "lora", "lora[r=8]": "lora", "full": "full"})
    facts = [
        make_fine_tune("lora[r=4]", 0.79, 0.07, verdict=verdict_of(*SAFE)),
        make_fine_tune("lora[r=8]", 0.82, 0.07, verdict=verdict_of(*LOST)),
        make_fine_tune("full", 0.70, 0.01, verdict=verdict_of(*LOST)),
    ]
    decision = make_decision(facts, family)
    assert [(m.name, m.candidate) for m in decision.family] == [("lora", "lora[r=8]"), ("full", "full")]
    assert decision.action != "fine-tune"
    assert make_decision(facts[:1] + facts[2:], family).candidate == "lora[r=4]"


def test_the_family_is_what_the_file_names_whatever_is_selected(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "reference": "b"}\n' * 9, "utf-8")
    (tmp_path / "harness.yaml").write_text(
        "name: desk\ntarget: {name: desk, data: {all: rows.jsonl}}\ncandidates:\n"
        "  prompt: {}\n  bag: {method: classifier}\n"
        "  lora: {method: lora, params: {r: [4, 8]}, sweep: {learning_rate: [1.0e-3, 1.0e-4]}}\n"
        "  full: {method: full}\n  hybrid: {weights_of: full, prompting: few_shot}\n",
        "utf-8",
    )
    loaded = config.load(tmp_path / "harness.yaml", ["gate.alpha=0.1"], ["full"])
    family = family_of(loaded.experiment)
    assert family == Family(
        {"lora[r=4]": "lora", "lora[r=8]": "lora", "full": "full", "hybrid": "hybrid"}, alpha=0.1
    )
    assert family.size == 3


def make_measurements(base_lost: float, new_lost: float) -> list[Measurement]:
    """Measure two arms on four tasks; each arm loses the given share of every task's items."""
    positions = (np.arange(500) * 7919) % 500 / 500  # spread evenly over both halves of a task
    arms = [np.where(positions < lost_share, 0.0, 1.0) for lost_share in (base_lost, new_lost)]
    return [
        Measurement(Task(name=f"t{i}", data={}), "capability", "s", {"exact_match": EXACT}, *pair)
        for i in range(4)
        for pair in [[rows(arm, task=f"t{i}") for arm in arms]]
    ]


def judge_tasks(against, policy=POLICY, **options):
    return gate_verdict.judge(against, policy, target=None, identical=False, **options).verdict


def judge_cumulative(lost_share: float, policy=POLICY) -> Rule:
    """Judge a loss against a first base that lost no items."""
    verdict = judge_tasks(make_measurements(0.0, lost_share), cumulative_policy(policy))
    return cumulative_rule(verdict, "b" * 16)


def test_a_loss_against_the_first_base_is_said_with_its_margin_and_asks_promote_where_it_is_not_ruled_out():
    rule = judge_cumulative(0.06)
    assert rule.outcome == judge_tasks(make_measurements(0.05, 0.06), cumulative=rule).outcome == "fail"
    assert rule.sentence.startswith("cumulative: against the first base, macro over 4 tasks: −6.0 [")
    assert "margin 4.0 pp: a loss beyond it is shown" in rule.sentence
    assert (rule.numbers["margin"], rule.numbers["delta"]) == (0.04, pytest.approx(-0.06))

    rule = judge_cumulative(0.04)
    assert rule.outcome == "skipped"
    assert rule.sentence.endswith("; harness promote asks for a reason")
    assert judge_tasks(make_measurements(0.03, 0.04), cumulative=rule).outcome == "pass"


def test_its_margin_is_twice_the_macros_unless_it_is_written():
    margins = {0.02: 0.04, "10%": "20%", 0.6: 0.99, "60%": "99%", 0.995: 0.995}
    assert {macro: cumulative_policy(GatePolicy(macro=macro)).macro for macro in margins} == margins
    assert cumulative_policy(GatePolicy(cumulative=0.03)).macro == 0.03


def test_two_tasks_of_one_name_are_refused():
    """Otherwise only one of them would be judged."""
    arms = make_measurements(0.0, 0.0)
    with pytest.raises(IncompatibleRuns, match="several tasks named t0"):
        judge_tasks([*arms, arms[0]])


def test_a_first_base_without_rows_is_said_and_promote_asks(copy):
    (against_base,) = release.gate(copy, "lora")
    assert cumulative_of(against_base.verdict) is None
    path, first_champion = release.promote_named(copy, "lora", despite="a test")
    assert first_champion.cumulative == pytest.approx([*against_base.verdict.macro[:4]], abs=1e-6)
    tiny_experiment.rewrite_champion(path, first_base="e" * 16)
    (vs_champion,) = release.gate(copy, "lora")
    rule = cumulative_of(vs_champion.verdict)
    assert rule is not None
    assert (rule.outcome, vs_champion.verdict.outcome) == ("skipped", "pass")  # the champion's own weights
    assert "found no rows of the first base eeee" in rule.sentence
    with pytest.raises(UserError, match="loss against the first base that is not ruled out"):
        release.promote_named(copy, "lora")


OPEN = [f"text {n}" for n in range(100)]
LABELS = ["late", "money"] * 50


def text_rows(texts, references=None, cluster_size=1, **changes):
    return [
        SampleResult(
            task="chat", split="test", example_id=f"item-{i:03d}", position=i, status="ok", text=text,
            prompt="", references=(references[i],) if references else (), parts={},
            cluster="" if cluster_size == 1 else f"family-{i // cluster_size}", finish_reason="stop",
            **changes,
        )
        for i, text in enumerate(texts)
    ]  # fmt: skip


def find_collapse(new, base, references=None, **changes):
    result = answer_diversity(text_rows(new, references, **changes), text_rows(base, references, **changes))
    return result.collapsed


def test_answers_are_counted_beside_the_bases_with_a_paired_interval_of_the_commonest():
    diversity = answer_diversity(text_rows(["yes", " yes", "no", "yes\n"]), text_rows(["a", "b", "b", "c"]))
    assert diversity.new == AnswerCounts("yes", 0.75, 2, 0.5)
    assert diversity.base == AnswerCounts("b", 0.5, 3, 0.75)
    assert (diversity.task, diversity.n, diversity.reference_share) == ("chat", 4, None)
    # "yes" replaces the base's "b" once and two other answers; one "b" becomes "no".
    diversity = answer_diversity(text_rows(["yes", "yes", "no", "yes"]), text_rows(["a", "b", "b", "c"]))
    assert (diversity.low, diversity.high) == pytest.approx(tango_interval(2, 1, 4))
    diversity = answer_diversity(text_rows(["yes"] * 10))
    assert (diversity.new.share, diversity.base, diversity.collapsed) == (1.0, None, False)
    answer_diversity(text_rows(["\ud83d"] * 5)).new.commonest.encode("utf-8")


def test_one_answer_to_open_questions_is_a_collapse_and_right_labels_or_chance_are_none():
    assert find_collapse(["I do not know."] * 60 + OPEN[60:], OPEN)
    assert find_collapse([""] * 100, OPEN)
    lopsided_answers = ["late"] * 60 + ["money"] * 40
    assert find_collapse(["late"] * 100, lopsided_answers, LABELS)

    assert not find_collapse(LABELS, OPEN, LABELS)
    assert not find_collapse(["I do not know."] * 100, ["I do not know."] * 100)
    assert not find_collapse(["yes", "yes", *OPEN[2:]], OPEN)
    base_answers, new_answers = ["yes"] * 40 + OPEN[40:], ["yes"] * 60 + OPEN[60:]
    diversity = answer_diversity(text_rows(new_answers), text_rows(base_answers))
    assert diversity.low > 0
    assert not diversity.collapsed


LIMITED = GatePolicy(mode_collapse=0.1)
SCORE = mean_metric("score", lambda output, example: None)


def judge_task(new, base=OPEN, references=None, policy=LIMITED, **changes):
    base_rows = None if base is None else text_rows(base, references, **changes)
    comparison = compare_commonest_answers(base_rows, text_rows(new, references, **changes))
    return gate_rules_on_answers.mode_collapse_rule({"chat": comparison}, policy, identical=False)


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


def test_the_gate_judges_capability_tasks_and_the_target_and_no_refusals():
    task = Task(name="chat", data={}, metrics=("score",))

    def judge(new, role="capability", target=None):
        arms = [[replace(row, parts={"score": (1.0,)}) for row in text_rows(texts)] for texts in (OPEN, new)]
        task_measurement = Measurement(task, role, "", {"score": SCORE}, *arms)
        judgement = gate_verdict.judge([task_measurement], LIMITED, target=target, identical=False)
        return next(rule.outcome for rule in judgement.verdict.rules if rule.name == "mode collapse")

    assert judge(["yes"] * 100) == "fail"
    assert judge(["yes"] * 100, role="safety") == "skipped"
    score = Estimate(0.5, 0.4, 0.6, 100)
    commonest = compare_commonest_answers(text_rows(OPEN), text_rows(["yes"] * 100))
    assert judge(OPEN, target=TargetFacts(score, None, commonest=commonest)) == "fail"


def measurement(flips, n, *, precision="bf16", created="1"):
    task = TaskNoise("task", n, {"layout": flips}, 0.5)
    return Noise(created, created, "m", "base", precision, "cpu", "e", "l", (task,))


@pytest.mark.parametrize(("rate", "admitted"), [(None, True), (0.02, True), (0.9, False)])
def test_a_task_whose_score_is_within_its_noise_is_not_admitted(rate, admitted):
    chance_task = Task(name="task", data={}, chance=0.25)
    is_admitted, reason = admit(chance_task, EXACT, rows([1] * 45 + [0] * 55), rate)
    assert is_admitted is admitted
    assert ("its layout alone" in reason) is not admitted


def test_a_comparison_judges_with_the_noise_of_its_base_on_the_device_of_its_rows(copy):
    session = tiny_experiment.session(copy)
    run = tiny_experiment.runs_of(copy)["lora"]
    task_noise = (TaskNoise("facts", 6, {"layout": 3}, None),)
    noise = replace(measurement(0, 1, precision="fp32"), base_digest=run.base_digest, tasks=task_noise)
    layout = store.read_identity(session.store, run.rows["facts/test"]).layout_digest
    name = session.machine.name
    for digest, device, rate in (
        ("another", name, None),
        (layout, "another card", None),
        (layout, name, 0.5),
    ):
        store.save_noise(session.store, replace(noise, layout_digest=digest, device=device))
        measurements = measure_run(study_of_session(session, Reader(session.store, session.tasks)), run)
        rates = {m.task.name: m.flip_rate for m in measurements}
        assert rates == {"sums": None, "facts": rate, "prose": None}


@pytest.mark.e2e
def test_the_doctor_prints_what_flipped_in_fp32_nothing_and_the_measurement_is_kept(copy, monkeypatch):
    monkeypatch.chdir(copy.parent)
    result = CliRunner().invoke(app, ["doctor", "--noise"])
    assert "0 of 32 answers flipped (0.0 %), fp32" in result.stdout
    (noise,) = store.noises(Store(copy.parent / "runs"))
    assert [(t.task, t.n) for t in noise.tasks] == [("sums", 6), ("facts", 6), ("prose", 4)]
    assert (noise.flips, noise.n) == (0, 32)
    assert max(t.largest_nats for t in noise.tasks if t.largest_nats is not None) < 1e-3
