"""What begins alike is computed once, nothing sees another branch, and batches cost least."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.models.batching import Size, common_length, count_shared_prefix, grow, pack, plan

# Few ids, so that sequences begin alike.
IDS = st.lists(st.integers(1, 3), min_size=1, max_size=9).map(tuple)
PAIRS = st.lists(st.tuples(IDS, IDS), min_size=1, max_size=12)
SHORT = st.lists(st.integers(1, 3), min_size=1, max_size=4).map(tuple)
FEW_TOKENS = st.lists(st.tuples(SHORT, SHORT), min_size=1, max_size=6)  # attention costs less than one token
BUDGETS = st.integers(1, 40)
LENGTHS = st.lists(st.integers(1, 90), max_size=40)
SIZES = st.builds(Size, st.integers(1, 12), st.integers(1, 400))
PURE = settings(deadline=None)

# Trees


def list_seen_ids(tree, token):
    """Return the ids that a token sees, itself last."""
    return tuple(tree.ids[i] for i in range(token + 1) if token < tree.ends[i])


def row(pairs, number):
    """Return the tokens of a pair that predict something."""
    context, continuation = pairs[number]
    return context + continuation[:-1]


@PURE
@given(PAIRS, BUDGETS)
def test_every_pair_is_in_one_tree(pairs, budget):
    numbers = [number for tree in grow(pairs, budget) for number in tree.numbers]
    assert sorted(numbers) == list(range(len(pairs)))


@PURE
@given(PAIRS, BUDGETS)
def test_what_predicts_a_token_sees_what_stands_before_it_and_no_other_branch(pairs, budget):
    for tree in grow(pairs, budget):
        for number, sources in zip(tree.numbers, tree.sources, strict=True):
            context, continuation = pairs[number]
            before = [(*context, *continuation[:i]) for i in range(len(continuation))]
            assert [list_seen_ids(tree, source) for source in sources] == before


@PURE
@given(PAIRS, BUDGETS)
def test_a_tree_computes_each_needed_position_once_and_no_other(pairs, budget):
    for tree in grow(pairs, budget):
        rows = [row(pairs, n) for n in tree.numbers]
        needed = {tokens[:i] for tokens in rows for i in range(1, len(tokens) + 1)}
        computed = [list_seen_ids(tree, token) for token in range(tree.n_tokens)]
        assert len(computed) == len(needed)
        assert set(computed) == needed


@PURE
@given(PAIRS, BUDGETS)
def test_a_token_stands_at_its_place_in_the_sequence(pairs, budget):
    for tree in grow(pairs, budget):
        assert tree.positions == [len(list_seen_ids(tree, token)) - 1 for token in range(tree.n_tokens)]


@PURE
@given(PAIRS, BUDGETS)
def test_a_tree_of_several_sequences_keeps_to_the_budget_or_twice_what_it_shares(pairs, budget):
    longest = max(len(context) + len(continuation) for context, continuation in pairs)
    for tree in grow(pairs, budget):
        assert len(tree.numbers) == 1 or tree.n_tokens <= max(budget, 2 * longest)


@PURE
@given(PAIRS, BUDGETS)
def test_two_trees_begin_alike_only_where_one_of_both_would_be_too_wide_or_cost_more(pairs, budget):
    trees = grow(pairs, budget)
    for one, other in pairwise(trees):
        last, first = row(pairs, one.numbers[-1]), row(pairs, other.numbers[0])
        again = common_length((last, first))  # tokens that are computed twice
        wider = one.n_tokens + len(first) - again
        costs_more = wider**2 - one.n_tokens**2 - len(first) ** 2 >= 600 * again
        assert wider > max(budget, 2 * again) or costs_more


@PURE
@given(FEW_TOKENS)
def test_of_few_tokens_each_is_computed_once_in_all_trees(pairs):
    computed = [list_seen_ids(tree, token) for tree in grow(pairs, 512) for token in range(tree.n_tokens)]
    needed = {row(pairs, n)[:i] for n in range(len(pairs)) for i in range(1, len(row(pairs, n)) + 1)}
    assert sorted(computed) == sorted(needed)


@PURE
@given(st.lists(IDS, min_size=1, max_size=4).map(lambda ids: sum(ids, ())), PAIRS, BUDGETS)
def test_what_all_begin_with_is_left_out_of_every_tree(prefix, pairs, budget):
    longer = [((*prefix, *context), rest) for context, rest in pairs]
    shorter, cut = grow(pairs, budget), grow(longer, budget, len(prefix))
    assert [tree.ids for tree in cut] == [tree.ids for tree in shorter]
    assert [tree.sources for tree in cut] == [tree.sources for tree in shorter]
    moved = [[position + len(prefix) for position in tree.positions] for tree in shorter]
    assert [tree.positions for tree in cut] == moved


def test_contexts_share_what_stands_before_and_the_last_token_is_not_computed():
    said = tuple(range(10, 22))
    (tree,) = grow([((*said, 30), (40, 41)), ((*said, 31), (40, 41))], 512)
    assert tree.ids == [*said, 30, 40, 31, 40]
    assert tree.ends == [16] * 12 + [14, 14, 16, 16]
    assert tree.sources == [[12, 13], [14, 15]]
    (tree,) = grow([((1, 2), (letter,)) for letter in (5, 6, 7, 8)], 512)
    assert tree.ids == [1, 2]
    assert tree.sources == [[1]] * 4
    long = [((1,), tuple(range(start, start + 60))) for start in (100, 200)]
    assert [tree.numbers for tree in grow(long, 512)] == [[0], [1]]
    (tree,) = grow([((10, 11, 12), (13, 9)), ((10, 11, 12), (14, 15, 9))], 512, shared=2)
    assert tree.ids == [12, 13, 14, 15]
    assert tree.positions == [2, 3, 3, 4]
    assert tree.sources == [[0, 1], [0, 2, 3]]


@PURE
@given(PAIRS, BUDGETS)
def test_a_pack_keeps_every_continuation_and_names_each_place_once(pairs, budget):
    trees = grow(pairs, budget)
    packed = pack(trees, pairs)
    spans = dict(zip(packed.numbers, packed.spans, strict=True))
    assert [tuple(packed.targets[slice(*spans[i])]) for i in range(len(pairs))] == [c for _, c in pairs]
    assert len(set(packed.sources)) == len(packed.sources)
    for place, tree in enumerate(trees):
        for number, sources in zip(tree.numbers, tree.sources, strict=True):
            places = [packed.sources[w] for w in packed.where[slice(*spans[number])]]
            assert places == [(place, source) for source in sources]


def test_padding_sees_padding_alone():
    pairs = [((1, 2, 3), (4,)), ((5,), (6,))]
    packed = pack(grow(pairs, 512), pairs)
    assert packed.ids == [[1, 2, 3], [5, 0, 0]]
    assert packed.ends == [[3, 3, 3], [1, 3, 3]]


# Batches


@PURE
@given(LENGTHS, SIZES, st.integers(1, 64))
def test_batches_hold_every_row_once_from_short_to_long(lengths, size, cost):
    order = [i for batch in plan(lengths, size, cost) for i in batch]
    assert order == sorted(range(len(lengths)), key=lambda i: (lengths[i], i))


@PURE
@given(LENGTHS, SIZES, st.integers(1, 64))
def test_a_batch_of_several_rows_keeps_to_its_size(lengths, size, cost):
    for batch in plan(lengths, size, cost):
        assert len(batch) <= size.rows
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= size.tokens


@PURE
@given(st.lists(st.integers(1, 90), min_size=1, max_size=12), st.integers(1, 200))
def test_no_other_cut_costs_less(lengths, batch_cost):
    def cost(groups):
        return sum(len(g) * max(g) + batch_cost for g in groups)

    def cuts(rest):
        if not rest:
            yield []
        for n in range(1, len(rest) + 1):
            for tail in cuts(rest[n:]):
                yield [rest[:n], *tail]

    found = [[lengths[i] for i in batch] for batch in plan(lengths, Size(64, 10_000), batch_cost)]
    assert cost(found) == min(map(cost, cuts(sorted(lengths))))


def test_one_long_row_does_not_make_the_short_ones_long():
    assert plan([20, 400, 21, 22], Size(64, 16_384), 24) == [[0, 2, 3], [1]]
    assert plan([], Size(10, 10), 1) == []


@pytest.mark.parametrize(
    ("rows", "shared"),
    [
        ([(*range(20), 30), (*range(20), 31)], 20),
        ([tuple(range(20)), tuple(range(30))], 19),
        ([tuple(range(7)), tuple(range(30))], 0),
        ([tuple(range(20))], 0),
    ],
    ids=["the same prefix", "a row keeps one token of its own", "too short to be worth it", "one row"],
)
def test_what_all_rows_begin_with_is_shared(rows, shared):
    assert count_shared_prefix(rows) == shared
