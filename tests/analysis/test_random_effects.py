"""Seeds and clusters: variance between seeds, clusters of unequal size, and how often their intervals hold."""

from dataclasses import replace
from math import inf, isinf, sqrt

import numpy as np
import pytest
from fake_facts import alternatives, comparison, make_decision, make_fine_tune
from fake_rows import EXACT, ratio_metric, rows
from scipy import integrate
from scipy import stats as scipy_stats
from test_report import report as make_report

from harness import stats
from harness.analysis.comparison import compare_recipes, compare_rows
from harness.analysis.economics import estimate_more_items, list_more_seeds
from harness.analysis.estimators import difference_p, refuse, regression_p
from harness.analysis.gate_verdict import apply_rules
from harness.analysis.seeds import item_variances, mean_interval, mean_p, pool_seeds, summarize_seeds
from harness.analysis.verdict import TaskComparison
from harness.metrics import mean_metric
from harness.report.first_page import next_steps
from harness.spec import GatePolicy, Task, TaskData
from harness.stats import Variance, VarianceComponents

HALF = 0.0408  # half the width of one seed's interval: +5.0 [+1, +9]


def seeds(*gains, name="lora", half=HALF, **changes):
    runs = []
    for s, x in enumerate(gains):
        c = comparison(x, half, estimator="bca")
        run = make_fine_tune(name, 0.7 + x, x, run_id=f"{name}-{s}", seed=s, vs_untrained=c, vs_prompt=c)
        runs.append(replace(run, **changes))
    return runs


def pool_facts(facts):
    return pool_seeds(facts)[0].vs_untrained


def decision(facts):
    return make_decision([*alternatives(), *facts], metric="m")


# The formulas


def test_an_interval_over_seeds_is_students_and_of_two_arms_welchs():
    x = [0.71, 0.75, 0.80, 0.69]
    one_seed = stats.seed_variance([x])
    pooled = stats.satterthwaite([Variance(0.0, None), Variance(one_seed.variance / 4, one_seed.df)])
    expected = scipy_stats.ttest_1samp(x, 0.7)
    ends = expected.confidence_interval()
    assert mean_interval(np.mean(x), pooled) == pytest.approx((ends.low, ends.high), abs=1e-9)
    assert mean_p(np.mean(x) - 0.7, pooled) == pytest.approx(expected.pvalue)
    x, y = [0.71, 0.75, 0.80, 0.69], [0.5, 0.9, 0.6]
    parts = [Variance(np.var(a, ddof=1) / len(a), len(a) - 1) for a in (x, y)]
    assert stats.satterthwaite(parts).df == pytest.approx(scipy_stats.ttest_ind(x, y, equal_var=False).df)


def test_the_variance_of_a_seed_is_pooled_as_in_one_way_analysis_of_variance():
    groups = [[0.7, 0.74], [0.5, 0.52, 0.57], [0.9]]
    within = sum(((np.array(g) - np.mean(g)) ** 2).sum() for g in groups)
    assert stats.seed_variance(groups) == (pytest.approx(within / 3), 3)


@pytest.mark.parametrize("recipes", [[], [[0.1]], [[0.1, 0.2]], [[0.1], [0.2]]])
def test_below_two_degrees_of_freedom_the_variance_between_seeds_is_unknown(recipes):
    assert stats.seed_variance(recipes) is None


def test_bad_numbers_are_refused_and_equal_seeds_show_no_difference():
    with pytest.raises(ValueError, match="finite"):
        stats.seed_variance([[0.1, 0.2, float("nan")]])
    with pytest.raises(ValueError, match=">= 0"):
        stats.satterthwaite([Variance(-0.1, 2)])
    with pytest.raises(ValueError, match="times > 0"):
        stats.detectable_mean(VarianceComponents(Variance(1, 9), Variance(1, 2), 3), 0)
    nothing = stats.satterthwaite([Variance(0.0, None), Variance(0.0, 2)])
    assert (mean_p(0.1, nothing), mean_p(0.0, nothing)) == (0, 1)
    assert stats.satterthwaite([Variance(inf, None), Variance(0.1, 2)]) == (inf, None)


