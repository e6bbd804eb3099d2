"""The gate: its three verdicts, each rule, admission, and its stated chances of error."""

from dataclasses import replace
from math import inf

import numpy as np
import pytest

from harness import formatting
from harness.analysis import gate_verdict
from harness.analysis.admission import Measurement, admit
from harness.analysis.comparison import compare_rows, compare_validity
from harness.analysis.estimators import Estimate
from harness.analysis.gate_rules_on_answers import export_rule
from harness.analysis.gate_verdict import apply_rules, exit_code
from harness.analysis.significance import power_warnings
from harness.analysis.verdict import TargetFacts, TaskComparison
from harness.formatting import RATE, Unit
from harness.metrics import mean_metric
from harness.spec import GatePolicy, Suite, TargetPolicy, Task
from tests.fake_rows import EXACT, LOWER, flips, ratio_metric, rows

POLICY = GatePolicy()


def task(name, **fields):
    return Task(name=name, data={}, **fields)


def compare_task(name, n, gains, losses, *, role="capability", admitted=True, suite="", **fields):
    base, new = flips(n, gains, losses)
    comparison = compare_rows(EXACT, rows(base, task=name), rows(new, task=name))
    return TaskComparison(task(name, **fields), role, comparison, admitted, "at chance", suite)


def suite_of(n_tasks, n, gains, losses):
    return [compare_task(f"task{i}", n, gains, losses) for i in range(n_tasks)]


EQUAL = suite_of(8, 500, 25, 25)
HOLDS = suite_of(11, 1000, 45, 40)


def verdict(tasks, policy=POLICY, *, validity=None, target=None, identical=False, **options):
    return apply_rules(tasks, policy, validity=validity, target=target, identical=identical, **options)


def rule(result, name):
    return next(r for r in result.rules if r.name == name)


def compare_invalid(n, n_base, n_new):
    def arm(n_invalid):
        return rows([1.0] * n, status=["unparsable"] * n_invalid + ["ok"] * (n - n_invalid))

    return compare_validity(arm(n_base), arm(n_new))


def test_the_macro_passes_an_equal_model_and_fails_a_collapsed_one_or_a_small_loss_on_every_task():
    result = verdict(EQUAL)
    assert result.outcome == "pass"
    assert result.macro.score == 0
    assert -0.02 < result.macro.low < 0 < result.macro.high
    assert (result.lost, result.gained) == (200, 200)

    chat = compare_task("chat", 150, 0, 120)
    result = verdict([*suite_of(7, 300, 15, 15), chat])
    assert result.outcome == "fail"
    assert rule(result, "each").numbers["vetoed"] == ["chat"]
    assert "chat/item-0000" in rule(result, "each").numbers["lost_items"]
    assert "chat fell 80.0 points [" in result.sentence

    result = verdict(suite_of(8, 500, 10, 32))
    assert (rule(result, "macro").outcome, rule(result, "each").outcome) == ("fail", "pass")
    assert result.sentence.startswith("FAIL: macro over 8 tasks: −4.4 [−5.")
    assert "margin 2.0 pp" in result.sentence


def test_the_items_needed_are_those_that_would_settle_it_if_any():
    # Four times 60 items per task with the same share of flips: the advice must have that order.
    result = verdict(suite_of(3, 60, 3, 3))
    n_needed = 60 + result.items_needed // 3
    n_flipped = round(0.05 * n_needed)
    assert verdict(suite_of(3, n_needed, n_flipped, n_flipped)).outcome == "pass"

    result = verdict(suite_of(3, 60, 3, 4))
    assert "the loss looks as large as the margin" in result.sentence
    assert "if nothing is lost, some" in result.sentence
    assert 180 < result.items_needed < 180 * 100
    result = verdict(suite_of(8, 500, 20, 30))
    assert (result.outcome, result.items_needed) == ("inconclusive", None)

    result = verdict(suite_of(1, 10, 0, 0))
    assert result.outcome == "inconclusive"
    assert result.items_needed > 1000
    assert "more items would probably settle it if nothing is lost" in result.sentence
    assert "as large as the margin" not in result.sentence


