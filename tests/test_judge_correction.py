"""A judge's scores corrected by people's labels: golden values, second sources, and answers that people judged."""

import numpy as np
import pytest
from conftest import find_shared_data
from hypothesis import given
from hypothesis import strategies as st

from harness import stats
from harness.comparison.judge_correction import (
    GradedArm,
    correct_difference,
    correct_score,
    count_more_labels,
)
from reports.studies import judge_correction as study
from tests.golden import golden

LABELS, GRADES = [1.0] * 6 + [0.0] * 4, [1.0] * 5 + [0.0, 1.0] + [0.0] * 3
REST = [1.0] * 60 + [0.0] * 40


@pytest.mark.parametrize(("name", "power"), [("classical", 0.0), ("ppi", 1.0), ("ppipp", None)])
def test_prediction_powered_means_are_the_published_ones(name, power):
    expected, tolerance = golden("ppi")
    found = stats.prediction_powered_mean(LABELS, GRADES, REST, power=power)
    wanted = expected[name]
    normal = stats.t_interval(found.mean._replace(df=np.inf))
    assert found.power == pytest.approx(wanted["lam"], abs=tolerance)
    assert (found.mean.mean, found.mean.se) == pytest.approx((wanted["theta"], wanted["se"]), abs=tolerance)
    assert normal == pytest.approx(wanted["ci95"], abs=tolerance)


def test_rogan_and_gladens_rate_has_the_published_interval():
    expected, tolerance = golden("rogan_gladen")
    wanted = expected["p.4 q0.7 q1.9 n1000 m200/200"]
    found = stats.rogan_gladen(0.4, 1000, 0.7, 200, 0.9, 200)
    assert found == pytest.approx((wanted["theta"], *wanted["ci"]), abs=tolerance)
    assert stats.rogan_gladen(0.4, 1000, 0.5, 200, 0.5, 200) is None


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("n50c10k1", (50, 10, 1)),
        ("n50c10k5", (50, 10, 5)),
        ("n50c10k10", (50, 10, 10)),
        ("n10c3k5", (10, 3, 5)),
    ],
)
def test_pass_at_k_is_the_published_one(name, counts):
    expected, tolerance = golden("passk")
    assert stats.pass_at_k(*counts) == pytest.approx(expected[name], abs=tolerance)


def test_kappa_of_two_labels_is_that_of_statsmodels():
    from statsmodels.stats.inter_rater import cohens_kappa, to_table

    draw = np.random.default_rng(5)
    people = (draw.random(300) < 0.6).astype(float)
    judge = np.where(draw.random(300) < 0.2, 1 - people, people)
    expected = cohens_kappa(to_table(np.column_stack([people, judge]).astype(int))[0])
    found = stats.cohen_kappa(people, judge)
    assert found.kappa == pytest.approx(expected.kappa)
    assert (found.low, found.high) == pytest.approx((expected.kappa_low, expected.kappa_upp), abs=0.02)


def test_kappa_of_graded_labels_is_that_of_sklearn_with_quadratic_weights():
    from sklearn.metrics import cohen_kappa_score

    draw = np.random.default_rng(6)
    people = draw.integers(0, 5, 200)
    judge = np.clip(people + draw.integers(-1, 2, 200), 0, 4)
    found = stats.cohen_kappa(people / 4, judge / 4)
    assert found.kappa == pytest.approx(cohen_kappa_score(people, judge, weights="quadratic"))


def test_agreement_on_labels_that_are_all_the_same_is_unknown():
    assert stats.cohen_kappa([1, 1, 1], [1, 1, 1]) is None
    assert stats.cohen_kappa([1, 1, 1], [0, 1, 1]) is None
    assert stats.cohen_kappa([0, 1, 1], [0.5, 0.5, 0.5]) is None


def test_the_best_power_has_the_smallest_error():
    draw = np.random.default_rng(7)
    labels = (draw.random(80) < 0.5).astype(float)
    grades = np.where(draw.random(80) < 0.25, 1 - labels, labels)
    rest = (draw.random(400) < 0.5).astype(float)
    best = stats.prediction_powered_mean(labels, grades, rest)
    others = [stats.prediction_powered_mean(labels, grades, rest, power=p) for p in np.linspace(0, 1, 21)]
    # The spread of the grades is taken over all of them, so the best is that up to this sample's own.
    assert best.mean.se <= min(o.mean.se for o in others) * 1.01
    assert 0 < best.power < 1


