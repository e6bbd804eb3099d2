"""The one formatter: digits, signs and units."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import formatting


def test_an_interval_has_as_many_digits_as_it_is_narrow_and_no_sign_at_zero():
    assert formatting.interval(0.81, 0.75, 0.86) == "81.0 [75, 86]"
    assert formatting.points(-0.004, -0.015, 0.007) == "−0.4 [−1.5, +0.7]"
    assert formatting.points(0.07, 0.02, 0.12) == "+7.0 [+2, +12]"
    assert formatting.points(-0.004, -0.015, 0.007, whole=True) == "−0.4 [−2, +1]"
    assert formatting.points(-0.0001, -0.0002, 0.0002) == "0.0 [0.0, 0.0]"
    assert formatting.figure(14.0, -4.0, 24375.4) == "14 [−4, 24,375]"
    assert formatting.count(3080) == "3,080"


@pytest.mark.parametrize(
    ("amount", "text"),
    [(0.11, "0.11"), (0.00041, "0.00041"), (0.0004, "0.0004"), (0, "0.00"), (1250, "1,250"), (math.inf, "∞")],
)
def test_an_amount_keeps_two_significant_digits_and_no_more(amount, text):
    assert formatting.usd(amount) == text


@pytest.mark.parametrize(
    ("time_s", "text"),
    [
        (0.0002, "<1 ms"),
        (0.034, "34 ms"),
        (0.2, "0.2 s"),
        (45.3, "45 s"),
        (59.7, "1 min 0 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
    ],
)
def test_a_time_is_printed_in_the_unit_that_fits(time_s, text):
    assert formatting.seconds(time_s) == text


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (14.0, "14"),
        (7.134, "7.134"),
        (0.00234, "0.0023"),
        (-2e-5, "0"),
        (-3.5, "−3.5"),
        (31693.2, "31,693"),
        (None, "–"),
    ],
)
def test_a_figure_has_at_most_four_digits_and_four_decimals(x, text):
    assert formatting.figure(x) == text


def test_a_metric_that_is_no_rate_is_printed_in_its_own_unit():
    perplexity = formatting.Unit(1.0, "perplexity", higher_is_better=False)
    assert formatting.score(perplexity, 12.3, 11.9, 12.8) == "12.300 [11.900, 12.800]"
    assert formatting.change(perplexity, 0.042) == "+0.042"
    assert formatting.score(formatting.RATE, 0.5) == "50.0"


@pytest.mark.parametrize(
    "print_it", [formatting.percent, formatting.points, formatting.usd, formatting.seconds, formatting.count]
)
@pytest.mark.parametrize("unknown", [None, math.nan])
def test_what_is_unknown_is_a_dash(print_it, unknown):
    assert print_it(unknown) == "–"


@given(st.floats(-1, 1), st.floats(0, 1), st.floats(0, 1))
def test_swapping_the_arms_swaps_signs_and_nothing_else(delta, below, above):
    swapped = {"+": "−", "−": "+"}
    there = formatting.points(delta, delta - below, delta + above)
    back = formatting.points(-delta, -delta - above, -delta + below)
    middle, low, high = there.replace("[", "").replace("]", "").replace(",", "").split()
    mirrored = [swapped.get(x[0], x[0]) + x[1:] for x in (middle, high, low)]
    assert back == f"{mirrored[0]} [{mirrored[1]}, {mirrored[2]}]"


@given(st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True)))
def test_no_number_breaks_the_formatter_and_none_has_a_hyphen_for_a_minus(x):
    printed = [
        formatting.percent(x),
        formatting.points(x, x, x),
        formatting.usd(x),
        formatting.count(x),
        formatting.plain(x),
    ]
    assert not any("-" in text or "nan" in text for text in printed)