def test_expected_values_of_information_agree_with_integrals_over_the_t():
    t = scipy_stats.t(4, 1, 2)
    loss = integrate.quad(lambda x: -x * t.pdf(x), -np.inf, 0)[0]
    assert stats.perfect_information(1, 2, 4) == pytest.approx(loss, rel=1e-6)
    assert stats.perfect_information(1, 2, 1e5) == pytest.approx(stats.perfect_information(1, 2), rel=1e-4)
    assert stats.perfect_information(1, 2, 1) == inf


# The decision


def test_three_agreeing_seeds_ship_what_one_ships_and_none_over_a_base_that_failed():
    one_seed, three_seeds = seeds(0.05), seeds(0.05, 0.0525, 0.0525)
    g = pool_facts(three_seeds)
    assert (g.delta, g.low, g.high) == pytest.approx((0.0517, 0.011, 0.093), abs=0.001)
    assert decision(one_seed).candidate == decision(three_seeds).candidate == "lora"
    probability = decision(three_seeds).arithmetic["probability_above_tau"]
    assert probability == pytest.approx(scipy_stats.t.cdf(g.delta / g.se, g.df))

    runs = seeds(0.05, 0.0525, 0.0525)
    refused = [replace(f, vs_untrained=refuse(f.vs_untrained, 1.0, "20 of 100 answers failed")) for f in runs]
    pooled = pool_facts(refused)
    assert (pooled.low, pooled.high, pooled.refused) == (-1.0, 1.0, "20 of 100 answers failed")
    assert decision(refused).action != "fine-tune"
    assert decision(runs).action == "fine-tune"


def test_three_seeds_that_disagree_ship_nothing_and_say_that_more_items_would_not_help():
    facts = seeds(0.12, -0.02, 0.0, half=0.03)
    g = pool_facts(facts)
    assert g.low < 0
    assert scipy_stats.t.ppf(0.975, 2) * sqrt(g.components.seeds.variance) > g.delta
    assert estimate_more_items(pool_seeds(facts)[0]) == inf
    verdict = decision(facts)
    assert verdict.candidate == "knn"
    assert verdict.sentence.endswith("more seeds, as trainings of this recipe differ by more than it gains.")


def test_a_gain_that_varies_most_between_seeds_is_shown_by_as_many_more_of_them():
    facts = seeds(0.12, 0.03, 0.09, half=0.02)
    more = list_more_seeds(facts, pool_seeds(facts)[0])
    assert more == (0, 1, 2, 3, 4)
    components = pool_facts(facts).components
    at = {n: Variance(components.seeds.variance * 3 / n, n - 1) for n in (4, 5)}
    reached = [stats.detectable_mean(VarianceComponents(components.items, at[n], n), 1.0) for n in at]
    assert reached[0] > 0.08 >= reached[1]
    verdict = decision(facts)
    assert verdict.sentence.endswith(
        "more seeds (--seeds 0,1,2,3,4), as the gain varies most between trainings."
    )
    steps = list(next_steps(make_report([*alternatives(), *facts], decision=verdict)))
    assert steps[-1].line == "harness compare 'seeds=[0,1,2,3,4]'"


def test_items_needed_with_seeds_come_from_the_intervals_own_distribution():
    run = pool_seeds(seeds(0.018, 0.022, 0.026, half=0.039))[0]
    g, n = run.vs_untrained, estimate_more_items(run)
    components = g.components
    by_z = 200 * ((1.959964 + 0.841621) * sqrt(components.items.variance) / g.delta) ** 2 - 200
    assert by_z < n < inf
    reached = stats.detectable_mean(components, (200 + n) / 200)
    assert reached <= g.delta < stats.detectable_mean(components, (200 + n - 1) / 200)


# Two seeds


