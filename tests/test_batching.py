"""What begins alike is computed once, nothing sees another branch, and batches cost least."""

from hypothesis import given, settings
from hypothesis import strategies as st

from harness.models.batching import Size, grow, pack, plan

# Few ids, so that sequences begin alike.
IDS = st.lists(st.integers(1, 3), min_size=1, max_size=9).map(tuple)
PAIRS = st.lists(st.tuples(IDS, IDS), min_size=1, max_size=12)
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
def test_a_tree_of_several_sequences_keeps_to_the_budget_or_twice_what_it_shares(pairs, budget):
    longest = max(len(context) + len(continuation) for context, continuation in pairs)
    for tree in grow(pairs, budget):
        assert len(tree.numbers) == 1 or tree.n_tokens <= max(budget, 2 * longest)


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


@PURE
@given(LENGTHS, SIZES, st.integers(1, 64))
def test_a_batch_of_several_rows_keeps_to_its_size(lengths, size, cost):
    for batch in plan(lengths, size, cost):
        assert len(batch) <= size.rows
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= size.tokens


# Batches


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
