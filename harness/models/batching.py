"""Batch planner: sequences with a common prefix become prefix trees, trees go into batches.

Invariant: pure, and decided by token ids alone. A token that several sequences of a tree share is
computed once; one that predicts nothing, such as the last of a continuation, is not computed.
"""

from collections.abc import Sequence
from typing import NamedTuple

# (context, continuation) as token ids, none of them empty.
Tokens = tuple[int, ...]
Pair = tuple[Tokens, Tokens]

# A shorter prefix costs more to copy than to read.
_WORTH_SHARING = 8


class PrefixTree(NamedTuple):
    """Sequences of token ids as one row of n tokens, depth first; a shared prefix is left out.

    A token sees itself and those before it whose `ends` lie behind it. `positions` are those in its
    sequence. `numbers` are the pairs it holds; `sources` are, for each of them, the tokens that predict
    its continuation.
    """

    ids: list[int]
    positions: list[int]
    ends: list[int]
    numbers: list[int]
    sources: list[list[int]]

    @property
    def n_tokens(self) -> int:
        """Tokens that are computed."""
        return len(self.ids)


class Size(NamedTuple):
    """The most rows of a batch, and the most tokens with the padding that makes them one length."""

    rows: int
    tokens: int


class PassCosts(NamedTuple):
    """Costs of a pass over all layers, in tokens; those of a CPU unless they are given.

    Beside its tokens a pass takes as long as `reading` so many; a batch reads all weights once a new token,
    which takes as long as attending to `answering` padded tokens. Attention within a row of n tokens takes as
    long as reading n² over `attention`; 300 to 1,000 measured alike on a CPU. The rows of a batch hold at
    most so many `keys` together, with those of what they begin with in common; 0 is no limit.
    """

    reading: int = 24
    answering: int = 15_000
    attention: int = 600
    keys: int = 0


CPU_COSTS = PassCosts()


class Pack(NamedTuple):
    """Trees laid out as b rows of w tokens, padded on the right.

    `sources` are the u places (row, index) whose logits are needed. Of the m scored tokens `targets` are
    the ids and `where` the source that predicts each; `spans` cut them into pairs, in the order of `numbers`.
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
    """Join pairs that begin alike into trees of at most `budget` tokens, or twice what they share.

    A pair joins where reading its prefix again would take longer than attention, of the cost `attending`,
    between branches that do not see each other; a pair is a tree where nothing `joins`. The first `shared`
    tokens of all contexts are left out. Of `numbers` only, where they are given.
    """
    rows = [(*context, *continuation[:-1])[shared:] for context, continuation in pairs]
    groups: list[list[int]] = []
    width = 0
    before: Tokens = ()
    for i in sorted(range(len(rows)) if numbers is None else numbers, key=rows.__getitem__):
        row = rows[i]
        known = common_length((before, row))
        wider = width + len(row) - known
        attention = (wider**2 - width**2 - len(row) ** 2) / attending
        if joins and known > attention and wider <= max(budget, 2 * known):
            groups[-1].append(i)
            width = wider
        else:
            groups.append([i])
            width = len(row)
        before = row
    trees = [PrefixTree([], [], [], group, []) for group in groups]
    for tree in trees:
        path: list[int] = []  # the tokens of the row before
        before = ()
        for i in tree.numbers:
            row = rows[i]
            known, n = common_length((before, row)), len(tree.ids)
            for token in path[known:]:
                tree.ends[token] = n
            path = [*path[:known], *range(n, n + len(row) - known)]
            tree.ids.extend(row[known:])
            tree.positions.extend(range(shared + known, shared + len(row)))
            tree.ends.extend([0] * (len(row) - known))
            tree.sources.append(path[len(pairs[i][0]) - 1 - shared :])
            before = row
        for token in path:
            tree.ends[token] = len(tree.ids)
    return trees


def plan(
    lengths: Sequence[int], size: Size, batch_cost: int, keys: int = 0, shared: int = 0
) -> list[list[int]]:
    """Cut the indices of rows, sorted by length, into the batches that cost least.

    A batch costs its rows at the longest one's length, and `batch_cost` tokens; the cheapest cut
    is found by dynamic programming over the last batch's first row. Its rows hold at most so many `keys`,
    each with those of the `shared` tokens before it; 0 is no limit.
    """
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    cheapest = [(0, 0)]  # for the first n rows: cost, and where the last batch starts
    for n, i in enumerate(order, 1):
        rows = min(size.rows, keys // (shared + lengths[i])) if keys else size.rows
        starts = [
            s for s in range(max(0, n - max(rows, 1)), n) if s == n - 1 or (n - s) * lengths[i] <= size.tokens
        ]
        cheapest.append(min((cheapest[s][0] + (n - s) * lengths[i] + batch_cost, s) for s in starts))
    out: list[list[int]] = []
    end = len(order)
    while end:
        start = cheapest[end][1]
        out.insert(0, order[start:end])
        end = start
    return out


def common_length(rows: Sequence[Tokens]) -> int:
    """Count the tokens that all rows begin with; 0 for no rows."""
    first, last = min(rows, default=()), max(rows, default=())
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))


def count_shared_prefix(rows: Sequence[Tokens], least: int = 0) -> int:
    """Count the tokens that all rows begin with, where worth sharing; each keeps at least one of its own.

    The first `least` tokens of each row are shared in any case.
    """
    if len(rows) < 2:
        return least
    shared = min(common_length(rows), min(map(len, rows)) - 1)
    return shared if shared >= _WORTH_SHARING + least else least


def pack(trees: Sequence[PrefixTree], pairs: Sequence[Pair]) -> Pack:
    """Lay trees out, a row each; padding sees padding alone."""
    out = Pack([], [], [], [], [], [], [], [])
    width = max(tree.n_tokens for tree in trees)
    numbers: dict[tuple[int, int], int] = {}  # of the sources
    for row, tree in enumerate(trees):
        filling = width - tree.n_tokens
        out.ids.append(tree.ids + [0] * filling)
        out.positions.append(tree.positions + [0] * filling)
        out.ends.append(tree.ends + [width] * filling)
        for number, sources in zip(tree.numbers, tree.sources, strict=True):
            continuation = pairs[number][1]
            out.spans.append((len(out.targets), len(out.targets) + len(continuation)))
            out.targets.extend(continuation)
            out.where.extend(numbers.setdefault((row, source), len(numbers)) for source in sources)
            out.numbers.append(number)
    out.sources.extend(numbers)
    return out