def test_a_task_is_vetoed_where_more_than_its_margin_is_shown_to_be_lost():
    result = verdict([*HOLDS, compare_task("facts", 300, 5, 50)])
    assert (rule(result, "macro").outcome, rule(result, "each").outcome) == ("pass", "fail")
    assert result.outcome == "fail"
    assert rule(result, "each").numbers["vetoed"] == ["facts"]
    tolerant_task = compare_task("facts", 300, 5, 50, margin=0.2)
    result = verdict([*HOLDS, tolerant_task])
    assert rule(result, "each").outcome == "pass"
    # A loss of 12 of 80 has p = .04 against the 5 pp margin of a single task.
    doubtful_task = compare_task("doubtful", 80, 2, 10)
    p_alone = rule(verdict([doubtful_task]), "each").numbers["p_smallest"]
    p_of_four = rule(verdict([doubtful_task, *suite_of(3, 300, 15, 15)]), "each").numbers["p_smallest"]
    assert p_of_four == pytest.approx(4 * p_alone)

    result = verdict([*HOLDS, compare_task("facts", 300, 5, 25)])
    assert (rule(result, "each").outcome, result.outcome) == ("inconclusive", "inconclusive")
    assert rule(result, "each").numbers["doubtful"] == ["facts"]
    line = result.sentence
    assert "whether more than the margin was lost is open: facts fell 6.7 points [3, 11], 5.0 allowed" in line
    result = verdict([*HOLDS, compare_task("facts", 300, 2, 15)])
    assert result.outcome == "pass"


def test_tasks_that_cannot_show_forgetting_stay_out_of_the_macro_and_without_others_nothing_passes():
    riddles = compare_task("riddles", 300, 0, 90, admitted=False)
    result = verdict([*EQUAL, riddles])
    assert result.outcome == "pass"
    assert "left out, cannot show forgetting: riddles" in rule(result, "macro").sentence
    assert rule(result, "macro").numbers["left_out"] == ["riddles: at chance"]

    result = verdict([*EQUAL, text(3.0)])
    assert (result.outcome, rule(result, "macro").numbers["n_tasks"]) == ("pass", 8)

    result = verdict(
        [compare_task("riddles", 300, 0, 0, admitted=False), compare_task("goal", 300, 9, 0, role="target")]
    )
    assert (result.outcome, result.macro, result.missed) == ("inconclusive", None, ())
    assert "no admitted capability task was measured" in result.sentence


def test_equal_weights_pass_by_identity():
    result = verdict(suite_of(2, 20, 0, 0), GatePolicy(critical=("absent",)), identical=True)
    assert (result.outcome, result.missed, result.items_needed) == ("pass", (), None)
    assert result.macro == Estimate(0, 0, 0, 40)
    assert "identity" in result.sentence


@pytest.mark.parametrize(
    ("role", "n", "gained", "lost", "outcome"),
    [
        *(("critical", 200, 0, 2, "pass"), ("critical", 200, 0, 25, "fail")),
        ("critical", 200, 0, 15, "inconclusive"),
        # With 100 items, a loss of 20 is surely beyond 5 points; a loss of 8 may or may not be.
        *(("safety", 100, 0, 20, "fail"), ("safety", 100, 30, 42, "pass")),
        *(("safety", 100, 0, 8, "inconclusive"), ("safety", 100, 0, 0, "pass")),
    ],
)
def test_critical_and_safety_tasks_are_judged_by_the_bounds_of_their_loss(role, n, gained, lost, outcome):
    safety_task = compare_task("refuses", n, gained, lost, role="safety")
    result = verdict([*EQUAL, safety_task], GatePolicy(critical=("refuses",) if role == "critical" else ()))
    assert rule(result, role).outcome == result.outcome == outcome


