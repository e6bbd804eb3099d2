"""Each statistic against published numbers, a second source, and changes that must not affect it."""

import inspect
import re
from math import log, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, special
from scipy import stats as scipy_stats
from statsmodels.stats import multitest

from harness import stats
from harness.stats import Interval, paired
from tests.golden import golden

LSAT = [576, 635, 558, 578, 666, 580, 555, 661, 651, 605, 653, 575, 545, 572, 594]
GPA = [3.39, 3.30, 2.81, 3.03, 3.44, 3.07, 3.00, 3.43, 3.36, 3.13, 3.12, 2.74, 2.76, 2.88, 2.96]

counts = st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(0, 200)).map(
    lambda c: c if any(c) else (0, 0, 1)
)
values = st.lists(st.floats(-1, 1), min_size=6, max_size=40)


def gains_losses_n(key):
    return (int(field.lstrip("bcnlg=")) for field in key.replace(",", " ").split()[:3])


@pytest.mark.parametrize(
    ("published", "interval"),
    [(golden("wilson"), stats.wilson), (golden("clopper"), stats.clopper_pearson)],
    ids=["wilson", "clopper"],
)
def test_intervals_of_a_rate_are_the_published_ones(published, interval):
    expected, tolerance = published
    for key, ends in expected.items():
        assert interval(*map(int, key.split("/"))) == pytest.approx(ends, abs=tolerance)


def test_mcnemar_gives_the_published_p_values():
    expected, tolerance = golden("mcnemar")
    for case in expected:
        p_values = stats.mcnemar(case["b"], case["c"])
        assert p_values == pytest.approx((case["exact"], case["midp"]), abs=tolerance)


def test_impossible_counts_margins_and_clusters_are_refused():
    with pytest.raises(ValueError, match="found 3 of 2"):
        stats.wilson(3, 2)
    with pytest.raises(ValueError, match="gains"):
        stats.tango_interval(3, 2, 4)
    with pytest.raises(ValueError, match="same items"):
        stats.paired_delta([0, 1], [1])
    mean = stats.clustered_mean([0.1, 0.4], ["a", "a"])
    assert mean.se is None
    with pytest.raises(ValueError, match="too few clusters"):
        stats.t_interval(mean)
    with pytest.raises(ValueError, match="two clusters"):
        stats.bootstrap(lambda w: w.sum(axis=-1), ["a", "a"])


def test_tango_gives_the_published_intervals_and_p_values():
    expected, tolerance = golden("tango")
    for key, case in expected.items():
        gains, losses, n = gains_losses_n(key)
        assert stats.tango_interval(gains, losses, n) == pytest.approx(case["ci95"], abs=tolerance)
        assert stats.tango_interval(gains, losses, n, 0.1) == pytest.approx(case["ci90"], abs=tolerance)
    expected, tolerance = golden("tango_noninf_p")
    for key, p in expected.items():
        margin = float(key.split("m")[1])
        p_value = stats.tango_regression_p(*gains_losses_n(key), margin)
        assert 1 - p_value == pytest.approx(p, abs=tolerance)


def test_normal_quantiles_are_exact():
    expected, tolerance = golden("z")
    assert stats.z_quantile(0.975) == pytest.approx(expected["za"], abs=tolerance)
    assert stats.z_quantile(0.8) == pytest.approx(expected["zb"], abs=tolerance)
    together = stats.z_quantile(0.975) + stats.z_quantile(0.8)
    assert (together, together**2) == pytest.approx((expected["sum"], expected["sq"]), abs=tolerance)


@pytest.mark.parametrize(
    ("correct", "name", "method"), [(stats.holm, "holm", "holm"), (stats.benjamini_hochberg, "bh", "fdr_bh")]
)
def test_a_correction_adjusts_the_published_list_and_agrees_with_statsmodels(correct, name, method):
    expected, tolerance = golden("multi")
    adjusted = correct(expected["p"])
    assert adjusted == pytest.approx(expected[name], abs=tolerance)
    assert sum(p < 0.05 for p in adjusted) == expected["reject"][name]
    p = [0.04, 0.001, 0.03, 0.2, 0.001]
    assert correct(p) == pytest.approx(multitest.multipletests(p, method=method)[1], abs=1e-12)