@given(st.lists(st.booleans(), min_size=20, max_size=40), st.integers(0, 2**32 - 1))
def test_swapping_the_arms_turns_the_sign_of_a_corrected_difference_and_nothing_else(labels, seed):
    draw, n = np.random.default_rng(seed), len(labels)

    def arm(people):
        of = np.asarray(people, float)
        of[n // 2 :] = np.nan
        return GradedArm(draw.integers(0, 2, n).astype(float), of, np.arange(n))

    base, new = arm(labels), arm(labels[::-1])
    there, back = correct_difference(base, new), correct_difference(new, base)
    assert (there.score, there.low, there.high) == pytest.approx((-back.score, -back.high, -back.low))


@pytest.mark.parametrize(("n_clusters", "size", "n_labels"), [(100, 4, 100), (25, 16, 100), (40, 10, 200)])
def test_corrected_intervals_hold_the_truth_where_items_share_clusters(n_clusters, size, n_labels):
    draw, n, draws = np.random.default_rng(13), n_clusters * size, 300
    clusters = np.repeat(np.arange(n_clusters), size)

    def arm(rate, has):
        people = (draw.random(n) < draw.beta(rate, 1 - rate, n_clusters)[clusters]).astype(float)
        passes = draw.random(n) < draw.beta(0.15, 0.85, n_clusters)[clusters]  # whatever people say
        return GradedArm(np.where(passes, 1.0, people), np.where(has, people, np.nan), clusters)

    hits = np.zeros(2)
    for _ in range(draws):
        has = draw.permutation(n) < n_labels
        base, new = arm(0.4, has), arm(0.55, has)
        score, change = correct_score(new), correct_difference(base, new)
        hits += score.low <= 0.55 <= score.high, change.low <= 0.15 <= change.high
    assert (hits / draws > 0.95 - 3 * (0.95 * 0.05 / draws) ** 0.5).all()


def test_a_judge_that_guesses_gives_no_more_than_the_labels_alone():
    draw = np.random.default_rng(9)
    people = (draw.random(1000) < 0.6).astype(float)
    labels = np.where(np.arange(1000) < 100, people, np.nan)
    arm = GradedArm((draw.random(1000) < 0.6).astype(float), labels, np.arange(1000))
    corrected, alone = correct_score(arm), correct_score(arm, power=0.0)
    assert corrected.power < 0.15
    assert corrected.high - corrected.low > 0.97 * (alone.high - alone.low)


def test_so_many_more_labels_settle_a_difference_four_times_in_five():
    draw = np.random.default_rng(10)

    def arms(n_labels, seed):
        draw = np.random.default_rng(seed)
        base = (draw.random(2000) < 0.5).astype(float)
        new = np.where(draw.random(2000) < 0.3, (draw.random(2000) < 0.75).astype(float), base)
        judged = [np.where(draw.random(2000) < 0.15, 1 - y, y) for y in (base, new)]
        has = np.arange(2000) < n_labels
        return [
            GradedArm(f, np.where(has, y, np.nan), np.arange(2000))
            for f, y in zip(judged, (base, new), strict=True)
        ]

    asked = []
    for seed in draw.integers(0, 10**6, 40):
        old, now = arms(60, seed)
        found = correct_difference(old, now)
        asked.append(count_more_labels(old, now, found._replace(score=0.075, low=-0.1)))
    n = 60 + round(np.median([a for a in asked if a]))
    settled = [correct_difference(*arms(n, seed)).low > 0 for seed in range(300)]
    assert 0.7 < np.mean(settled) < 0.9


def test_no_number_of_labels_settles_a_difference_that_the_items_cannot_show():
    draw = np.random.default_rng(11)
    old, now = (
        GradedArm(y := (draw.random(200) < 0.5).astype(float), y.copy(), np.arange(200)) for _ in range(2)
    )
    found = correct_difference(old, now)
    assert count_more_labels(old, now, found._replace(score=0.001, low=-0.1, high=0.1)) is None


@pytest.fixture(scope="module")
def answers():
    find_shared_data("rows/xstest_results/all.jsonl.gz")
    return study.read_answers(find_shared_data("README.md").parent)


@pytest.mark.parametrize("judge", study.JUDGES)
def test_uncorrected_judges_miss_what_people_say_of_most_models(answers, judge):
    for missed in study.count_uncorrected(answers, judge, 300, study.pairs(answers)):
        assert missed.mean < 0.4
        assert missed.least == 0


@pytest.mark.parametrize("judge", study.JUDGES)
@pytest.mark.parametrize("n_labels", study.SIZES)
def test_corrected_rates_and_differences_hold_what_people_say(answers, judge, n_labels):
    draws = 150
    for found in study.coverage(answers, judge, n_labels, draws, study.pairs(answers)[:2]):
        error = (0.95 * 0.05 / draws) ** 0.5
        assert found.least > 0.95 - 4 * error
        assert found.mean > 0.95 - 2.5 * error


def test_the_preference_for_length_is_that_which_alpaca_evals_own_correction_takes_out():
    find_shared_data("rows/alpaca_eval_annotations/alpaca_eval_gpt4.jsonl.gz")
    found = study.length_bias(find_shared_data("README.md").parent)
    assert found.n_models >= 58
    assert found.share_longer > 0.95
    assert found.share_alike > 0.95
    assert found.rank > 0.7


def test_a_slope_is_that_of_statsmodels_with_errors_by_cluster():
    from statsmodels.api import OLS, add_constant

    draw = np.random.default_rng(12)
    groups = np.repeat(np.arange(150), 2)
    x = draw.normal(size=300)
    y = 0.3 * x + draw.normal(size=150)[groups] + draw.normal(size=300)
    fit = OLS(y, add_constant(x)).fit(cov_type="cluster", cov_kwds={"groups": groups})
    found = stats.clustered_slope(x, y, groups)
    assert found.mean == pytest.approx(fit.params[1])
    assert found.se == pytest.approx(fit.bse[1], rel=0.02)
    with pytest.raises(ValueError, match="varies"):
        stats.clustered_slope(np.ones(4), np.arange(4), np.arange(4))


def test_the_win_rates_and_errors_of_alpaca_eval_are_the_published_ones():
    find_shared_data("rows/alpaca_eval_annotations/alpaca_eval_gpt4.jsonl.gz")
    for annotator, n in zip(study.ALPACA, (59, 52), strict=True):
        found = study.win_rates(find_shared_data("README.md").parent, annotator)
        assert found.n_models == n
        assert max(found.win_rate_off, found.error_off) < 0.001