def test_a_critical_task_or_suite_has_to_be_measured_and_gains_make_up_for_nothing():
    safety_task = compare_task("refuses", 200, 0, 60, role="safety", suite="safety")
    result = verdict([*EQUAL, safety_task], GatePolicy(critical=("safety",)))
    assert "refuses: 60 of 200 items that the base passed are lost" in result.sentence

    safety_task = compare_task("refuses", 300, 100, 40, role="safety")
    result = verdict([*EQUAL, safety_task], GatePolicy(critical=("refuses",)))
    assert rule(result, "critical").numbers["refuses_passed"] == 200
    assert result.outcome == "fail"
    result = verdict(EQUAL, GatePolicy(critical=("refuses",)))
    assert result.outcome == "inconclusive"
    assert "refuses was not measured" in result.sentence


@pytest.mark.parametrize(
    ("n", "n_new", "outcome"), [(600, 3, "pass"), (600, 60, "fail"), (600, 12, "inconclusive")]
)
def test_a_rise_of_invalid_answers_is_judged_on_its_own(n, n_new, outcome):
    result = verdict(EQUAL, validity=compare_invalid(n, 0, n_new))
    assert rule(result, "validity").outcome == result.outcome == outcome


WER = Unit(1.0, "wer", higher_is_better=False)


@pytest.mark.parametrize(
    ("least", "unit", "ends", "outcome"),
    [
        *((0.8, RATE, (0.81, 0.9), "pass"), (0.8, RATE, (0.7, 0.79), "fail")),
        *((0.8, RATE, (0.75, 0.9), "inconclusive"), (0.2, WER, (0.1, 0.19), "pass")),
        *((0.2, WER, (0.21, 0.3), "fail"), (0.2, WER, (0.1, 0.3), "inconclusive")),
    ],
)
def test_a_declared_level_is_judged_by_its_interval(least, unit, ends, outcome):
    target = TargetFacts(Estimate(sum(ends) / 2, *ends, 300, unit), None)
    result = verdict(EQUAL, GatePolicy(target=TargetPolicy(min=least)), target=target)
    assert result.outcome == outcome
    assert ("] against at most 0.200: " in rule(result, "target").sentence) == (unit is WER)


@pytest.mark.parametrize(("gains", "outcome"), [(60, "pass"), (3, "fail"), (20, "inconclusive")])
def test_a_declared_gain_is_judged_by_its_interval(gains, outcome):
    comparison = compare_rows(EXACT, *(rows(arm) for arm in flips(300, gains, 2)))
    target = TargetFacts(Estimate(0.9, 0.87, 0.93, 300), comparison)
    result = verdict(EQUAL, GatePolicy(target=TargetPolicy(gain=0.05)), target=target)
    assert result.outcome == outcome


def test_a_metric_where_lower_is_better_loses_by_rising():
    base, new = flips(500, 0, 100)
    comparison = compare_rows(LOWER, rows(1 - base, LOWER), rows(1 - new, LOWER))
    assert comparison.delta > 0
    result = verdict([TaskComparison(task("t", metrics=("loss",)), "capability", comparison, True, "")])
    assert (result.outcome, result.macro.score) == ("fail", pytest.approx(-0.2))


def missed(result, delta, description):
    return next(m.probability for m in result.missed if m.delta == delta and m.what.startswith(description))


def test_the_chance_not_to_pass_an_equal_model_is_near_the_simulated_one():
    """8 tasks of 100 items at 10 % disagreement pass an equal model 50 % of the time when simulated."""
    assert missed(verdict(suite_of(8, 100, 5, 5)), 0.0, "equal") == pytest.approx(0.5, abs=0.02)


def test_a_pass_exits_with_0_a_fail_with_3_and_an_inconclusive_verdict_by_the_policy():
    assert exit_code(verdict(EQUAL), POLICY) == 0
    assert exit_code(verdict(suite_of(8, 500, 0, 100)), GatePolicy(on_inconclusive="pass")) == 3
    policies = [GatePolicy(on_inconclusive=action) for action in ("fail", "warn", "pass")]
    assert [exit_code(verdict(suite_of(1, 10, 0, 0), policy), policy) for policy in policies] == [4, 0, 0]


def test_comparisons_made_at_another_level_are_refused():
    with pytest.raises(ValueError, match=r"alpha \[0.05\], the policy's is 0.01"):
        verdict(suite_of(1, 50, 1, 1), GatePolicy(alpha=0.01))


