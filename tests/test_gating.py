"""The gate: three verdicts, each rule, admission, and what it says of its own chances."""

from dataclasses import replace
from math import inf

import numpy as np
import pytest

from harness.analysis import gating
from harness.analysis.admission import Measurement, admit
from harness.analysis.comparison import compare_rows, compare_validity
from harness.analysis.estimators import Estimate
from harness.analysis.gate_rules import apply_rules
from harness.analysis.gating import exit_code
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
    c = compare_rows(EXACT, rows(base, task=name), rows(new, task=name))
    return TaskComparison(task(name, **fields), role, c, admitted, "at chance", suite)


def suite_of(n_tasks, n, gains, losses):
    return [compare_task(f"task{i}", n, gains, losses) for i in range(n_tasks)]


EQUAL = suite_of(8, 500, 25, 25)
HOLDS = suite_of(11, 1000, 45, 40)


def verdict(tasks, policy=POLICY, *, validity=None, target=None, identical=False, **given):
    return apply_rules(tasks, policy, validity=validity, target=target, identical=identical, **given)


def rule(found, name):
    return next(r for r in found.rules if r.name == name)


def compare_invalid(n, n_base, n_new):
    def arm(k):
        return rows([1.0] * n, status=["unparsable"] * k + ["ok"] * (n - k))

    return compare_validity(arm(n_base), arm(n_new))


def test_the_macro_passes_an_equal_model_and_fails_a_collapsed_one_or_a_small_loss_on_every_task():
    found = verdict(EQUAL)
    assert found.outcome == "pass"
    assert found.macro.score == 0
    assert -0.02 < found.macro.low < 0 < found.macro.high
    assert (found.lost, found.gained) == (200, 200)

    chat = compare_task("chat", 150, 0, 120)
    found = verdict([*suite_of(7, 300, 15, 15), chat])
    assert found.outcome == "fail"
    assert rule(found, "each").numbers["vetoed"] == ["chat"]
    assert "chat/item-0000" in rule(found, "each").numbers["lost_items"]
    assert "chat fell 80.0 points [" in found.sentence

    found = verdict(suite_of(8, 500, 10, 32))
    assert (rule(found, "macro").outcome, rule(found, "each").outcome) == ("fail", "pass")
    assert found.sentence.startswith("FAIL: macro over 8 tasks: −4.4 [−5.")
    assert "margin 2.0 pp" in found.sentence


def test_the_items_needed_are_those_that_would_settle_it_if_any():
    # Four times 60 items a task at the same flips' share: the advice must be of that order.
    found = verdict(suite_of(3, 60, 3, 3))
    n = 60 + found.items_needed // 3
    flipped = round(0.05 * n)
    assert verdict(suite_of(3, n, flipped, flipped)).outcome == "pass"

    found = verdict(suite_of(3, 60, 3, 4))
    assert "the loss looks as large as the margin" in found.sentence
    assert "if nothing is lost, some" in found.sentence
    assert 180 < found.items_needed < 180 * 100
    found = verdict(suite_of(8, 500, 20, 30))
    assert (found.outcome, found.items_needed) == ("inconclusive", None)

    found = verdict(suite_of(1, 10, 0, 0))
    assert found.outcome == "inconclusive"
    assert found.items_needed > 1000
    assert "more items would probably settle it if nothing is lost" in found.sentence
    assert "as large as the margin" not in found.sentence


def test_a_task_is_vetoed_where_more_than_its_margin_is_shown_to_be_lost():
    found = verdict([*HOLDS, compare_task("facts", 300, 5, 50)])
    assert (rule(found, "macro").outcome, rule(found, "each").outcome) == ("pass", "fail")
    assert found.outcome == "fail"
    assert rule(found, "each").numbers["vetoed"] == ["facts"]
    tolerant = compare_task("facts", 300, 5, 50, margin=0.2)
    found = verdict([*HOLDS, tolerant])
    assert rule(found, "each").outcome == "pass"
    # 12 of 80 lost has p = .04 against the margin of 5 pp of a single task.
    doubtful = compare_task("doubtful", 80, 2, 10)
    alone = rule(verdict([doubtful]), "each").numbers["p_smallest"]
    among = rule(verdict([doubtful, *suite_of(3, 300, 15, 15)]), "each").numbers["p_smallest"]
    assert among == pytest.approx(4 * alone)

    found = verdict([*HOLDS, compare_task("facts", 300, 5, 25)])
    assert (rule(found, "each").outcome, found.outcome) == ("inconclusive", "inconclusive")
    assert rule(found, "each").numbers["doubtful"] == ["facts"]
    said = found.sentence
    assert "whether more than the margin was lost is open: facts fell 6.7 points [3, 11], 5.0 allowed" in said
    found = verdict([*HOLDS, compare_task("facts", 300, 2, 15)])
    assert found.outcome == "pass"