def test_two_seeds_judge_the_checkpoint_or_pool_what_varies_beside_others():
    runs = seeds(0.05, 0.07)
    assert pool_seeds(runs) == runs
    assert any("how much the recipe varies between seeds is unknown" in r for r in decision(runs).reasons)

    runs = [*seeds(0.05, 0.07), *seeds(0.06, 0.09, name="qlora")]
    g = pool_facts(runs)
    assert g.components.seeds == (pytest.approx((0.01**2 * 2 + 0.015**2 * 2) / 2 / 2), 2)
    assert g.delta == pytest.approx(0.06)
    pooled_reason = "pooled over the recipes, as if all varied alike, on 2"
    assert any(pooled_reason in r for r in decision(runs).reasons)
    assert all(s.score and s.is_pooled for s in summarize_seeds(runs))


# From rows


def draw_seeds(rng, n_seeds, n, spread, kept=0.5):
    """Draw a base, and seeds whose change on an item is shared to the `kept` share; `spread` in items' SE."""
    common, effects = rng.normal(0, 1, n), rng.normal(0, spread / sqrt(n), n_seeds)
    seed_noise = rng.normal(0, 1, (n_seeds, n))
    return sqrt(kept) * common + sqrt(1 - kept) * seed_noise + effects[:, None]


def test_item_variances_are_those_of_the_items_mean_over_seeds():
    changes = draw_seeds(np.random.default_rng(0), 3, 40, 1.0) / 10
    base = np.full(40, 0.5)
    variances = item_variances(EXACT, [rows(base + x) for x in changes], rows(base), None)
    mean = changes.mean(axis=0)
    assert variances.vs_untrained == (pytest.approx(mean.var(ddof=1) / 40), 39)
    assert variances.vs_prompt is None
    assert sqrt(variances.score.variance) == pytest.approx(
        scipy_stats.t.ppf(0.975, 39) / 1.959964 * sqrt(mean.var(ddof=1) / 40), rel=1e-4
    )


def test_a_recipe_of_one_run_is_compared_as_the_run_is_and_few_items_make_no_variance_too_small():
    rng = np.random.default_rng(1)
    base, new = rows(rng.random(50)), rows(rng.random(50))
    pooled, c = compare_recipes(EXACT, [base], [new]), compare_rows(EXACT, base, new)
    assert (pooled.delta, sqrt(pooled.change.variance), pooled.change.df, pooled.n) == pytest.approx(
        (c.delta, c.se, c.df, c.n)
    )
    flawless = compare_recipes(EXACT, [rows(np.ones(60))], [rows(np.ones(60))] * 3)
    assert flawless.change.variance > 0.01**2


GRADED = mean_metric("graded", lambda output, example: None, bounds=(-inf, inf))
ONE_LARGE = np.repeat([200, 5], [1, 20])
LOG_NORMAL = np.ceil(np.random.default_rng(4).lognormal(1.5, 1, 30)).astype(int)


def make_clustered_rows(values, sizes, metric=GRADED, **changes):
    clusters = np.repeat(np.arange(len(sizes)), sizes)
    plain_rows = rows(values, metric, **changes)
    return [replace(row, cluster=f"c{c}") for row, c in zip(plain_rows, clusters, strict=True)]


def draw_differences(rng, sizes, correlation, draws):
    """Draw graded differences of mean 0 (draws, n) that have this correlation within a cluster."""
    item_noise = rng.normal(size=(draws, sizes.sum()))
    shared = np.repeat(rng.normal(size=(draws, len(sizes))), sizes, axis=1)
    return np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * item_noise