@pytest.mark.parametrize(("passed", "admitted"), [(90, True), (30, False), (10, False)])
def test_a_task_is_admitted_where_the_base_is_above_chance(passed, admitted):
    scores = [1.0] * passed + [0.0] * (100 - passed)
    is_admitted, reason = admit(task("quiz", chance=0.25), EXACT, rows(scores))
    assert is_admitted is admitted
    assert f"the base scores {passed}.0 [" in reason
    assert "chance (25.0 %), n = 100" in reason


@pytest.mark.parametrize("n", [3, 300])
def test_a_base_that_passed_nothing_has_nothing_to_lose(n):
    """Rounding sets the lower end of Wilson's interval to 1e-18 for some n, which is not above chance 0."""
    is_admitted, reason = admit(task("sums"), EXACT, rows([0.0] * n))
    assert not is_admitted
    assert "not above chance (0.0 %)" in reason


def test_what_the_items_cannot_show_is_announced_with_what_they_need():
    suites = [Suite(name="general", role="capability", tasks=(task("a"), task("b")))]
    warnings = power_warnings(suites, {"a": 60, "b": 60}, POLICY)
    assert len(warnings) == 3
    assert warnings[0].startswith(
        "macro margin 2.0 points: with 120 items over 2 tasks a fine-tune that lost nothing passes only"
    )
    assert warnings[1].startswith("a, margin 5.0 points: with 60 items a real loss of 10.0 points is noticed")

    suites = [
        Suite(name="general", role="capability", tasks=tuple(task(f"t{i}") for i in range(8))),
        Suite(name="safety", role="safety", tasks=(task("refuses"),)),
    ]
    n_items = {f"t{i}": 1000 for i in range(8)} | {"refuses": 20}
    (warning,) = power_warnings(suites, n_items, GatePolicy(critical=("safety",)))
    assert warning.startswith(
        "refuses, critical margin 5.0 %: 20 items are too few for anything to pass, even without"
    )
    assert "29 items" in warning
    assert "cannot pass" in power_warnings([], {}, POLICY)[0]
    suites = [Suite(name="general", role="capability", tasks=(task("a"),))]
    (warning,) = power_warnings(suites, {"a": 3000}, GatePolicy(macro="10%", each=0.05))
    assert warning.startswith("macro margin 10.0 % of the base's skill")


def judge_relative(macro, tasks, **fields):
    return verdict(tasks, GatePolicy(macro=macro, **fields))


def test_a_relative_margin_is_a_share_of_the_bases_skill():
    # The base of `flips` fails only the gained items: without gains its skill above chance 0 is 1.
    tasks = suite_of(8, 500, 0, 5)
    absolute, share = judge_relative(0.02, tasks), judge_relative("2%", tasks)
    assert [rule(result, "macro").outcome for result in (absolute, share)] == ["pass", "pass"]
    assert rule(share, "macro").numbers["lower"] == pytest.approx(rule(absolute, "macro").numbers["lower"])
    assert [m.probability for m in share.missed] == pytest.approx([m.probability for m in absolute.missed])

    weak_tasks = [t._replace(floor=0.9) for t in suite_of(8, 500, 10, 15)]
    assert rule(judge_relative(0.05, weak_tasks), "macro").outcome == "pass"
    assert rule(judge_relative("5%", weak_tasks), "macro").outcome == "fail"
    assert "% of the base's skill" in rule(judge_relative("5%", weak_tasks), "macro").sentence

    tolerant_task = compare_task("facts", 300, 5, 50, margin="50%")
    assert rule(verdict([*HOLDS, tolerant_task]), "each").outcome == "pass"
    strict_task = compare_task("facts", 300, 5, 50, margin="5%")
    assert rule(verdict([*HOLDS, strict_task]), "each").outcome == "fail"


# Pinned items


def judge_export(full, losses, highest=None):
    metric = mean_metric("points", lambda output, example: None, bounds=(0.0, highest or full))
    base, new = (full * scores for scores in flips(400, 10, losses))
    difference = compare_rows(metric, rows(base, metric), rows(new, metric))
    return export_rule(difference, "own", task("desk"), GatePolicy(export=0.05), metric.range)


