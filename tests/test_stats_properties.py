"""What no statistic may depend on: the order of items, which arm is called new, where 0 lies, copies in a cluster."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import stats
from harness.stats import Interval

changes = st.lists(st.floats(-1, 1), min_size=6, max_size=30)
shifts = st.floats(-3, 3)
counts = st.integers(0, 40)
seeds = st.integers(0, 2**32 - 1)


def bca_of_the_mean(x, clusters):
    (boot,) = stats.bootstrap(lambda w: w @ x / w.sum(axis=-1), clusters, n_draws=200)
    return stats.bca_interval(boot)


@given(st.lists(st.floats(-1, 1), min_size=8, max_size=30), shifts)
def test_a_constant_shift_moves_the_clustered_t_interval(x, shift):
    clusters = np.arange(len(x)) // 2
    plain = stats.t_interval(stats.clustered_mean(x, clusters))
    moved = stats.t_interval(stats.clustered_mean(np.add(x, shift), clusters))
    assert moved == pytest.approx([end + shift for end in plain], abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(8, 30), seeds, st.floats(0.5, 3))
def test_a_constant_shift_moves_the_bca_interval(n, seed, shift):
    x, clusters = np.random.default_rng(seed).normal(size=n), np.arange(n) // 2
    plain, moved = bca_of_the_mean(x, clusters), bca_of_the_mean(x + shift, clusters)
    assert moved == pytest.approx([end + shift for end in plain], abs=1e-6)


@given(st.lists(st.lists(st.floats(-1, 1), min_size=2, max_size=4), min_size=2, max_size=4), shifts)
def test_a_constant_shift_of_a_recipe_changes_no_variance_between_seeds(recipes, shift):
    moved = [[x + shift * i for x in of] for i, of in enumerate(recipes)]
    plain, after = stats.seed_variance(recipes), stats.seed_variance(moved)
    assert after == (pytest.approx(plain.variance, abs=1e-9), plain.df)


@given(
    st.lists(st.tuples(st.floats(-1, 1), st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=8), shifts
)
def test_a_constant_shift_moves_the_macro_and_so_does_turning_its_sign(tasks, shift):
    deltas = [d for d, _, _ in tasks]
    ends = [Interval(d - below, d + above) for d, below, above in tasks]
    mean, (low, high) = stats.mover_mean(deltas, ends)
    moved = stats.mover_mean([d + shift for d in deltas], [Interval(a + shift, b + shift) for a, b in ends])
    turned = stats.mover_mean([-d for d in deltas], [Interval(-b, -a) for a, b in ends])
    assert (moved[0], *moved[1]) == pytest.approx((mean + shift, low + shift, high + shift), abs=1e-9)
    assert (turned[0], *turned[1]) == pytest.approx((-mean, -high, -low), abs=1e-9)


@given(changes)
def test_swapping_the_arms_flips_the_sign_of_a_paired_delta(new):
    base = np.zeros(len(new))
    there, back = stats.paired_delta(base, new), stats.paired_delta(new, base)
    assert (back.mean, back.se) == pytest.approx((-there.mean, there.se), abs=1e-12)


@given(counts, counts)
def test_swapping_the_arms_leaves_mcnemar_and_mirrors_a_win_rate(wins, losses):
    assert stats.mcnemar(wins, losses) == stats.mcnemar(losses, wins)
    if wins + losses:
        one, other = stats.win_rate(wins, losses), stats.win_rate(losses, wins)
        assert (other.rate, other.low, other.high) == pytest.approx((1 - one.rate, 1 - one.high, 1 - one.low))


@given(changes, seeds)
def test_permuting_the_items_changes_nothing(x, seed):
    order = np.random.default_rng(seed).permutation(len(x))
    y, clusters = np.array(x), np.arange(len(x)) % 3
    found = [
        (
            stats.design_effect(y[o], clusters[o]),
            stats.count_differing_clusters(y[o], clusters[o]),
            stats.clustered_mean(y[o], clusters[o]).se,
        )
        for o in (np.arange(len(x)), order)
    ]
    assert found[1] == pytest.approx(found[0], abs=1e-9)


@given(changes, st.integers(2, 4))
def test_copies_inside_a_cluster_make_nothing_surer(x, times):
    clusters = np.arange(len(x))
    copied, of = np.tile(x, times), np.tile(clusters, times)
    assert stats.clustered_mean(copied, of).se >= stats.clustered_mean(x, clusters).se - 1e-12