def test_the_paired_delta_gives_darwins_t():
    expected, tolerance = golden("darwin")
    delta = stats.paired_delta(np.zeros(15), expected["d"])
    t = delta.mean / delta.se
    assert (delta.mean, t) == pytest.approx((expected["mean"], expected["t"]), abs=tolerance)
    assert 2 * special.stdtr(delta.df, -t) == pytest.approx(expected["p_t"], abs=tolerance)


def correlation(weights):
    """Correlate LSAT with GPA under weights (d, n)."""
    x, y = np.array(LSAT, float), np.array(GPA)
    mean = lambda v: weights @ v / weights.sum(axis=-1)  # noqa: E731
    covariance = mean(x * y) - mean(x) * mean(y)
    return covariance / np.sqrt((mean(x * x) - mean(x) ** 2) * (mean(y * y) - mean(y) ** 2))


def test_bca_gives_the_law_school_interval():
    expected, tolerance = golden("bca_law")
    (boot,) = stats.bootstrap(correlation, np.arange(15), n_draws=40_000, seed=1)
    assert boot.estimate == pytest.approx(expected["r"], abs=1e-9)
    assert boot.draws.std(ddof=1) == pytest.approx(expected["se_boot"], abs=tolerance)
    assert stats.bca_interval(boot) == pytest.approx(expected["bca95"], abs=tolerance)
    assert stats.bca_interval(boot, 0.1) == pytest.approx(expected["bca90"], abs=tolerance)


@pytest.mark.parametrize(
    ("gains", "losses", "n", "delta"), [(3, 9, 60, -0.05), (8, 1, 40, 0.3), (0, 2, 9, -0.4)]
)
def test_tangos_statistic_is_the_score_at_the_numerically_likeliest_rates(gains, losses, n, delta):
    def minus_log_likelihood(loss_rate):
        return -(
            gains * np.log(loss_rate + delta)
            + losses * np.log(loss_rate)
            + (n - gains - losses) * np.log(1 - 2 * loss_rate - delta)
        )

    low, high = max(0, -delta) + 1e-12, (1 - delta) / 2 - 1e-12
    rate = optimize.minimize_scalar(minus_log_likelihood, bounds=(low, high), options={"xatol": 1e-12}).x
    z = (gains - losses - n * delta) / sqrt(n * (2 * rate + delta - delta**2))
    assert paired._tango_z(gains, losses, n, delta) == pytest.approx(z, abs=1e-4)


def test_the_paired_t_interval_agrees_with_scipy():
    rng = np.random.default_rng(1)
    base, new = rng.random(30), rng.random(30)
    expected = scipy_stats.ttest_rel(new, base).confidence_interval()
    interval = stats.t_interval(stats.paired_delta(base, new))
    assert interval == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_bca_agrees_with_scipy_and_falls_back_to_percentiles():
    x = np.random.default_rng(2).exponential(size=120)
    (boot,) = stats.bootstrap(lambda w: w @ x / w.sum(axis=-1), np.arange(120), seed=3)
    second = scipy_stats.bootstrap((x,), np.mean, n_resamples=10_000, rng=np.random.default_rng(4))
    assert stats.bca_interval(boot) == pytest.approx(tuple(second.confidence_interval), abs=0.02)

    draws = np.linspace(0, 1, 10_001)
    boot = stats.Bootstrap(0.4, draws, np.full(20, 0.4))
    assert stats.bca_interval(boot) == pytest.approx((0.025, 0.975))


def test_mover_of_symmetric_intervals_is_the_mean_with_its_plain_standard_error():
    mean, ends = stats.mover_mean([0.1, -0.3], [Interval(0.0, 0.2), Interval(-0.6, 0.0)])
    half = sqrt(0.1**2 + 0.3**2) / 2
    assert (mean, *ends) == pytest.approx((-0.1, -0.1 - half, -0.1 + half))
    mean, ends = stats.mover_mean([0.1], [Interval(-0.2, 0.15)])
    assert (mean, *ends) == pytest.approx((0.1, -0.2, 0.15))