def test_an_export_is_judged_by_shares_of_the_range_of_the_targets_metric():
    for losses, outcome in ((10, "pass"), (60, "fail"), (25, "inconclusive")):
        as_share, of_hundred = judge_export(1.0, losses), judge_export(100.0, losses)
        assert as_share.outcome == of_hundred.outcome == outcome
        assert as_share.numbers["delta"] == pytest.approx(of_hundred.numbers["delta"])
    assert "fell 12.5 points of its range [" in judge_export(100.0, 60).sentence
    open_rule = judge_export(100.0, 60, inf)
    assert (open_rule.outcome, "declare bounds: of the task" in open_rule.sentence) == ("inconclusive", True)


def make_pinned_suite(lost, **fields):
    return [*EQUAL, compare_task("facts-pinned", 6, 0, lost, role="regression", **fields)]


def test_pinned_items_stay_out_of_the_macro_and_one_lost_is_open_until_fp32_confirms_it():
    result = verdict(make_pinned_suite(0))
    assert (rule(result, "regressions").outcome, rule(result, "macro").numbers["n_tasks"]) == ("pass", 8)
    assert rule(result, "macro").numbers["left_out"] == []
    open_verdict = verdict(make_pinned_suite(1))
    assert open_verdict.outcome == "inconclusive"
    assert "fp32 has not confirmed" in rule(open_verdict, "regressions").sentence


@pytest.mark.parametrize(("in_fp32", "outcome"), [(("item-0000",), "fail"), ((), "pass")])
def test_a_pinned_item_lost_in_fp32_fails_and_one_lost_by_rounding_does_not(in_fp32, outcome):
    result = verdict(make_pinned_suite(1), confirmed={"facts-pinned": in_fp32})
    assert rule(result, "regressions").outcome == result.outcome == outcome


def points(n, change, bounds):
    """Make a graded task with scores from 40 to 60 and a slightly varying change of each."""
    metric = mean_metric("points", lambda output, example: None, bounds=bounds)
    rng = np.random.default_rng(0)
    base = rng.uniform(40, 60, n)
    arms = (rows(arm, metric, task="chat") for arm in (base, base + change + rng.normal(0, 0.1, n)))
    return Measurement(task("chat", metrics=("points",)), "capability", "", {"points": metric}, *arms)


def make_measurement(n, losses):
    arms = (rows(arm, task="facts") for arm in flips(n, 0, losses))
    return Measurement(task("facts"), "capability", "", {EXACT.name: EXACT}, *arms)


def judge_measurements(*measurements, policy=POLICY):
    return gate_verdict.judge(measurements, policy, target=None, identical=False).verdict


def test_a_graded_task_counts_by_its_share_of_the_range_or_not_at_all():
    result = judge_measurements(points(500, 0.5, (0, 100)), make_measurement(2000, 160))
    assert result.outcome == "fail"
    assert result.macro.score == pytest.approx((0.005 - 0.08) / 2, abs=1e-3)
    loss_verdict = judge_measurements(points(500, -0.5, (0, 100)))
    assert loss_verdict.outcome == "pass"
    assert "chat −0.5 [−0.5, −0.5] pp of its range" in rule(loss_verdict, "each").sentence

    measured = points(500, -8, (0, 100)), make_measurement(2000, 0)
    assert rule(judge_measurements(*measured), "each").numbers["vetoed"] == ["chat"]
    policy = POLICY.model_copy(update={"each": "20%"})  # of the base's 50 of 100: 10 points
    assert rule(judge_measurements(*measured, policy=policy), "each").outcome == "pass"

    result = judge_measurements(points(500, 5.0, (-inf, inf)), make_measurement(2000, 160))
    assert result.macro.score == pytest.approx(-0.08)
    (reason,) = rule(result, "macro").numbers["left_out"]
    assert "points has no bounds, so its changes are not points; declare bounds: of the task" in reason


