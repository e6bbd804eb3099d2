"""Which items are asked: strata and looks depend on the base alone; weights make a sample represent all."""

from dataclasses import replace

import numpy as np
import pytest
from fake_rows import EXACT, rows
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from harness import stats
from harness.evaluation import sampling
from harness.evaluation.sampling import FEWEST_CLUSTERS, FEWEST_ITEMS
from harness.records import BLOCK

sizes = st.integers(4 * BLOCK, 12 * BLOCK)
margins = st.floats(0.002, 0.1)


def pool(n, seed=0):
    rng = np.random.default_rng(seed)
    answered = zip(rows((rng.random(n) < 0.6).astype(float)), rng.normal(0, 2, n).tolist(), strict=True)
    base_pool = sampling.pool_of([replace(row, margin=margin) for row, margin in answered], EXACT)
    assert base_pool
    return base_pool


def test_the_closest_calls_are_strata_each_of_one_score():
    right = np.arange(700) % 3 > 0
    base = [replace(row, margin=float(i - 350)) for i, row in enumerate(rows(right.astype(float)))]
    base_pool = sampling.pool_of(base, EXACT)
    quarters = [base_pool.sizes[f"quarter {k}, 0"] + base_pool.sizes[f"quarter {k}, 1"] for k in (1, 2, 3, 4)]
    assert quarters == [175] * 4
    assert {f"item-{i:04d}" for i in range(263, 438)} >= set(base_pool.ids["quarter 1, 1"])
    passed = {row.example_id for row, is_right in zip(base, right, strict=True) if is_right}
    assert {i for name, ids in base_pool.ids.items() if name.endswith(", 1") for i in ids} == passed
    assert [base_pool.expected[f"quarter {k}, 0"] for k in (1, 2, 3, 4)] == [0.35, 0.20, 0.10, 0.03]
    right = np.arange(700) % 2
    assert sampling.pool_of(rows(right.astype(float)), EXACT).sizes == {"all, 0": 350, "all, 1": 350}


@pytest.mark.parametrize(("chance", "by_score"), [(0.0, True), (0.25, True), (0.5, False)])
def test_a_task_near_chance_has_no_strata_of_the_score_by_which_its_halves_are_admitted(chance, by_score):
    right = np.arange(700) % 5 > 1  # 60 %
    assert sampling.pool_of(rows(right.astype(float)), EXACT, chance).by_score is by_score


def test_clusters_are_drawn_one_after_the_other_and_large_ones_no_sooner():
    sizes = [20] * 20 + [1] * 200
    codes = np.repeat(np.arange(220), sizes)
    answered = [replace(row, cluster=f"c{codes[i]}") for i, row in enumerate(rows(np.ones(600)))]
    base_pool = sampling.pool_of(answered, EXACT)
    cluster, large = {row.example_id: row.cluster for row in answered}, []
    for seed in range(200):
        order = sampling.order_items(base_pool, [{"all": 160}], seed)
        clusters_drawn = [cluster[i] for i in sampling.weights(base_pool, {"all": 160}, order)]
        cut = [c for c in set(clusters_drawn) if clusters_drawn.count(c) < list(cluster.values()).count(c)]
        assert len(cut) <= 1
        large.append(sum(sizes[int(c[1:])] > 1 for c in clusters_drawn) / 160)
    assert np.mean(large) == pytest.approx(400 / 600, abs=4 * np.std(large) / np.sqrt(200))


@pytest.mark.e2e
def test_tasks_are_asked_alike_and_small_ones_by_thirds():
    plan = sampling.plan({"a": sampling.pool_of(rows(np.full(150, 0.5)), EXACT)}, [], 0.01, 0.05)
    assert [plan.n("a", k) for k in range(len(plan.alphas))] == [50, 150]
    plan = sampling.plan({"a": pool(20_000), "b": pool(900)}, [], 0.03, 0.05)
    assert all(plan.n("a", k) == plan.n("b", k) for k in range(len(plan.alphas)))