@pytest.mark.parametrize(
    ("n", "equal", "at_margin"),
    [(200, 0.216, 0.047), (500, 0.399, 0.048), (1000, 0.627, 0.047), (2000, 0.882, 0.050)],
)
def test_noninferiority_power_is_near_the_simulated_table(n, equal, at_margin):
    """The table of passes at 10 % disagreement and margin 2 pp: equal model, and a true −2 pp."""
    assert stats.noninferiority_power(0.0, 0.02, stats.paired_se(0.1, n)) == pytest.approx(equal, abs=0.02)
    at = stats.noninferiority_power(-0.02, 0.02, stats.paired_se(0.1, n, -0.02))
    assert at == pytest.approx(at_margin, abs=0.01)


@given(counts)
def test_swapping_the_arms_mirrors_tangos_interval_which_holds_its_estimate(case):
    gains, losses, same = case
    n = gains + losses + same
    low, high = stats.tango_interval(gains, losses, n)
    assert stats.tango_interval(losses, gains, n) == pytest.approx((-high, -low), abs=1e-9)
    assert -1 <= low <= (gains - losses) / n <= high <= 1
    assert high - low > 0.001


@given(counts, st.floats(0.005, 0.2))
def test_the_noninferiority_test_and_the_interval_agree(case, margin):
    gains, losses, same = case
    n = gains + losses + same
    low = stats.tango_interval(gains, losses, n, 0.1).low
    if abs(low + margin) > 1e-9:
        assert (stats.tango_regression_p(gains, losses, n, margin) > 0.95) == (low > -margin)