@pytest.mark.parametrize(("chance", "is_admitted"), [(0.0, False), (-10.0, True), (-8.0, True)])
def test_chance_is_in_the_unit_of_the_metric(chance, is_admitted):
    metric = mean_metric("reward", lambda output, example: None, bounds=(-10.0, 10.0))
    base = rows(np.linspace(-3.0, -1.0, 50), metric)
    admitted, why = admit(task("t", metrics=("reward",), chance=chance), metric, base)
    assert admitted is is_admitted
    assert f"above chance ({formatting.plain(chance)}), n = 50" in why


SCALES = [(0.0, 1.0), (0.0, 100.0), (1.0, 4.0), (101.0, 100.0)]  # lowest value and range


def judge_on_scale(lowest, span, skill, policy):
    metric = mean_metric("points", lambda output, example: None, bounds=(lowest, lowest + span))
    rng = np.random.default_rng(1)
    base = skill * rng.uniform(0.2, 1.0, 300)
    arms = [lowest + span * arm for arm in (base, np.clip(base - rng.normal(0.02, 0.05, 300), 0, 1))]
    base_rows, new_rows = (rows(arm, metric, task="chat") for arm in arms)
    chat = task("chat", metrics=("points",))
    measured = Measurement(chat, "capability", "", {"points": metric}, base_rows, new_rows)
    gain = compare_rows(metric, base_rows, new_rows)
    score = Estimate(*(lowest + span * x for x in (0.6, 0.55, 0.65)), 300, metric.unit)
    facts = TargetFacts(score, gain)
    return gate_verdict.judge([measured], policy, target=facts, identical=False).verdict


@pytest.mark.parametrize("skill", [0.0, 1.0])
@pytest.mark.parametrize("margin", [0.03, "6%", "3%"])
@pytest.mark.parametrize("gain", [0.1, None])
def test_a_verdict_does_not_depend_on_the_zero_point_or_the_unit_of_a_metric(skill, margin, gain):
    policy = GatePolicy(macro=margin, each=margin, target=TargetPolicy(min=0.5, gain=gain))
    expected, *others = (judge_on_scale(*scale, skill, policy) for scale in SCALES)
    for result in others:
        assert [(r.name, r.outcome) for r in result.rules] == [(r.name, r.outcome) for r in expected.rules]
        assert (result.macro is None) == (expected.macro is None) == (skill == 0)
        of_target, p = (rule(v, "target").numbers.get("p", 1.0) for v in (result, expected))
        assert of_target == pytest.approx(p)
        if result.macro:
            assert result.macro[:3] == pytest.approx(expected.macro[:3])
            assert (result.lost, result.gained) == (expected.lost, expected.gained)


def text(factor):
    metric = ratio_metric()
    base = np.stack([np.random.default_rng(0).gamma(50, 1, 80), np.full(80, 50.0)], axis=1)
    comparison = compare_rows(metric, rows(base, metric), rows(base * [factor, 1], metric))
    return TaskComparison(task("english", kind="bits_per_byte"), "capability", comparison, False, "reported")


def test_drift_is_judged_where_asked_and_passes_only_where_every_text_is_below_the_limit():
    tasks = [*EQUAL, text(1.2)]
    assert rule(verdict(tasks), "drift").outcome == "skipped"
    assert "drift: english +0.1975 [" in rule(verdict(tasks), "drift").sentence
    assert verdict(tasks, GatePolicy(drift=0.1)).outcome == "fail"
    assert verdict(tasks, GatePolicy(drift=0.5)).outcome == "pass"

    sure_task = text(1.05)
    ends = {"low": -0.3, "high": 0.32, "lower": -0.25, "upper": 0.27}
    unsure = replace(sure_task.comparison, delta=0.01, se=0.16, **ends)
    open_task = sure_task._replace(task=task("french", kind="bits_per_byte"), comparison=unsure)
    policy = GatePolicy(drift=0.1)
    assert rule(verdict([*EQUAL, sure_task], policy), "drift").outcome == "pass"
    open_rule = rule(verdict([*EQUAL, sure_task, open_task], policy), "drift")
    assert open_rule.outcome == "inconclusive"
    assert "french" in open_rule.sentence
    lost_rule = rule(verdict([*EQUAL, open_task, text(1.2)], policy), "drift")
    assert lost_rule.outcome == "fail"
    assert "english" in lost_rule.sentence
