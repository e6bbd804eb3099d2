"""Batch planner: sequences with a common prefix become prefix trees, and trees are packed into batches.

Invariant: pure; the plan depends on token ids alone. A token that sequences of a tree share is computed once;
tokens that predict nothing, such as the last of a continuation, are not computed.
"""

from collections.abc import Sequence
from typing import NamedTuple

# (context, continuation) as token ids; neither is empty.
Tokens = tuple[int, ...]
Pair = tuple[Tokens, Tokens]

# Copying a shorter prefix costs more than reading it again.
_WORTH_SHARING = 8


class PrefixTree(NamedTuple):
    """Sequences of token ids in one row of n tokens, depth first, without the prefix that all trees share.

    A token attends to itself and to earlier tokens whose `ends` lie after it. `positions` are those in the
    token's own sequence; `sources` are, for each pair in `numbers`, the tokens that predict its continuation.
    """

    ids: list[int]
    positions: list[int]
    ends: list[int]
    numbers: list[int]
    sources: list[list[int]]


class Size(NamedTuple):
    """Limits of a batch: rows, and tokens including padding."""

    rows: int
    tokens: int


class PassCosts(NamedTuple):
    """Costs of a forward pass, in tokens; the defaults are those of a CPU.

    A pass costs its tokens plus `reading` tokens; each new token of a batch costs as much as attending to
    `answering` padded tokens; attention within a row of n tokens costs n² / `attention` tokens. The rows of a
    batch hold at most `keys` keys, including those of their shared prefix; 0 means no limit.
    """

    reading: int = 24
    answering: int = 15_000
    attention: int = 600
    keys: int = 0


CPU_COSTS = PassCosts()


class Pack(NamedTuple):
    """Trees laid out as b rows of w tokens, padded on the right.

    `sources` are the u positions (row, index) whose logits are needed. `targets` are the ids of the m scored
    tokens, `where` the source that predicts each; `spans` divide them among pairs, in the order of `numbers`.
    """

    ids: list[list[int]]
    positions: list[list[int]]
    ends: list[list[int]]
    sources: list[tuple[int, int]]
    where: list[int]
    targets: list[int]
    spans: list[tuple[int, int]]
    numbers: list[int]


def grow(
    pairs: Sequence[Pair],
    budget: int,
    shared: int = 0,
    numbers: Sequence[int] | None = None,
    *,
    joins: bool = True,
    attending: int = CPU_COSTS.attention,
) -> list[PrefixTree]:
    """Join pairs with a common prefix into trees of at most `budget` tokens, or twice the shared prefix.

    A pair joins a tree if reading its prefix again would cost more than the wasted attention between
    branches, at the cost `attending`; without `joins` each pair is its own tree. The first `shared` tokens of
    all contexts are left out. `numbers` selects pairs.
    """
    rows = [(*context, *continuation[:-1])[shared:] for context, continuation in pairs]
    groups: list[list[int]] = []
    width = 0
    before: Tokens = ()
    for i in sorted(range(len(rows)) if numbers is None else numbers, key=rows.__getitem__):
        row = rows[i]
        n_common = common_length((before, row))
        wider = width + len(row) - n_common
        attention = (wider**2 - width**2 - len(row) ** 2) / attending
        if joins and n_common > attention and wider <= max(budget, 2 * n_common):
            groups[-1].append(i)
            width = wider
        else:
            groups.append([i])
            width = len(row)
        before = row
    trees = [PrefixTree([], [], [], group, []) for group in groups]
    for tree in trees:
        path: list[int] = []  # tokens of the previous row
        before = ()
        for i in tree.numbers:
            row = rows[i]
            n_common, n = common_length((before, row)), len(tree.ids)
            for token in path[n_common:]:
                tree.ends[token] = n
            path = [*path[:n_common], *range(n, n + len(row) - n_common)]
            tree.ids.extend(row[n_common:])
            tree.positions.extend(range(shared + n_common, shared + len(row)))
            tree.ends.extend([0] * (len(row) - n_common))
            tree.sources.append(path[len(pairs[i][0]) - 1 - shared :])
            before = row
        for token in path:
            tree.ends[token] = len(tree.ids)
    return trees


def plan(
    lengths: Sequence[int], size: Size, batch_cost: int, keys: int = 0, shared: int = 0
) -> list[list[int]]:
    """Divide the indices of rows, sorted by length, into the cheapest batches.

    A batch costs its number of rows times the longest length, plus `batch_cost` tokens. Its rows hold at most
    `keys` keys, each including its `shared` prefix tokens; 0 means no limit.
    """
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    cheapest = [(0, 0)]  # for the first n rows: cost, and start of the last batch
    for n, i in enumerate(order, 1):
        rows = min(size.rows, keys // (shared + lengths[i])) if keys else size.rows
        first = max(0, n - max(rows, 1))
        starts = [s for s in range(first, n) if s == n - 1 or (n - s) * lengths[i] <= size.tokens]
        cheapest.append(min((cheapest[s][0] + (n - s) * lengths[i] + batch_cost, s) for s in starts))
    batches: list[list[int]] = []
    end = len(order)
    while end:
        start = cheapest[end][1]
        batches.insert(0, order[start:end])
        end = start
    return batches


def common_length(rows: Sequence[Tokens]) -> int:
    """Count the tokens of the prefix common to all rows; 0 for no rows."""
    first, last = min(rows, default=()), max(rows, default=())
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))


def count_shared_prefix(rows: Sequence[Tokens], minimum: int = 0) -> int:
    """Count the common prefix tokens of all rows if worth sharing, else `minimum`; a row keeps one token."""
    if len(rows) < 2:
        return minimum
    shared = min(common_length(rows), min(map(len, rows)) - 1)
    return shared if shared >= _WORTH_SHARING + minimum else minimum


def pack(trees: Sequence[PrefixTree], pairs: Sequence[Pair]) -> Pack:
    """Lay out trees, one per row; padding attends only to padding."""
    packed = Pack([], [], [], [], [], [], [], [])
    width = max(len(tree.ids) for tree in trees)
    numbers: dict[tuple[int, int], int] = {}  # of the sources
    for row, tree in enumerate(trees):
        filling = width - len(tree.ids)
        packed.ids.append(tree.ids + [0] * filling)
        packed.positions.append(tree.positions + [0] * filling)
        packed.ends.append(tree.ends + [width] * filling)
        for number, sources in zip(tree.numbers, tree.sources, strict=True):
            continuation = pairs[number][1]
            packed.spans.append((len(packed.targets), len(packed.targets) + len(continuation)))
            packed.targets.extend(continuation)
            packed.where.extend(numbers.setdefault((row, source), len(numbers)) for source in sources)
            packed.numbers.append(number)
    packed.sources.extend(numbers)
    return packed