@pytest.mark.parametrize(
    ("answered", "metric"),
    [
        (rows(np.ones(FEWEST_ITEMS - 1)), EXACT),
        (rows([None] + [1.0] * 699), EXACT),
        (rows(np.ones(5 * FEWEST_CLUSTERS - 5), cluster_size=5), EXACT),
        (rows(np.ones(10 * FEWEST_CLUSTERS - 10), cluster_size=10), EXACT),
    ],
    ids=["few items", "an error", "few of both", "few clusters"],
)
def test_what_cannot_be_drawn_from_is_asked_in_full(answered, metric):
    assert sampling.pool_of(answered, metric) is None


@pytest.mark.e2e
@settings(max_examples=12)
@given(sizes, sizes, margins)
def test_looks_grow_by_whole_blocks_and_never_beyond_the_task(n, m, margin):
    pools = {"a": pool(n), "b": pool(m)}
    plan = sampling.plan(pools, [100], margin, 0.05)
    for name, base_pool in pools.items():
        counts = [plan.n(name, k) for k in range(len(plan.alphas))]
        assert all(c % BLOCK == 0 or c == base_pool.n for c in counts)
        assert counts == sorted(counts)
        for before, after in zip(plan.drawn[name], plan.drawn[name][1:], strict=False):
            assert all(before[s] <= after[s] for s in before)
        assert all(2 <= look[s] <= base_pool.sizes[s] for look in plan.drawn[name] for s in look)


@pytest.mark.e2e
@settings(max_examples=12)
@given(sizes, margins, st.integers(0, 5))
def test_every_prefix_is_what_the_look_drew_and_stands_for_the_whole_task(n, margin, seed):
    base_pool = pool(n)
    looks = sampling.plan({"a": base_pool}, [], margin, 0.05).drawn["a"]
    order = sampling.order_items(base_pool, looks, seed)
    assert sorted(order) == sorted(i for ids in base_pool.ids.values() for i in ids)
    for counts in looks:
        weights = sampling.weights(base_pool, counts, order)
        assert {s: sum(i in weights for i in ids) for s, ids in base_pool.ids.items()} == counts
        assert sum(weights.values()) == pytest.approx(n)


def test_alpha_is_spent_by_what_the_looks_can_tell_and_not_by_their_number():
    base_pool = pool(2_000)
    plan = sampling.plan({"a": base_pool}, [], 0.03, 0.05)
    information = [1 / sampling.plan_variance(base_pool, look) for look in plan.drawn["a"]]
    bounds = stats.interim_bounds([i / information[-1] for i in information], 0.05)
    assert plan.alphas == pytest.approx([norm.sf(bound) for bound in bounds])


def test_a_look_asks_its_strata_mixed_in_an_order_that_the_seed_fixes():
    base_pool = pool(2_000)
    looks = sampling.plan({"a": base_pool}, [], 0.03, 0.05).drawn["a"]
    first = sampling.order_items(base_pool, looks, 0)[: BLOCK // 2]
    assert all(set(first) & set(ids) for ids in base_pool.ids.values())
    base_pool = pool(700)
    assert sampling.order_items(base_pool, [], 3) == sampling.order_items(base_pool, [], 3)
    assert sampling.order_items(base_pool, [], 3) != sampling.order_items(base_pool, [], 4)
    assert stats.inclusion_weights(["a"], {"a": 4}) == [4.0]


def test_the_weighted_delta_of_a_look_is_that_of_the_whole_task_on_average():
    base_pool, rng = pool(2_000), np.random.default_rng(1)
    rate = {i: base_pool.expected[s] for s, ids in base_pool.ids.items() for i in ids}
    change = {i: -float(rng.random() < r) for i, r in rate.items()}
    truth = np.mean(list(change.values()))
    looks = sampling.plan({"a": base_pool}, [], 0.03, 0.05).drawn["a"]
    deltas = []
    for seed in range(200):
        weights = sampling.weights(base_pool, looks[0], sampling.order_items(base_pool, looks, seed))
        deltas.append(np.average([change[i] for i in weights], weights=list(weights.values())))
    assert np.mean(deltas) == pytest.approx(truth, abs=4 * np.std(deltas) / np.sqrt(200))
    plain = np.sqrt(-truth * (1 + truth) / sum(looks[0].values()))
    assert np.std(deltas) < plain  # strata and the finite pool reduce the error
