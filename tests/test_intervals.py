"""Rates, samples and power: published numbers, a second source, and bad input."""

import pytest

from harness import stats


@pytest.mark.parametrize(
    "call",
    [
        lambda: stats.z_quantile(1.0),
        lambda: stats.clustered_mean([0.1, float("nan")], [0, 1]),
        lambda: stats.clustered_mean([], []),
        lambda: stats.paired_delta([], []),
    ],
)
def test_impossible_input_is_refused(call):
    with pytest.raises(ValueError, match=r"found|needed|must"):
        call()


# A part of a pool


def test_neyman_gives_more_items_to_what_varies_and_never_more_than_there_are():
    found = stats.neyman_allocation({"a": 100, "b": 100, "c": 10}, {"a": 0.5, "b": 0.1, "c": 0.5}, 60)
    assert sum(found.values()) == 60
    assert found["a"] > found["b"] >= 2
    assert found["c"] <= 10


def test_inclusion_weights_add_up_to_the_pool():
    weights = stats.inclusion_weights(["a", "a", "b"], {"a": 10, "b": 7})
    assert weights == [5, 5, 7]


@pytest.mark.parametrize(
    "call",
    [
        lambda: stats.neyman_allocation({"a": 3}, {"a": 0.1}, 4),
        lambda: stats.inclusion_weights(["a"], {"b": 4}),
    ],
)
def test_a_sample_that_does_not_fit_its_pool_is_refused(call):
    with pytest.raises(ValueError):  # noqa: PT011 (each says its own numbers)
        call()


@pytest.mark.parametrize("n", [1, 3, 7, 10, 50, 100, 150, 300, 7 / 3])
def test_the_interval_of_a_rate_ends_exactly_at_nothing_and_at_everything(n):
    assert stats.wilson(0, n).low == 0 < stats.wilson(0, n).high
    assert stats.wilson(n, n).high == 1 > stats.wilson(n, n).low
