"""Worlds whose truth is known: all ways to judge them give the same, correct verdict."""

import json
import shutil
from dataclasses import replace

import pytest
import rescue_worlds
import stored
import worlds
from fake_facts import find_reason
from worlds import Sizes, Truth

import harness
from harness import experiment, store
from harness.analysis.comparison import compare_on_target
from harness.cli.compare import exit_code
from harness.errors import UserError
from harness.experiment import plan_curve
from harness.experiment.study import judge_labels
from harness.lifecycle import release
from harness.lifecycle.nightly_changes import compare_judged_answers
from harness.report import experiment_document, markdown
from harness.spec import GatePolicy

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("rule_cache")]


def answers(zero_shot, few_shot, rag, tuned, of="behaviour"):
    return {"zero_shot": {of: zero_shot}, "few_shot": {of: few_shot}, "rag": {of: rag}, "tuned": {of: tuned}}


FORMAT = answers(20, 40, 20, 90)
FEW = Sizes(general=100)  # on four hundred items a fine-tune that loses and gains one in a hundred passes


def verdict(report, name="lora"):
    return next(f.verdict for f in report.facts if f.name == name)


def test_where_only_facts_are_missing_retrieval_is_shipped(tmp_path):
    truth = Truth(answers(10, 12, 85, 15, of="knowledge"), lost=1, gained=1)
    report = worlds.report(tmp_path, truth, FEW)
    assert (report.decision.action, report.decision.candidate) == ("rag", "rag")
    assert (
        find_reason(report.decision, "retrieval fixes that")
        == "The prompt fails on facts, and retrieval fixes that."
    )


def test_where_only_the_format_is_missing_and_data_suffice_the_fine_tune_is_shipped(tmp_path):
    report = worlds.report(tmp_path, Truth(FORMAT, lost=1, gained=1), FEW)
    assert (report.decision.action, report.decision.candidate) == ("fine-tune", "lora")
    assert "The prompt fails on behaviour (format, style, labels), and fine-tuning fixes that." in (
        report.decision.reasons
    )
    assert verdict(report).outcome == "pass"
    assert "120 training examples: enough for LoRA and the like" in find_reason(
        report.decision, "training ex"
    )


def test_a_fine_tune_that_collapses_elsewhere_is_blocked_whatever_it_gains(tmp_path):
    report = worlds.report(tmp_path, Truth(FORMAT, lost=50), FEW)
    assert (report.decision.action, report.decision.candidate) == ("few-shot", "fixed")
    assert verdict(report).outcome == "fail"
    assert "but fails the gate" in report.decision.sentence
    (judged,) = release.gate(tmp_path / "harness.yaml", "lora")
    assert release.combine_exit_codes([judged]) == 3