@given(values)
def test_duplicated_items_narrow_nothing_and_a_design_effect_is_at_most_the_cluster_size(x):
    clusters = np.arange(len(x))
    once, twice = stats.clustered_mean(x, clusters), stats.clustered_mean(x * 2, [*clusters, *clusters])
    assert twice.se == pytest.approx(once.se, abs=1e-12)
    assert twice.df == once.df
    clusters = [i // 2 for i in range(len(x))]
    assert 1 <= stats.design_effect(x, clusters) <= 2 + 1e-9


def test_a_design_effect_is_the_cluster_size_where_clusters_flip_as_a_whole_and_one_where_items_do():
    assert stats.design_effect(np.zeros(40), np.arange(40) // 4) == pytest.approx(4)
    x = np.repeat(np.random.default_rng(0).random(100) < 0.4, 5)
    assert stats.design_effect(x, np.arange(500) // 5) == pytest.approx(5, abs=0.3)
    x = np.random.default_rng(0).random(1000) < 0.4
    assert stats.design_effect(x, np.arange(1000) // 5) == pytest.approx(1, abs=0.3)


def test_a_bootstrap_draws_whole_clusters_and_repeats_itself():
    x = np.random.default_rng(5).random(50)
    run = lambda: stats.bootstrap(lambda w: w @ x, np.arange(50), n_draws=500, seed=9)[0].draws  # noqa: E731
    assert (run() == run()).all()
    drawn_weights = []
    stats.bootstrap(lambda w: drawn_weights.append(w) or w.sum(axis=-1), np.arange(30) // 3, n_draws=50)
    for weights in drawn_weights:
        assert (weights[:, 0::3] == weights[:, 1::3]).all()
        assert (weights[:, 0::3] == weights[:, 2::3]).all()


def test_perfect_information_is_worth_what_the_design_and_a_simulation_say():
    assert stats.perfect_information(1, 2) == pytest.approx(0.3956, abs=5e-5)
    truth = np.random.default_rng(0).normal(1, 2, 2_000_000)
    simulated = np.maximum(truth, 0).mean() - max(truth.mean(), 0)
    assert stats.perfect_information(1, 2) == pytest.approx(simulated, abs=0.003)


@pytest.mark.parametrize(("n", "worth"), [(100, 0.1006), (500, 0.2700), (2000, 0.3556)])
def test_a_samples_worth_is_what_the_design_says(n, worth):
    assert stats.sample_information(1, 2, 31.62, n) == pytest.approx(worth, abs=5e-5)


def test_certainty_is_worth_nothing_and_bad_numbers_are_refused():
    assert stats.perfect_information(3, 0) == stats.sample_information(3, 0, 1, 10) == 0
    with pytest.raises(ValueError, match="sd >= 0"):
        stats.perfect_information(1, -1)
    with pytest.raises(ValueError, match="n > 0"):
        stats.sample_information(1, 1, 1, 0)


FUNCTIONS = {name: f for name, f in vars(stats).items() if inspect.isfunction(f)}
QUANTILES = {"t_quantile", "z_quantile"}  # no warning is needed for them


def test_a_statistic_names_its_source_and_when_not_to_use_it():
    docs = {name: inspect.getdoc(function) for name, function in FUNCTIONS.items()}
    assert [name for name, doc in docs.items() if not re.search(r"\nSource: \S", doc)] == []
    warning = r"\bNot\b|\bnot\s+(for|below|where)\b"
    assert {name for name, doc in docs.items() if not re.search(warning, doc)} == QUANTILES


SIXTY_TO_FORTY = golden("bt_2p_60_40")[0]["elo"]


def test_ratings_are_wins_with_ties_as_halves_and_elo():
    expected, tolerance = golden("bt_2p_60_40")
    base, winner = stats.bradley_terry([1] * 100, [0] * 100, [1.0] * 60 + [0.0] * 40, range(100))
    assert base == (0.0, 0.0, 0.0)
    assert winner.elo == pytest.approx(expected["elo"], abs=tolerance)
    assert winner.elo * log(10) / 400 == pytest.approx(expected["logit"], abs=tolerance)
    assert 0 <= winner.low < winner.elo < winner.high < 150

    rate = stats.win_rate(50, 30, 20)
    assert rate.rate == 0.6
    assert (rate.low, rate.high) == stats.wilson(60, 100)
    strength = stats.bradley_terry([1] * 100, [0] * 100, [1.0] * 50 + [0.0] * 30 + [0.5] * 20, range(100))[1]
    assert strength.elo == pytest.approx(SIXTY_TO_FORTY)

    assert stats.bradley_terry([1, 1, 1], [0, 0, 0], [1, 1, 1], "abc")[1] == (None, None, None)


def test_strengths_are_those_of_a_logistic_regression():
    from statsmodels.api import Logit

    draw = np.random.default_rng(3)
    first, second = draw.integers(0, 4, 400), draw.integers(0, 4, 400)
    differs = first != second
    first, second = first[differs], second[differs]
    strength = np.array([0.0, 0.5, -0.4, 1.0])
    won = (draw.random(len(first)) < 1 / (1 + np.exp(strength[second] - strength[first]))).astype(float)
    design = np.eye(4)[first] - np.eye(4)[second]
    expected = Logit(won, design[:, 1:]).fit(disp=0).params * 400 / np.log(10)
    strengths = stats.bradley_terry(first, second, won, range(len(first)), draws=50)
    assert [s.elo for s in strengths[1:]] == pytest.approx(list(expected), abs=1e-5)


@pytest.mark.e2e
def test_the_interval_holds_the_truth_as_often_as_it_says():
    draw, n_held = np.random.default_rng(0), 0
    for _ in range(200):
        won = (draw.random(100) < 0.6).astype(float)
        strength = stats.bradley_terry([1] * 100, [0] * 100, won, range(100), draws=200)[1]
        n_held += strength.low <= SIXTY_TO_FORTY <= strength.high
    assert 180 <= n_held <= 198


def columns(*raters):
    """Turn lines of labels, one per rater, into units; a dot is a missing label."""
    return [
        {i: line[unit] for i, line in enumerate(raters) if line[unit] != "."}
        for unit in range(len(raters[0]))
    ]


@pytest.mark.parametrize(
    ("raters", "expected"),
    [
        (("0100000010", "1110010000"), 0.095),
        (("aabbdcccedda", "babbbcccEddd".replace("E", "e")), 0.692),
        (("123321412...", "1233224125.3", ".3332342251.", "12332441251."), 0.743),
    ],
)
def test_agreement_is_that_of_krippendorffs_examples(raters, expected):
    assert stats.krippendorff_alpha(columns(*raters)) == pytest.approx(expected, abs=5e-4)


def test_agreement_on_graded_labels_is_krippendorffs():
    raters = ("123321412...", "1233224125.3", ".3332342251.", "12332441251.")
    units = [{rater: int(label) for rater, label in unit.items()} for unit in columns(*raters)]
    assert stats.krippendorff_alpha(units, graded=True) == pytest.approx(0.849, abs=5e-4)

    units = [{"a": grade, "b": grade + 1} for grade in (1, 2, 3, 4) for _ in range(10)]
    assert stats.krippendorff_alpha(units, graded=True) > 0.6
    assert stats.krippendorff_alpha(units) < 0