def test_tasks_that_cannot_show_forgetting_stay_out_of_the_macro_and_without_others_nothing_passes():
    lost = compare_task("riddles", 300, 0, 90, admitted=False)
    found = verdict([*EQUAL, lost])
    assert found.outcome == "pass"
    assert "left out, cannot show forgetting: riddles" in rule(found, "macro").sentence
    assert rule(found, "macro").numbers["left_out"] == ["riddles: at chance"]

    found = verdict([*EQUAL, text(3.0)])
    assert (found.outcome, rule(found, "macro").numbers["n_tasks"]) == ("pass", 8)

    found = verdict(
        [compare_task("riddles", 300, 0, 0, admitted=False), compare_task("goal", 300, 9, 0, role="target")]
    )
    assert (found.outcome, found.macro, found.missed) == ("inconclusive", None, ())
    assert "no admitted capability task was measured" in found.sentence


def test_equal_weights_pass_by_identity():
    found = verdict(suite_of(2, 20, 0, 0), GatePolicy(critical=("absent",)), identical=True)
    assert (found.outcome, found.missed, found.items_needed) == ("pass", (), None)
    assert found.macro == Estimate(0, 0, 0, 40)
    assert "identity" in found.sentence


@pytest.mark.parametrize(
    ("role", "n", "gained", "lost", "outcome"),
    [
        *(("critical", 200, 0, 2, "pass"), ("critical", 200, 0, 25, "fail")),
        ("critical", 200, 0, 15, "inconclusive"),
        # Of 100 items, 20 fewer is beyond 5 points for sure; 8 fewer is a loss that may be of 5 points.
        *(("safety", 100, 0, 20, "fail"), ("safety", 100, 30, 42, "pass")),
        *(("safety", 100, 0, 8, "inconclusive"), ("safety", 100, 0, 0, "pass")),
    ],
)
def test_critical_and_safety_tasks_are_judged_by_the_bounds_of_their_loss(role, n, gained, lost, outcome):
    task = compare_task("refuses", n, gained, lost, role="safety")
    found = verdict([*EQUAL, task], GatePolicy(critical=("refuses",) if role == "critical" else ()))
    assert rule(found, role).outcome == found.outcome == outcome


def test_a_critical_task_or_suite_has_to_be_measured_and_gains_make_up_for_nothing():
    safety = compare_task("refuses", 200, 0, 60, role="safety", suite="safety")
    found = verdict([*EQUAL, safety], GatePolicy(critical=("safety",)))
    assert "refuses: 60 of 200 items that the base passed are lost" in found.sentence

    safety = compare_task("refuses", 300, 100, 40, role="safety")
    found = verdict([*EQUAL, safety], GatePolicy(critical=("refuses",)))
    assert rule(found, "critical").numbers["refuses_passed"] == 200
    assert found.outcome == "fail"
    found = verdict(EQUAL, GatePolicy(critical=("refuses",)))
    assert found.outcome == "inconclusive"
    assert "refuses was not measured" in found.sentence


@pytest.mark.parametrize(
    ("n", "n_new", "outcome"), [(600, 3, "pass"), (600, 60, "fail"), (600, 12, "inconclusive")]
)
def test_a_rise_of_invalid_answers_is_judged_on_its_own(n, n_new, outcome):
    found = verdict(EQUAL, validity=compare_invalid(n, 0, n_new))
    assert rule(found, "validity").outcome == found.outcome == outcome


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
    found = verdict(EQUAL, GatePolicy(target=TargetPolicy(min=least)), target=target)
    assert found.outcome == outcome
    assert ("] against at most 0.200: " in rule(found, "target").sentence) == (unit is WER)


@pytest.mark.parametrize(("gains", "outcome"), [(60, "pass"), (3, "fail"), (20, "inconclusive")])
def test_a_declared_gain_is_judged_by_its_interval(gains, outcome):
    gain = compare_rows(EXACT, *(rows(arm) for arm in flips(300, gains, 2)))
    target = TargetFacts(Estimate(0.9, 0.87, 0.93, 300), gain)
    found = verdict(EQUAL, GatePolicy(target=TargetPolicy(gain=0.05)), target=target)
    assert found.outcome == outcome


