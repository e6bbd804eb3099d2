"""Comparisons of two runs: deltas, their intervals, what is refused, and what decides nothing."""

import json
import random
from dataclasses import replace
from math import inf, sqrt

import lmeval_folder
import numpy as np
import pytest
from fake_rows import EXACT, LOWER, flips, ratio_metric, rows
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from harness import stats
from harness.analysis import comparison
from harness.analysis.comparison import check_comparable, compare_rows, compare_validity, estimate
from harness.analysis.estimators import orient, refuse_failed, regression_p
from harness.analysis.gate_verdict import apply_rules
from harness.analysis.verdict import TaskComparison
from harness.errors import IncompatibleRuns, UserError
from harness.lifecycle import release
from harness.metrics import mean_metric
from harness.metrics.labels import MacroF1
from harness.records import RowsIdentity
from harness.spec import GatePolicy, Task, TaskData

RATIO = ratio_metric()
IDENTITY = RowsIdentity("w", "t", "task", "v1", "test", "p", "generate", "bf16", "hf", "l", "cpu")

binary_arms = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=4, max_size=40)
graded_arms = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=4, max_size=40)
sizes = st.sampled_from([1, 3])


def compare_scores(base, new, metric=EXACT, **kwargs):
    size = kwargs.pop("cluster_size", 1)
    old_rows, new_rows = (rows(arm, metric, cluster_size=size) for arm in (base, new))
    return compare_rows(metric, old_rows, new_rows, **kwargs)


def interval(c):
    return (c.low, c.high)


