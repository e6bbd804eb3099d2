"""A simulated year of nights: an unchanged recipe rarely raises an alarm, even with lucky seeds.

A seed effect of one point is shared by all items of a training, and by all rows of the reference.
"""

import numpy as np
import pytest
from years import Year, alarm_rate, draw_year, find_first_alarm, median_night

from harness.lifecycle.nightly_verdicts import Seeds

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("answers", "made_every"),
    [
        ("binary", 1), ("graded", 7), ("binary", None), ("graded", None),
        *(pytest.param(*year, marks=pytest.mark.weekly) for year in (("binary", 7), ("graded", 1))),
    ],
)  # fmt: skip
def test_a_quiet_year_in_which_the_pool_goes_round_raises_few_alarms(answers, made_every):
    """In 20 years of two series each, two alarms have a probability of 26 % at a rate of 5 %, four of 2 %."""
    assert alarm_rate(Year(answers, 3000, made_every), 20) <= 3 / 20


def test_a_lucky_reference_is_alarmed_about_where_seeds_are_left_out_and_not_where_they_count():
    rng, year = np.random.default_rng(2), Year("graded", 6000, 1)
    quiet = [draw_year(year, rng) for _ in range(15)]
    left_out, counted = (
        sum(find_first_alarm(nights, seeds) is not None for nights in quiet)
        for seeds in (Seeds(0.0), year.seeds)
    )
    assert left_out >= 3
    assert counted <= 2


@pytest.mark.parametrize(("answers", "by"), [("binary", 7), ("graded", 7)])
def test_five_points_lost_by_weights_made_anew_every_night_are_found_within_a_week(answers, by):
    assert median_night(Year(answers, 6000, 1, n_references=3, n_nights=40), 40) <= by
