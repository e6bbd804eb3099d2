"""What a series of nights shows: no false alarms, a real loss soon, and which items a night asks."""

import numpy as np
import pytest

from harness import stats
from harness.nightly.alarm import DRIFT_E, Tally, drift_e, judge, tally, worst_verdict
from harness.nightly.rotation import build_pool, ids_by_task, next_items
from harness.records import Example

NIGHTS, ITEMS, ALPHA, SERIES = 30, 60, 0.05, 2


def nights(rng, gain, loss, n=ITEMS, of=NIGHTS):
    drawn = rng.multinomial(n, [gain, loss, 1 - gain - loss], of)
    return [Tally(int(g), int(lost), n, float(g - lost), float(g + lost)) for g, lost, _ in drawn]


def alarmed(tallies, n_series=SERIES):
    """Return the first night of the alarm, or None."""
    looks = (judge(tallies[: k + 1], ALPHA, n_series).verdict for k in range(len(tallies)))
    return next((k + 1 for k, verdict in enumerate(looks) if verdict == "regression"), None)


def test_an_unchanged_model_raises_at_most_five_percent_false_alarms_over_200_months():
    rng = np.random.default_rng(5)
    months = [any(alarmed(nights(rng, 0.05, 0.05)) for _ in range(SERIES)) for _ in range(200)]
    assert np.mean(months) <= 0.05


def test_a_loss_of_five_points_is_found_by_night_seven_in_the_median():
    rng = np.random.default_rng(6)
    found = [alarmed(nights(rng, 0.025, 0.075)) or NIGHTS + 1 for _ in range(200)]
    assert np.median(found) <= 7
    assert np.mean(np.array(found) <= NIGHTS) > 0.95


def test_a_gain_is_no_alarm():
    rng = np.random.default_rng(7)
    assert alarmed(nights(rng, 0.20, 0.02)) is None


def test_what_is_suspected_says_how_many_more_nights_would_settle_it():
    rng = np.random.default_rng(8)
    tallies = nights(rng, 0.025, 0.075)
    looks = [judge(tallies[: k + 1], ALPHA, SERIES) for k in range(alarmed(tallies))]
    suspected = [one for one in looks if one.verdict == "suspect"]
    assert suspected
    assert all(1 <= one.more_nights <= 30 for one in suspected)
    assert looks[-1].more_nights is None


def test_a_sudden_loss_after_many_quiet_nights_is_suspected_within_days():
    rng = np.random.default_rng(9)
    before, after = nights(rng, 0.05, 0.05, of=60), nights(rng, 0.02, 0.12, of=10)
    first = next(k for k in range(10) if judge([*before, *after[: k + 1]], ALPHA, SERIES).verdict != "ok")
    assert first <= 4


def test_an_alarm_stays_though_later_nights_are_better():
    bad, good = Tally(0, 12, 60, -12.0, 12.0), Tally(12, 0, 60, 12.0, 12.0)
    assert judge([bad, good, good], ALPHA, SERIES).verdict == "regression"


def test_series_of_one_candidate_share_its_chance_of_a_false_alarm():
    losses = next(k for k in range(60) if 1 / ALPHA <= stats.sign_e_value(0, k) < SERIES / ALPHA)
    night = [Tally(0, losses, 60, -float(losses), float(losses))]
    assert [judge(night, ALPHA, n).verdict for n in (1, SERIES)] == ["regression", "suspect"]


def test_no_night_and_empty_nights_show_nothing():
    for tallies in ([], [tally([])], [tally([0.0] * 60)] * 5):
        found = judge(tallies, ALPHA, SERIES)
        assert (found.verdict, found.gains, found.losses) == ("ok", 0, 0)
    assert judge([], ALPHA).delta is None


def test_the_mean_change_lies_in_its_ends_which_narrow():
    rng = np.random.default_rng(10)
    tallies = nights(rng, 0.02, 0.08)
    few, many = judge(tallies[:5], ALPHA), judge(tallies, ALPHA)
    assert many.low < -0.06 < many.high
    assert many.high - many.low < few.high - few.low


def test_changes_are_counted_by_their_sign():
    assert tally([0.5, -0.25, 0.0, 1e-15]) == Tally(1, 1, 4, pytest.approx(0.25), pytest.approx(0.3125))


# The harness


def test_the_base_moves_at_the_a_a_rate_without_an_alarm():
    rng = np.random.default_rng(11)

    def month():
        drawn = [(int(k), 120) for k in rng.binomial(120, 0.022, NIGHTS)]
        return any(drift_e(drawn[: k + 1], 0.022) >= DRIFT_E for k in range(NIGHTS))

    assert np.mean([month() for _ in range(200)]) <= 0.05


def test_a_base_that_moves_more_often_is_found_though_it_was_quiet_for_long():
    quiet = [(2, 120)] * 200
    assert drift_e(quiet, 0.022) < DRIFT_E
    assert drift_e([*quiet, (20, 120), (20, 120)], 0.022) >= DRIFT_E


def test_the_worst_verdict_counts():
    assert worst_verdict(["ok", "suspect", "regression", "harness-drift"]) == "regression"
    assert worst_verdict([]) == "ok"


# What a night asks


def items(n, of=2):
    return [Example(f"i{k}", (), ("x",), cluster=f"c{k // of}") for k in range(n)]


def test_clusters_are_asked_whole_anchors_every_night_and_the_others_in_turn():
    pool = build_pool({"a": items(40), "b": items(40)}, n_anchors=4)
    first = next_items(pool, 0, 10)
    second = next_items(pool, first.taken, 10)
    assert first.anchors == second.anchors
    assert sum(map(len, first.anchors)) == 4
    assert sum(map(len, first.fresh)) == 10
    assert not set(first.fresh) & set(second.fresh)
    assert not set(first.anchors) & {*first.fresh, *second.fresh}
    assert all(len(cluster) == 2 for cluster in first.fresh)
    assert set(ids_by_task(first.fresh)) == {"a", "b"}


def test_a_pool_goes_round_and_says_when_it_is_used_up():
    pool = build_pool({"a": items(20, of=1)}, n_anchors=2)
    taken, left = 0, []
    for _ in range(4):
        one = next_items(pool, taken, 6)
        taken, left = one.taken, [*left, one.left]
    assert left == [12, 6, 0, 0]
    assert next_items(pool, 18, 6).fresh == next_items(pool, 0, 6).fresh


def test_a_pool_smaller_than_a_night_is_asked_once():
    pool = build_pool({"a": items(4, of=1)}, n_anchors=1)
    assert len(next_items(pool, 0, 60).fresh) == 3
    assert next_items(build_pool({"a": items(2, of=1)}, n_anchors=5), 0, 60).fresh == ()
