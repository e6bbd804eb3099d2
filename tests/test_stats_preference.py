"""Preferences of people: every number against a second source, and published human labels."""

import gzip
import json
from math import log

import numpy as np
import pytest
from conftest import find_shared_data

from harness import stats
from tests.golden import golden

SIXTY_TO_FORTY = golden("bt_2p_60_40")[0]["elo"]


def test_sixty_to_forty_is_seventy_elo():
    expected, tolerance = golden("bt_2p_60_40")
    base, other = stats.bradley_terry([1] * 100, [0] * 100, [1.0] * 60 + [0.0] * 40, range(100))
    assert base == (0.0, 0.0, 0.0)
    assert other.elo == pytest.approx(expected["elo"], abs=tolerance)
    assert other.elo * log(10) / 400 == pytest.approx(expected["logit"], abs=tolerance)
    assert 0 <= other.low < other.elo < other.high < 150


def test_ties_are_half_a_win_for_each_side():
    rate = stats.win_rate(50, 30, 20)
    assert rate.rate == 0.6
    assert (rate.low, rate.high) == stats.wilson(60, 100)
    strength = stats.bradley_terry([1] * 100, [0] * 100, [1.0] * 50 + [0.0] * 30 + [0.5] * 20, range(100))[1]
    assert strength.elo == pytest.approx(SIXTY_TO_FORTY)


def test_the_interval_of_a_rate_is_that_of_statsmodels():
    from statsmodels.stats.proportion import proportion_confint

    found = stats.win_rate(41, 19)
    assert (found.low, found.high) == pytest.approx(proportion_confint(41, 60, method="wilson"))


def test_strengths_are_those_of_a_logistic_regression():
    from statsmodels.api import Logit

    draw = np.random.default_rng(3)
    first, second = draw.integers(0, 4, 400), draw.integers(0, 4, 400)
    kept = first != second
    first, second = first[kept], second[kept]
    strength = np.array([0.0, 0.5, -0.4, 1.0])
    won = (draw.random(len(first)) < 1 / (1 + np.exp(strength[second] - strength[first]))).astype(float)
    design = np.eye(4)[first] - np.eye(4)[second]
    expected = Logit(won, design[:, 1:]).fit(disp=0).params * 400 / np.log(10)
    found = stats.bradley_terry(first, second, won, range(len(first)), draws=50)
    assert [s.elo for s in found[1:]] == pytest.approx(list(expected), abs=1e-5)


def test_a_side_that_wins_everything_has_no_finite_strength():
    assert stats.bradley_terry([1, 1, 1], [0, 0, 0], [1, 1, 1], "abc")[1] == (None, None, None)


def test_items_rated_by_many_are_resampled_as_one():
    results = [1.0] * 30 + [0.0] * 20
    alone = stats.bradley_terry([1] * 50, [0] * 50, results, range(50))[1]
    five_raters = stats.bradley_terry([1] * 250, [0] * 250, results * 5, list(range(50)) * 5)[1]
    assert five_raters == pytest.approx(alone)


@pytest.mark.e2e
def test_the_interval_holds_the_truth_as_often_as_it_says():
    draw, held = np.random.default_rng(0), 0
    for _ in range(200):
        won = (draw.random(100) < 0.6).astype(float)
        found = stats.bradley_terry([1] * 100, [0] * 100, won, range(100), draws=200)[1]
        held += found.low <= SIXTY_TO_FORTY <= found.high
    assert 180 <= held <= 198


def columns(*raters):
    """Turn lines of labels, one a rater, into units; a dot is no label."""
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


def test_agreement_on_graded_labels_is_that_of_krippendorffs_interval_data():
    raters = ("123321412...", "1233224125.3", ".3332342251.", "12332441251.")
    units = [{who: int(label) for who, label in unit.items()} for unit in columns(*raters)]
    assert stats.krippendorff_alpha(units, graded=True) == pytest.approx(0.849, abs=5e-4)


def test_raters_who_differ_by_one_grade_agree_on_graded_labels_alone():
    units = [{"a": grade, "b": grade + 1} for grade in (1, 2, 3, 4) for _ in range(10)]
    assert stats.krippendorff_alpha(units, graded=True) > 0.6
    assert stats.krippendorff_alpha(units) < 0


@pytest.mark.parametrize("name", ["llmbar", "processed"])
def test_published_human_labels_give_the_numbers_of_other_libraries(name):
    from scipy.stats import binomtest
    from statsmodels.api import Logit
    from statsmodels.stats.proportion import proportion_confint

    with gzip.open(find_shared_data(f"rows/llmbar/{name}.jsonl.gz"), "rt") as file:
        rows = [json.loads(line) for line in file]
    won = [float(int(row["label"]) == 1) for row in rows]
    wins, n = int(sum(won)), len(won)
    found = stats.win_rate(wins, n - wins)
    assert (found.low, found.high) == pytest.approx(proportion_confint(wins, n, method="wilson"))
    assert found.p == pytest.approx(binomtest(wins, n).pvalue)
    strength = stats.bradley_terry([1] * n, [0] * n, won, range(n))[1]
    fitted = Logit(won, np.ones((n, 1))).fit(disp=0)
    assert strength.elo == pytest.approx(fitted.params[0] * 400 / np.log(10), abs=1e-6)
    half = 1.96 * fitted.bse[0] * 400 / np.log(10)
    assert (strength.low, strength.high) == pytest.approx((strength.elo - half, strength.elo + half), abs=6)