def test_single_binary_items_get_tangos_interval_and_graded_ones_the_clustered_t():
    c = compare_scores(*flips(21, 1, 7))
    assert c.estimator == "tango"
    assert interval(c) == pytest.approx(stats.tango_interval(1, 7, 21))
    assert (c.lower, c.upper) == pytest.approx(stats.tango_interval(1, 7, 21, 0.1))
    c = compare_scores(*flips(10, 0, 2))
    assert (c.new, c.new_low, c.new_high) == pytest.approx((0.8, *stats.wilson(8, 10)))
    c = compare_scores(*flips(200, 2, 30))
    assert regression_p(c, 0.05) == pytest.approx(stats.tango_regression_p(2, 30, 200, 0.05))

    rng = np.random.default_rng(0)
    base, new = rng.random(60), rng.random(60)
    c = compare_scores(base, new, cluster_size=2)
    expected = stats.t_interval(stats.paired_delta(base, new, np.arange(60) // 2))
    assert c.estimator == "cluster-t"
    assert interval(c) == pytest.approx(expected)


def test_metrics_of_several_parts_get_the_bootstrap():
    rng = np.random.default_rng(1)
    base = np.stack([rng.gamma(5, 10, 80), rng.integers(20, 80, 80)], axis=1)
    new = base * [1.1, 1.0]
    c = compare_scores(base, new, RATIO)
    ratio = base[:, 0].sum() / base[:, 1].sum()
    assert c.estimator == "bca"
    assert (c.base, c.delta) == pytest.approx((ratio, 0.1 * ratio))
    assert 0 < c.low < c.delta < c.high

    metric = MacroF1.metric(Task(name="t", data={}, labels=("a", "b")))
    hit, miss = (1.0, 0, 0, 0, 0, 0), (0, 0, 1.0, 0, 1.0, 0)
    base, new = [hit] * 30, [hit] * 15 + [miss] * 15
    c = compare_scores(base, new, metric)
    assert (c.estimator, len(c.lost), len(c.gained)) == ("bca", 15, 0)
    assert c.delta == pytest.approx(2 * 15 / 45 - 1)


def test_nothing_differing_still_has_a_width_over_clusters_alone():
    arm = np.ones(50)
    assert interval(compare_scores(arm, arm)) == pytest.approx(stats.tango_interval(0, 0, 50))
    arm = np.ones(60)
    assert interval(compare_scores(arm, arm, cluster_size=3)) == pytest.approx(stats.tango_interval(0, 0, 20))
    score = estimate(EXACT, rows(np.ones(60), cluster_size=3))
    assert (score.low, score.high) == pytest.approx(stats.wilson(20, 20))
    base = np.full(60, 0.5)
    new = base.copy()
    new[0] = 0.4
    c = compare_scores(base, new)
    assert c.low < -0.02
    assert c.high > 0.02
    c = compare_scores([1], [0])
    assert c.low == -1
    assert c.high > -0.5


def test_equal_weights_give_zero_by_identity():
    base, _ = flips(50, 5, 5)
    c = compare_scores(base, base, identical=True)
    assert (c.estimator, c.delta, *interval(c), c.lower, c.upper, c.se) == ("identical", 0, 0, 0, 0, 0, 0)
    assert (c.base, c.disagreement, c.lost) == (base.mean(), 0, ())


def test_lost_and_gained_items_are_named_and_unparsable_answers_count_in_the_headline_alone():
    c = compare_scores([1, 1, 0, 0], [1, 0, 1, 0])
    assert (c.lost, c.gained, c.disagreement) == (("item-0001",), ("item-0002",), 0.5)
    c = compare_scores([0, 0, 1], [1, 0, 1], LOWER)
    assert (c.lost, c.delta) == (("item-0000",), pytest.approx(1 / 3))
    assert orient(c).delta == pytest.approx(-1 / 3)
    c = compare_scores([1, 1, None, 0], [1, None, 1, 0])
    assert (c.n, c.delta, c.lost, c.gained) == (4, 0, ("item-0001",), ("item-0002",))
    assert (c.errors.base, c.errors.new, c.errors.both) == (1, 1, 0)

    base, new = rows([1.0] * 6), rows([0, 0, 1, 1, 1, 1], status=["unparsable"] * 2 + ["ok"] * 4)
    c = compare_rows(EXACT, base, new)
    assert (c.delta, c.n) == (pytest.approx(-1 / 3), 6)


def test_runs_of_other_or_doubled_or_no_common_items_are_refused():
    with pytest.raises(IncompatibleRuns, match="1 only in the base, 0 only in the new run \\(item-0002\\)"):
        compare_rows(EXACT, rows([1, 1, 1]), rows([1, 1]))
    with pytest.raises(IncompatibleRuns, match="twice"):
        compare_rows(EXACT, rows([1, 1]) + rows([1]), rows([1, 1]))
    with pytest.raises(IncompatibleRuns, match="no item"):
        compare_scores([None, [1.0, 2.0]], [[1.0, 2.0], None], RATIO)


def test_a_metric_without_bounds_is_neither_a_rate_nor_narrow_on_one_cluster():
    c = compare_scores([[1.0, 2.0]], [[2.0, 2.0]], RATIO)
    assert (c.delta, c.low, c.high, c.se) == (0.5, -inf, inf, inf)
    assert estimate(RATIO, rows([[1.0, 2.0]], RATIO))[:3] == (0.5, 0.0, inf)
    metric = mean_metric("points", lambda output, example: None, bounds=(-inf, inf))
    old, new = np.repeat([1.0, 0.0], [30, 10]), np.repeat([1.0, 0.0], [20, 20])
    c = compare_scores(old, new, metric)
    t = scipy_stats.t.ppf(0.975, 39) * np.std(new - old, ddof=1) / sqrt(40)
    assert (c.estimator, c.base_passed) == ("cluster-t", None)
    assert (c.delta, c.low, c.high) == pytest.approx((-0.25, -0.25 - t, -0.25 + t))
    assert estimate(metric, rows(old, metric)).score == 0.75


def test_identities_may_differ_in_weights_and_promptings_and_are_refused_by_any_other_field():
    other_identity = replace(IDENTITY, task_version="v2", precision="fp32")
    with pytest.raises(IncompatibleRuns, match="task_version 'v1' and 'v2'; precision 'bf16' and 'fp32'"):
        check_comparable(IDENTITY, other_identity)
    check_comparable(IDENTITY, replace(IDENTITY, weights_digest="x", prompting_digest="q"))
    with pytest.raises(IncompatibleRuns, match="prompting_digest"):
        check_comparable(IDENTITY, replace(IDENTITY, prompting_digest="q"), prompting=True)


def test_validity_pools_tasks_and_counts_what_failed_in_one_arm():
    base = rows([1.0] * 3, task="a") + rows([1.0] * 3, task="b")
    new = rows([1.0] * 3, task="a") + rows([1.0] * 3, task="b", status=["ok", "refused", "truncated"])
    c = compare_validity(base, new)
    assert (c.n, c.delta) == (6, pytest.approx(1 / 3))
    assert c.lost == ("b/item-0001", "b/item-0002")
    new = rows([1.0, None, 1.0], status=["ok", "error", "unparsable"])
    c = compare_validity(rows([1.0] * 3), new)
    assert (c.n, c.delta) == (3, pytest.approx(2 / 3))


@settings(max_examples=60, deadline=None)
@given(st.one_of(binary_arms, graded_arms), sizes)
def test_swapping_the_arms_flips_the_sign(arms, size):
    base, new = zip(*arms, strict=True)
    forth, back = compare_scores(base, new, cluster_size=size), compare_scores(new, base, cluster_size=size)
    assert (back.delta, *interval(back)) == pytest.approx((-forth.delta, -forth.high, -forth.low), abs=1e-9)
    assert (back.lost, back.gained) == (forth.gained, forth.lost)


@settings(max_examples=25, deadline=None)
@given(binary_arms, sizes, st.integers(0, 1000))
def test_the_order_of_the_rows_changes_nothing(arms, size, seed):
    base, new = (rows(arm, cluster_size=size) for arm in zip(*arms, strict=True))
    shuffled = random.Random(seed).sample(new, len(new))
    assert compare_rows(EXACT, base, shuffled) == compare_rows(EXACT, base, new)


@settings(max_examples=25, deadline=None)
@given(graded_arms, sizes)
def test_every_figure_is_finite_and_inside_its_interval(arms, size):
    base, new = zip(*arms, strict=True)
    c = compare_scores(base, new, cluster_size=size)
    assert c.low <= c.delta <= c.high
    assert c.low <= max(c.lower, -1) <= min(c.upper, 1) <= c.high
    assert 0 <= c.base_low <= c.base <= c.base_high <= 1
    assert c.se > 0


def weight_rows(scores, weights):
    return [replace(row, weight=float(w)) for row, w in zip(rows(scores), weights, strict=True)]


def test_items_drawn_with_unequal_chances_get_the_interval_of_strata():
    rng = np.random.default_rng(2)
    weights = np.repeat([2.0, 10.0], [150, 50])
    base, new = (rng.random(200) < 0.7).astype(float), (rng.random(200) < 0.65).astype(float)
    c = compare_rows(EXACT, weight_rows(base, weights), weight_rows(new, weights))
    assert c.estimator == "stratified"
    assert c.delta == pytest.approx(np.average(new - base, weights=weights))
    strata = [
        stats.StratumFlips((x > 0).sum(), (x < 0).sum(), len(x), n)
        for x, n in (((new - base)[:150], 300), ((new - base)[150:], 500))
    ]
    assert interval(c) == pytest.approx(stats.stratified_flips_interval(strata))
    assert (c.lower, c.upper) == pytest.approx(stats.stratified_flips_interval(strata, 0.1))
    assert c.disagreement == pytest.approx(np.average(base != new, weights=weights))


def test_a_gain_by_a_metric_without_a_worst_value_is_refused_where_the_new_run_failed():
    metric = replace(EXACT, name="score", bounds=(-inf, inf))
    rng = np.random.default_rng(0)
    old = rng.normal(2, 1, 100)
    new = [None if i < 30 else x for i, x in enumerate(old + rng.normal(0.3, 0.3, 100))]
    delta = refuse_failed(compare_rows(metric, rows(old, metric), rows(new, metric)), inf, 0.01)
    assert (delta.low, delta.high) == (-inf, inf)
    assert delta.refused.startswith("30 of 100 answers failed")


def judge_arms(base, new, cluster_size=1):
    """Judge one task by the default policy, on the rows of two arms."""
    arms = [rows(np.asarray(arm, float), cluster_size=cluster_size) for arm in (base, new)]
    difference = comparison.compare_rows(EXACT, *arms)
    task = TaskComparison(Task(name="task", data=TaskData()), "capability", difference, True, "")
    return difference, apply_rules([task], GatePolicy(), validity=None, target=None, identical=False)


def test_no_item_or_one_cluster_decides_nothing_whatever_its_scores():
    with pytest.raises(IncompatibleRuns, match="found no item that both runs scored"):
        comparison.compare_rows(EXACT, [], [])
    with pytest.raises(IncompatibleRuns, match="found no item"):
        comparison.estimate(EXACT, [])
    difference, verdict = judge_arms(*flips(100, 0, 0), cluster_size=100)
    assert difference.n_clusters == 1
    assert difference.high - difference.low > 1
    assert verdict.outcome == "inconclusive"


def test_a_score_that_is_no_number_is_refused_with_its_item(tmp_path):
    arms = {"base": [1] * 5, "tuned": [1, 1, float("nan"), 1, 1]}
    old, new = (lmeval_folder.write(tmp_path / name, {"arc": arm}) for name, arm in arms.items())
    with pytest.raises(UserError, match=r"1 of 5 items without a number as acc \(id 2\)"):
        release.gate_folders(old, new, GatePolicy())
    file = next(new.rglob("samples_*"))
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[2]["acc"], lines[4]["acc"] = 1.0, None
    file.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(UserError, match=r"\(id 4\)"):
        release.gate_folders(old, new, GatePolicy())