def test_too_few_items_leave_it_undecided_and_the_number_named_would_do(tmp_path):
    truth = Truth(FORMAT, lost=5, gained=5)
    few = worlds.report(tmp_path / "few", truth, FEW)
    assert few.decision.action == "undecided"
    assert verdict(few).outcome == "inconclusive"
    needed = verdict(few).items_needed
    assert f"{needed:,} more items would settle it" in few.decision.sentence
    # A disagreement of 10 % and no true loss take (z.95 + z.8)² d / m² = 1,546 items.
    assert 400 + needed == pytest.approx(1546, rel=0.1)
    more = worlds.report(tmp_path / "more", truth, Sizes(general=-(-(400 + needed) // 400) * 100))
    assert (verdict(more).outcome, more.decision.action) == ("pass", "fine-tune")


def test_who_answers_too_few_requests_a_second_is_left_out_before_the_choice(tmp_path):
    # Two shots take the oracle 0.60 s an answer, a prompt 0.30 s, the fine-tune 0.20 s, retrieval 0.90 s.
    truth = Truth(answers(20, 90, 20, 70), lost=1, gained=1)
    anyhow = worlds.report(tmp_path, truth, FEW)
    assert anyhow.decision.candidate == "fixed"
    report = worlds.report_world(tmp_path, truth, ["decide.min_requests_per_s=2"])
    assert (report.decision.action, report.decision.candidate) == ("fine-tune", "lora")
    assert find_reason(report.decision, "Left out before").startswith(
        "Left out before the choice: fixed (it answers 1.67 requests a second, and the budget is 2)"
    )
    by_name = {f.name: f for f in report.facts}
    assert by_name["lora"].vs_untrained.delta == pytest.approx(0.5)  # over the prompt, not over fixed
    assert not by_name["lora"].over_budget
    overrides = ["decide.min_requests_per_s=2", "gate.target.gain=0.02"]
    compared = verdict(worlds.report_world(tmp_path, truth, overrides))
    (judged,) = release.gate(tmp_path / "harness.yaml", "lora", overrides)
    assert (judged.verdict.outcome, judged.verdict.sentence) == (compared.outcome, compared.sentence)
    assert compared.outcome == "pass"
    alone = worlds.report_world(tmp_path, truth, ["decide.min_requests_per_s=4"])
    assert alone.decision.candidate == "lora"
    assert "no untrained candidate keeps the budget" in alone.decision.sentence
    nobody = worlds.report_world(tmp_path, truth, ["decide.min_requests_per_s=10"])
    assert (nobody.decision.action, nobody.decision.candidate) == ("undecided", None)


def test_few_examples_keep_the_prompt_until_three_seeds_show_the_gain(tmp_path):
    truth, few = Truth(FORMAT, lost=1, gained=1), Sizes(train=60, general=100)
    report = worlds.report(tmp_path, truth, few)
    assert (report.decision.action, report.decision.candidate) == ("few-shot", "fixed")
    assert "60 training examples and 1 seed are too few to rely on that" in report.decision.sentence
    session, loaded = worlds.open_world(tmp_path / "harness.yaml", truth, ["seeds=[0, 1, 2]"])
    for seed in (1, 2):
        worlds.write_training(session, session.candidates["lora"], seed)
    report = experiment.run_all(session, loaded)
    assert (report.decision.action, report.decision.candidate) == ("fine-tune", "lora")


def test_a_harness_that_drifted_is_called_so_and_no_candidate_is_blamed(tmp_path):
    truth = Truth(FORMAT, lost=1, gained=1)
    before = worlds.report(tmp_path, truth, FEW, candidates=["prompt"])
    assert verdict(before, "prompt").outcome == "pass"
    # From here on all candidates score ten points less on the general items, the base included.
    report = worlds.continue_world(tmp_path, replace(truth, general=60))
    assert verdict(report).outcome == "harness-drift"
    assert verdict(report).macro.score < -0.08  # otherwise reported as forgetting
    assert (report.decision.action, report.decision.candidate) == ("undecided", None)
    assert "the harness drifted while" in report.decision.sentence
    assert exit_code(report, GatePolicy(on_inconclusive="pass"), by_verdict=True) == 4
    judged = release.gate(tmp_path / "harness.yaml", "lora", ["gate.on_inconclusive=pass"])
    assert judged[0].verdict == verdict(report)
    assert release.combine_exit_codes(judged) == 4


# The learning curve


def test_the_curve_of_a_fine_tune_is_measured_on_nested_parts_and_looks_ahead(tmp_path):
    # The error is 0.05 + 3 / √n, to whole percents: .82, .60, .44, .32 at 15, 30, 60 and 120 rows.
    truth = Truth(answers(20, 25, 20, 68), lost=1, gained=1, tuned_at={15: 18, 30: 40, 60: 56})
    report = worlds.report(tmp_path, truth, Sizes(test=1000, general=100), learning_curve=True)
    curve = report.curve
    assert [p.n_train for p in curve.points] == [15, 30, 60, 120]
    assert [round(p.score.score, 2) for p in curve.points] == [0.18, 0.40, 0.56, 0.68]
    assert [a.n_train for a in curve.ahead] == [240, 480]
    for ahead, true in zip(curve.ahead, (0.08, 0.137), strict=True):
        assert ahead.gain.low < true < ahead.gain.high
        assert ahead.gain.score == pytest.approx(true, abs=0.03)
    assert "18.0 with 15, 40.0 with 30, 56.0 with 60, 68.0 with 120" in find_reason(
        report.decision, "Learning curve of lora"
    )
    assert find_reason(report.decision, "Next best spend: 120 more training rows.")
    # The items already show a gain of 43 points: more items are worth nothing, 8 more points are.
    assert report.decision.arithmetic["more_training_rows_bring_points"] == pytest.approx(8, abs=3)
    dear = worlds.report_world(tmp_path, truth, ["decide.label_cost_usd=5000"])
    assert dear.curve == curve, "the stored curve is found again"
    assert find_reason(dear.decision, "Next best spend: none, choose now.")
    assert "## Learning curve: lora" in markdown(experiment_document(report))


def test_more_data_are_advised_only_where_the_gain_ahead_is_worth_the_labels(tmp_path):
    truth = Truth(answers(20, 60, 20, 60), lost=1, gained=1, tuned_at={15: 8, 30: 28, 60: 46})
    cheap = ["decide.label_cost_usd=0.1"]
    report = worlds.report(
        tmp_path, truth, Sizes(test=400, general=100), overrides=cheap, learning_curve=True
    )
    assert (report.decision.action, report.decision.candidate) == ("collect more data", None)
    assert "with 240 training rows it would gain about" in report.decision.sentence
    dear = ["decide.label_cost_usd=5", "decide.requests_per_month=10"]
    assert worlds.report_world(tmp_path, truth, dear).decision.action == "few-shot"


def test_a_curve_of_too_few_rows_or_without_a_fine_tune_is_refused_before_anything_runs(tmp_path):
    truth = Truth(FORMAT)
    with pytest.raises(UserError, match="40 training rows; expected at least 64"):
        worlds.report(tmp_path / "few", truth, Sizes(train=40), learning_curve=True)
    session, _ = worlds.open_world(worlds.write(tmp_path / "none", truth, Sizes()), truth)
    with pytest.raises(UserError, match="no fine-tune among the candidates"):
        plan_curve(session, ["prompt", "rag"])


@pytest.fixture(scope="module")
def judged_world(rule_cache, tmp_path_factory):
    """A rescued fine-tune with people's labels, a failed answer, lost items in fp32 and a champion."""
    return stored.judged_world(tmp_path_factory.mktemp("one"))


def rules_of(verdict):
    return {rule.name: (rule.outcome, rule.sentence, rule.numbers) for rule in verdict.rules}


def find_facts(document, run):
    return next(f for f in document.facts if f.run_id == run.run_id)


def ask(world, run, route):
    if route == "compare":
        return find_facts(experiment.run_all(world.session, world.loaded), run).verdict
    if route == "report":
        return find_facts(experiment.report_stored(world.session, world.loaded.selected), run).verdict
    if route == "two selected":
        return find_facts(experiment.report_stored(world.session, ["prompt", "lora"]), run).verdict
    if route == "python":
        return harness.gate(world.path, candidate=run.run_id, baseline="base")
    (judged,) = release.gate(world.path, run.run_id, baseline="base")
    return judged.verdict


def test_every_way_of_asking_for_the_verdict_on_a_run_gives_the_same(judged_world):
    world, runs = judged_world
    judged = ask(world, runs["lora"], "gate")
    for route in ("compare", "report", "two selected", "python"):
        by_route = ask(world, runs["lora"], route)
        assert rules_of(by_route) == rules_of(judged), route
        assert by_route == judged, route


@pytest.mark.parametrize(
    "policy",
    [
        {
            "gate.critical": ["sums"], "gate.macro": "10%", "decide.max_latency_s": 0.4,
            "gate.uncalibrated_judge": "allow", "gate.max_errors": 0.0, "seeds": [0],
        },
    ],
)  # fmt: skip
def test_every_policy_is_judged_alike_by_a_report_and_the_gate(judged_world, policy):
    world, runs = judged_world
    overrides = [f"{key}={json.dumps(value)}" for key, value in policy.items()]
    facts = find_facts(rescue_worlds.open_world(world.path, stored.JUDGED, overrides).report, runs["lora"])
    (judged,) = release.gate(world.path, "lora", overrides, baseline="base")
    assert rules_of(facts.verdict) == rules_of(judged.verdict)


def test_what_people_and_fp32_said_and_the_first_base_are_in_the_verdict(judged_world):
    world, runs = judged_world
    rules = rules_of(ask(world, runs["lora"], "compare"))
    assert rules["regressions"][0] == "fail"
    assert rules["regressions"][2]["n_lost"] == 9
    assert rules["target"][0] == "inconclusive"  # 88 % by the judge alone
    assert rules["target"][2]["score"] == pytest.approx(0.71, abs=0.03)
    assert rules["cumulative"][2]["first_base"] == stored.FIRST_BASE


def test_tables_of_two_runs_correct_grades_as_a_gain_is_corrected(judged_world):
    """For all fine-tunes people refuse the same fifth: by grades alone an adapter equals another one."""
    world, runs = judged_world
    document = experiment.report_stored(world.session, world.loaded.selected)
    (grid,) = document.ablations
    target, at = world.session.target, world.session.store
    labels = judge_labels(at, target.task, target.primary.name)
    rows = {name: store.read_rows(at, runs[name].rows["desk/test"]) for name in runs}
    pair = (rows[factor.candidate] for factor in grid.factors)
    corrected = compare_on_target(target.primary, *pair, labels, 0.01)
    assert corrected.estimator == "ppi"
    assert grid.factors[1].difference[:3] == (corrected.delta, corrected.low, corrected.high)
    (step,) = document.steps["again"]
    assert step.target == compare_on_target(target.primary, rows["lora"], rows["again"], labels, 0.01)
    facts = find_facts(document, runs["lora"])
    assert facts.slices["behaviour"][:3] == facts.target[:3] == pytest.approx((0.71, 0.64, 0.78), abs=0.02)
    first, second = (runs[name].run_id for name in ("knn", "lora"))
    score = release.differences(at, first, second).scores["desk/test"]["judge_right"]
    assert (score.difference, score.why_not.partition(";")[0]) == (None, "by the judge alone")
    _, champion = release.promote_named(world.path, "lora", despite="a test")
    assert champion.scores["desk judge_right"][0] == pytest.approx(facts.target.score, abs=1e-6)


def test_a_rescue_confirms_by_the_rules_of_the_gate(judged_world):
    """Rules that hold for half of the items are equal; the macro and counts of items are of the half."""
    world, runs = judged_world
    gate = rules_of(ask(world, runs["trial"], "gate"))
    confirmed = world.rescue().tried[-1].confirm
    rules = rules_of(confirmed.verdict)
    assert list(rules) == list(gate)
    same = ("regressions", "target", "mode collapse", "drift", "control")
    assert {name: rules[name] for name in same} == {name: gate[name] for name in same}
    assert confirmed.verdict.outcome == "inconclusive"
    assert "+37.5" in rules["target"][1]


def test_a_night_compares_judged_answers_as_a_gain_is(judged_world):
    world, runs = judged_world
    facts = find_facts(world.report, runs["lora"])
    at, target = world.session.store, world.session.target
    rows = [store.read_rows(at, runs[name].rows["desk/test"]) for name in ("lora", "knn")]
    labels = judge_labels(at, target.task, target.primary.name)
    night = compare_judged_answers(target.primary, *rows, labels, world.session.experiment.gate.max_errors)
    gain = facts.vs_untrained
    assert night.corrected == (gain.delta, gain.low, gain.high)


def test_a_rescue_shows_no_gain_by_a_judge_before_people_have_labelled_the_trial(judged_world, tmp_path):
    folder = tmp_path / "unlabelled"
    shutil.copytree(judged_world[0].path.parent, folder)
    (folder / "runs" / "labels" / "people.json").unlink()
    lenient = ["gate={}"]  # nothing is declared of the target, so no rule of the gate waits for labels
    again = rescue_worlds.open_world(folder / "harness.yaml", stored.JUDGED, lenient)
    rescued = again.rescue()
    confirmed = rescued.tried[-1].confirm
    assert (confirmed.verdict.outcome, confirmed.gains, confirmed.passes) == ("pass", True, False)
    assert "no gain before 100 more labels of people" in confirmed.sentence
    assert harness.experiment.rescue_trials.exit_code(rescued, again.session.experiment.gate) == 4