def test_a_metric_where_lower_is_better_loses_by_rising():
    base, new = flips(500, 0, 100)
    c = compare_rows(LOWER, rows(1 - base, LOWER), rows(1 - new, LOWER))
    assert c.delta > 0
    found = verdict([TaskComparison(task("t", metrics=("loss",)), "capability", c, True, "")])
    assert (found.outcome, found.macro.score) == ("fail", pytest.approx(-0.2))


def missed(found, delta, what):
    return next(m.probability for m in found.missed if m.delta == delta and m.what.startswith(what))


def test_the_chance_not_to_pass_an_equal_model_is_near_the_simulated_one():
    """8 tasks of 100 items at 10 % disagreement pass an equal model 50 % of the time when simulated."""
    assert missed(verdict(suite_of(8, 100, 5, 5)), 0.0, "equal") == pytest.approx(0.5, abs=0.02)


def test_a_pass_exits_with_0_a_fail_with_3_and_an_inconclusive_verdict_by_the_policy():
    assert exit_code(verdict(EQUAL), POLICY) == 0
    assert exit_code(verdict(suite_of(8, 500, 0, 100)), GatePolicy(on_inconclusive="pass")) == 3
    policies = [GatePolicy(on_inconclusive=counts_as) for counts_as in ("fail", "warn", "pass")]
    assert [exit_code(verdict(suite_of(1, 10, 0, 0), p), p) for p in policies] == [4, 0, 0]


def test_comparisons_made_at_another_level_are_refused():
    with pytest.raises(ValueError, match=r"alpha \[0.05\], the policy's is 0.01"):
        verdict(suite_of(1, 50, 1, 1), GatePolicy(alpha=0.01))


@pytest.mark.parametrize(("passed", "admitted"), [(90, True), (30, False), (10, False)])
def test_a_task_is_admitted_where_the_base_is_above_chance(passed, admitted):
    scores = [1.0] * passed + [0.0] * (100 - passed)
    found, said = admit(task("quiz", chance=0.25), EXACT, rows(scores))
    assert found is admitted
    assert f"the base scores {passed}.0 [" in said
    assert "chance (25.0 %), n = 100" in said


@pytest.mark.parametrize("n", [3, 300])
def test_a_base_that_passed_nothing_has_nothing_to_lose(n):
    """Rounding puts the lower end of Wilson's interval at 1e-18 for some n: that is not above chance 0."""
    found, said = admit(task("sums"), EXACT, rows([0.0] * n))
    assert not found
    assert "not above chance (0.0 %)" in said


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
    n = {f"t{i}": 1000 for i in range(8)} | {"refuses": 20}
    (said,) = power_warnings(suites, n, GatePolicy(critical=("safety",)))
    assert said.startswith(
        "refuses, critical margin 5.0 %: 20 items are too few for anything to pass, even without"
    )
    assert "29 items" in said
    assert "cannot pass" in power_warnings([], {}, POLICY)[0]
    suites = [Suite(name="general", role="capability", tasks=(task("a"),))]
    (said,) = power_warnings(suites, {"a": 3000}, GatePolicy(macro="10%", each=0.05))
    assert said.startswith("macro margin 10.0 % of the base's skill")


def judge_relative(macro, tasks, **fields):
    return verdict(tasks, GatePolicy(macro=macro, **fields))


def test_a_relative_margin_is_a_share_of_the_bases_skill():
    # The base of `flips` passes all but what is gained: with no gains its skill above chance 0 is 1.
    tasks = suite_of(8, 500, 0, 5)
    absolute, share = judge_relative(0.02, tasks), judge_relative("2%", tasks)
    assert [rule(v, "macro").outcome for v in (absolute, share)] == ["pass", "pass"]
    assert rule(share, "macro").numbers["lower"] == pytest.approx(rule(absolute, "macro").numbers["lower"])
    assert [m.probability for m in share.missed] == pytest.approx([m.probability for m in absolute.missed])

    weak = [t._replace(task=task(t.task.name, chance=0.9)) for t in suite_of(8, 500, 10, 15)]
    assert rule(judge_relative(0.05, weak), "macro").outcome == "pass"
    assert rule(judge_relative("5%", weak), "macro").outcome == "fail"
    assert "% of the base's skill" in rule(judge_relative("5%", weak), "macro").sentence

    lost = compare_task("facts", 300, 5, 50, margin="50%")
    assert rule(verdict([*HOLDS, lost]), "each").outcome == "pass"
    strict = compare_task("facts", 300, 5, 50, margin="5%")
    assert rule(verdict([*HOLDS, strict]), "each").outcome == "fail"


# Pinned items


def make_pinned_suite(lost, **fields):
    return [*EQUAL, compare_task("facts-pinned", 6, 0, lost, role="regression", **fields)]