@pytest.mark.parametrize("sizes", [(3, 4, 5, 6, 7), (20, 20, 1, 1, 1, 1, 1, 1, 15, 12), (2,) * 6])
def test_error_and_degrees_of_freedom_agree_with_the_matrices_of_the_paper(sizes):
    x = np.random.default_rng(0).normal(size=sum(sizes))
    # CR2's squared error of the mean and Bell and McCaffrey's df, by the matrices themselves.
    n, clusters = sum(sizes), np.repeat(np.arange(len(sizes)), sizes)
    hat, alike = np.full((n, n), 1 / n), (clusters[:, None] == clusters).astype(float)
    columns = []
    for c in range(len(sizes)):
        mine = clusters == c
        values, vectors = np.linalg.eigh((np.eye(n) - hat)[np.ix_(mine, mine)])
        root = vectors @ np.diag(np.where(values > 1e-9, values, 1) ** -0.5 * (values > 1e-9)) @ vectors.T
        columns.append((np.eye(n) - hat)[:, mine] @ root @ np.ones(mine.sum()) / n)
    g = np.column_stack(columns)
    form = g.T @ alike @ g
    squared, df = float(((g.T @ x) ** 2).sum()), np.trace(form) ** 2 / np.trace(form @ form)
    clustered = stats.clustered_mean(x, np.repeat(np.arange(len(sizes)), sizes))
    assert clustered.se**2 == pytest.approx(squared, rel=1e-9)
    assert clustered.df == pytest.approx(
        min(df, stats.effective_clusters(np.repeat(range(len(sizes)), sizes)) - 1)
    )


def test_clusters_of_one_size_keep_students_degrees_of_freedom_and_single_items_are_never_refused():
    assert stats.clustered_mean(np.arange(12.0), np.arange(12) // 2).df == 5
    assert stats.clustered_mean(np.arange(12.0), np.arange(12)).df == 11
    c = compare_rows(EXACT, rows([1, 0]), rows([0, 0]))
    assert not c.refused
    assert not isinf(c.lower)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        (ONE_LARGE, "300 items in 21 clusters of unequal size, which weigh 2.2"),
        (np.array([40, 40]), "80 items in 2 clusters;"),
        (np.array([9]), "9 items in 1 cluster;"),
    ],
)
@pytest.mark.parametrize("metric", [EXACT, ratio_metric()], ids=["0 and 1", "ratio"])
def test_too_few_clusters_have_an_infinite_interval_that_says_why(sizes, said, metric):
    rng, n = np.random.default_rng(2), int(sizes.sum())
    parts = (n, 2) if len(metric.parts) == 2 else n
    base, new = (
        make_clustered_rows(rng.integers(0, 2, parts) + 1.0 * (metric is not EXACT), sizes, metric)
        for _ in "ab"
    )
    c = compare_rows(metric, base, new)
    assert (c.lower, c.upper, c.se, c.df) == (-inf, inf, inf, None)
    assert said in c.refused
    assert "expected at least 4" in c.refused
    assert (c.low, c.high) == ((-1, 1) if metric is EXACT else (-inf, inf))
    assert (regression_p(c, 0.02), difference_p(c)) == (0.5, 1.0)


def test_a_task_of_too_few_clusters_leaves_the_gate_open_and_is_named():
    base, new = np.full(300, 0.9), np.full(300, 0.9)
    arms = [make_clustered_rows(arm, ONE_LARGE, EXACT, task="chat") for arm in (base, new)]
    compared = compare_rows(EXACT, *arms)
    task = Task(name="chat", data=TaskData())
    admitted = TaskComparison(task, "capability", compared, True, "")
    verdict = apply_rules([admitted], GatePolicy(), validity=None, target=None, identical=False)
    assert (verdict.outcome, verdict.items_needed) == ("inconclusive", None)
    assert "chat: too few clusters for an interval: 300 items in 21 clusters" in verdict.sentence


@pytest.mark.parametrize("seed", [0, 3])
def test_p_values_and_interval_are_of_one_distribution(seed):
    x = draw_differences(np.random.default_rng(seed), LOG_NORMAL, 0.4, 1)[0]
    c = compare_rows(
        GRADED, make_clustered_rows(0 * x, LOG_NORMAL), make_clustered_rows(x + 0.9 * seed / 3, LOG_NORMAL)
    )
    expected = stats.clustered_mean(x, np.repeat(range(len(LOG_NORMAL)), LOG_NORMAL)).df
    assert c.df == pytest.approx(expected)
    assert c.df < len(LOG_NORMAL) - 5
    assert (difference_p(c) < 0.05) == (not c.low <= 0 <= c.high)
    assert regression_p(c, -c.upper + 1e-6) > 0.05 > regression_p(c, -c.upper - 1e-6)