def test_pinned_items_stay_out_of_the_macro_and_one_lost_is_open_until_fp32_confirms_it():
    found = verdict(make_pinned_suite(0))
    assert (rule(found, "regressions").outcome, rule(found, "macro").numbers["n_tasks"]) == ("pass", 8)
    assert rule(found, "macro").numbers["left_out"] == []
    open_ = verdict(make_pinned_suite(1))
    assert open_.outcome == "inconclusive"
    assert "fp32 has not confirmed" in rule(open_, "regressions").sentence


@pytest.mark.parametrize(("in_fp32", "outcome"), [(("item-0000",), "fail"), ((), "pass")])
def test_a_pinned_item_lost_in_fp32_fails_and_one_lost_by_rounding_does_not(in_fp32, outcome):
    found = verdict(make_pinned_suite(1), confirmed={"facts-pinned": in_fp32})
    assert rule(found, "regressions").outcome == found.outcome == outcome


def points(n, change, bounds):
    """A graded task: scores from 40 to 60, and a change of each with a little spread."""
    metric = mean_metric("points", lambda output, example: None, bounds=bounds)
    rng = np.random.default_rng(0)
    base = rng.uniform(40, 60, n)
    arms = (rows(arm, metric, task="chat") for arm in (base, base + change + rng.normal(0, 0.1, n)))
    return Measurement(task("chat", metrics=("points",)), "capability", "", {"points": metric}, *arms)


def make_measurement(n, losses):
    arms = (rows(arm, task="facts") for arm in flips(n, 0, losses))
    return Measurement(task("facts"), "capability", "", {EXACT.name: EXACT}, *arms)


def judge_measurements(*measurements, policy=POLICY):
    return gating.judge(measurements, policy, target=None, identical=False).verdict


def test_a_graded_task_counts_by_its_share_of_the_range_or_not_at_all():
    found = judge_measurements(points(500, 0.5, (0, 100)), make_measurement(2000, 160))
    assert found.outcome == "fail"
    assert found.macro.score == pytest.approx((0.005 - 0.08) / 2, abs=1e-3)
    lost = judge_measurements(points(500, -0.5, (0, 100)))
    assert lost.outcome == "pass"
    assert "chat −0.5 [−0.5, −0.5] pp of its range" in rule(lost, "each").sentence

    found = judge_measurements(points(500, -8, (0, 100)), make_measurement(2000, 0))
    assert rule(found, "each").numbers["vetoed"] == ["chat"]
    wide = POLICY.model_copy(update={"each": "20%"})  # of the base's 50 of 100: 10 points
    assert (
        rule(
            judge_measurements(points(500, -8, (0, 100)), make_measurement(2000, 0), policy=wide), "each"
        ).outcome
        == "pass"
    )

    found = judge_measurements(points(500, 5.0, (-inf, inf)), make_measurement(2000, 160))
    assert found.macro.score == pytest.approx(-0.08)
    (why,) = rule(found, "macro").numbers["left_out"]
    assert "points has no bounds, so its changes are not points; declare bounds: of the task" in why


def text(factor):
    metric = ratio_metric()
    base = np.stack([np.random.default_rng(0).gamma(50, 1, 80), np.full(80, 50.0)], axis=1)
    c = compare_rows(metric, rows(base, metric), rows(base * [factor, 1], metric))
    return TaskComparison(task("english", kind="bits_per_byte"), "capability", c, False, "reported")


def test_drift_is_judged_where_asked_and_passes_only_where_every_text_is_below_the_limit():
    tasks = [*EQUAL, text(1.2)]
    assert rule(verdict(tasks), "drift").outcome == "skipped"
    assert "drift: english +0.197 [" in rule(verdict(tasks), "drift").sentence
    assert verdict(tasks, GatePolicy(drift=0.1)).outcome == "fail"
    assert verdict(tasks, GatePolicy(drift=0.5)).outcome == "pass"

    sure = text(1.05)
    open_ = sure._replace(
        task=task("french", kind="bits_per_byte"),
        comparison=replace(
            sure.comparison, delta=0.01, low=-0.3, high=0.32, lower=-0.25, upper=0.27, se=0.16
        ),
    )
    policy = GatePolicy(drift=0.1)
    assert rule(verdict([*EQUAL, sure], policy), "drift").outcome == "pass"
    both = rule(verdict([*EQUAL, sure, open_], policy), "drift")
    assert both.outcome == "inconclusive"
    assert "french" in both.sentence
    lost = rule(verdict([*EQUAL, open_, text(1.2)], policy), "drift")
    assert lost.outcome == "fail"
    assert "english" in lost.sentence
