"""Log-probabilities of continuations: a planner that packs shared contexts, and the executor.

Invariant: what is computed depends on the token ids alone. Choices of one item share their
context in one row, under a mask that keeps them apart; what all contexts begin with is read once.

The planner is pure; only `Executor` and what reads beginnings need torch.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.attention import attending_in_parts
from harness.records import Likelihood, digest

if TYPE_CHECKING:
    import torch
    from transformers import Cache, PreTrainedModel

PLANNER_VERSION = 4
# Mean gap a token: bf16 reaches some 0.2 on such meaningless ids, a mask ignored several nats.
_AGREEMENT_NATS = 0.5
# A pass over all layers costs, beside its tokens, as long as reading so many.
READING_COST = 24
# A shorter beginning costs more to copy than to read.
_WORTH_SHARING = 8

# Rows of logits that are turned into fp32 at a time.
_SLICE = 32

# For each branch of a tree: log p of its tokens in nats, and whether all of them are argmaxes.
Branches = list[tuple[list[float], bool]]


class Tree(NamedTuple):
    """One context (token ids, not empty) and the continuations that follow it, none empty."""

    context: tuple[int, ...]
    branches: tuple[tuple[int, ...], ...]

    @property
    def n_tokens(self) -> int:
        """Tokens that have to be computed for this item."""
        return len(self.context) + sum(map(len, self.branches))


class Size(NamedTuple):
    """The most rows of a batch, and the most tokens with the padding that makes them one length."""

    rows: int
    tokens: int


class Pack(NamedTuple):
    """Trees laid out as rows of w tokens, padded on the right; a shared beginning is left out.

    `branch` says to which branch of its tree a token belongs: 0 is the context, −1 padding.
    `positions` are the positions within tree and branch. `sources` and `targets` are, for each
    scored token, the row and index that predict it and its id; `spans` cut them into branches, in order.
    """

    ids: list[list[int]]
    branch: list[list[int]]
    positions: list[list[int]]
    sources: list[tuple[int, int]]
    targets: list[int]
    spans: list[tuple[int, int]]


def grow(pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> list[Tree]:
    """Gather neighbouring (context, continuation) pairs with one context into trees."""
    return [
        Tree(context, tuple(continuation for _, continuation in group))
        for context, group in groupby(pairs, key=lambda pair: pair[0])
    ]


def split(tree: Tree, budget: int) -> list[Tree]:
    """Cut a tree of many branches into trees of at most `budget` tokens, or twice their context.

    Attention costs the square of a tree's tokens, a further tree its context once more.
    """
    room = max(budget, 2 * len(tree.context)) - len(tree.context)
    parts: list[list[tuple[int, ...]]] = []
    left = 0
    for branch in tree.branches:
        if not parts or len(branch) > left:
            parts.append([])
            left = room
        parts[-1].append(branch)
        left -= len(branch)
    return [Tree(tree.context, tuple(part)) for part in parts]


def plan(lengths: Sequence[int], size: Size, batch_cost: int) -> list[list[int]]:
    """Cut the indices of rows, sorted by length, into the batches that cost least.

    A batch costs its rows at the longest one's length, and `batch_cost` tokens; the cheapest cut
    is found by dynamic programming over the last batch's first row.
    """
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    cheapest = [(0, 0)]  # for the first n rows: cost, and where the last batch starts
    for n, i in enumerate(order, 1):
        starts = [
            s for s in range(max(0, n - size.rows), n) if s == n - 1 or (n - s) * lengths[i] <= size.tokens
        ]
        cheapest.append(min((cheapest[s][0] + (n - s) * lengths[i] + batch_cost, s) for s in starts))
    out: list[list[int]] = []
    end = len(order)
    while end:
        start = cheapest[end][1]
        out.insert(0, order[start:end])
        end = start
    return out


def common_length(rows: Sequence[tuple[int, ...]]) -> int:
    """Count the tokens that all rows begin with; 0 for no rows."""
    first, last = min(rows, default=()), max(rows, default=())
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))


def shared_length(rows: Sequence[tuple[int, ...]]) -> int:
    """Count the tokens that all rows begin with, where worth sharing; each keeps at least one of its own."""
    if len(rows) < 2:
        return 0
    shared = min(common_length(rows), min(map(len, rows)) - 1)
    return shared if shared >= _WORTH_SHARING else 0


def pack(trees: Sequence[Tree], shared: int = 0) -> Pack:
    """Lay trees out, a row each, without the first `shared` tokens of their contexts."""
    out = Pack([], [], [], [], [], [])
    for row, tree in enumerate(trees):
        depth = len(tree.context)
        ids, branches = [*tree.context[shared:]], [0] * (depth - shared)
        positions = [*range(shared, depth)]
        trunk = len(ids) - 1
        for label, branch in enumerate(tree.branches, 1):
            first = len(ids)
            ids += branch
            branches += [label] * len(branch)
            positions += range(depth, depth + len(branch))
            out.spans.append((len(out.targets), len(out.targets) + len(branch)))
            out.sources.extend((row, i) for i in (trunk, *range(first, first + len(branch) - 1)))
            out.targets.extend(branch)
        out.ids.append(ids)
        out.branch.append(branches)
        out.positions.append(positions)
    width = max(map(len, out.ids))
    for rows, filling in ((out.ids, 0), (out.branch, -1), (out.positions, 0)):
        for values in rows:
            values.extend([filling] * (width - len(values)))
    return out


def keeps_all_keys(model: "PreTrainedModel") -> bool:
    """Say whether every layer attends to all that was read: neither recurrent nor by a sliding window."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    layers = DynamicCache(config=model.config).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def read_beginning(model: "PreTrainedModel", beginning: Sequence[int]) -> "Cache":
    """Read what all rows begin with, once; the model has to keep all keys."""
    import torch
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(
            input_ids=torch.tensor([list(beginning)], device=model.device),
            past_key_values=cache,
            use_cache=True,
        )
    return cache


def after(model: "PreTrainedModel", beginning: "Cache | None", n_rows: int) -> "Cache":
    """Return a cache of so many rows that have all read the beginning; growing it leaves that untouched."""
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    layers: Sequence[Any] = cache.layers
    known: Sequence[Any] = beginning.layers if beginning else ()
    for layer, read in zip(layers, known, strict=False):
        layer.lazy_initialization(read.keys, read.values)
        layer.keys = read.keys.expand(n_rows, -1, -1, -1)
        layer.values = read.values.expand(n_rows, -1, -1, -1)
    return cache


class Executor:
    """Computes planned packs on one model; `engine` is `packed`, or `plain` where masks are ignored.

    A model that does not honour a custom mask (recurrent layers, say) is found out by scoring a
    small tree both ways, and gets one sequence a branch instead; a known `engine` skips this.
    """

    def __init__(self, model: "PreTrainedModel", budget: int, engine: str | None = None) -> None:
        self.model, self.budget = model, budget
        self.engine = engine or ("packed" if keeps_all_keys(model) and self._honours_masks() else "plain")

    @property
    def layout_digest(self) -> str:
        """Digest of what decides the shapes that are computed together."""
        return digest([PLANNER_VERSION, self.engine, self.budget])

    def loglikelihoods(self, trees: Sequence[Tree]) -> list[list[Likelihood]]:
        """Return the likelihood of each branch of each tree, in order."""
        return [
            [Likelihood(sum(logprobs), greedy) for logprobs, greedy in branches]
            for branches in self._branches(trees)
        ]

    def token_logprobs(self, trees: Sequence[Tree]) -> list[list[list[float]]]:
        """Return log p in nats of every token of each branch of each tree."""
        return [[logprobs for logprobs, _ in branches] for branches in self._branches(trees)]

    def _branches(self, trees: Sequence[Tree]) -> list[Branches]:
        if self.engine == "plain":
            return [[self._score([Tree(t.context, (b,))])[0][0] for b in t.branches] for t in trees]
        with attending_in_parts(self.model):
            return self._packed(trees)

    def _packed(self, trees: Sequence[Tree]) -> list[Branches]:
        shared = shared_length([t.context for t in trees])
        beginning = read_beginning(self.model, trees[0].context[:shared]) if shared else None
        parts = [(i, part) for i, tree in enumerate(trees) for part in split(tree, self.budget)]
        smaller = [part for _, part in parts]
        lengths = [part.n_tokens - shared for part in smaller]
        scored: dict[int, Branches] = {}
        for group in plan(lengths, Size(self.budget, self.budget), READING_COST):
            scored.update(zip(group, self._with_less_memory(smaller, group, beginning), strict=True))
        out: list[Branches] = [[] for _ in trees]
        for number, (i, _) in enumerate(parts):
            out[i] += scored[number]
        return out

    def _with_less_memory(
        self, trees: Sequence[Tree], group: list[int], beginning: "Cache | None"
    ) -> list[Branches]:
        """Score a group; out of memory, score its halves."""
        import torch

        try:
            return self._score([trees[i] for i in group], beginning)
        except torch.OutOfMemoryError:
            if len(group) == 1:
                raise
            torch.cuda.empty_cache()
            half = len(group) // 2
            return [
                branches
                for part in (group[:half], group[half:])
                for branches in self._with_less_memory(trees, part, beginning)
            ]

    def _score(self, trees: Sequence[Tree], beginning: "Cache | None" = None) -> list[Branches]:
        import torch

        shared = int(beginning.get_seq_length()) if beginning else 0
        packed = pack(trees, shared)
        with torch.inference_mode():
            logits, where = self._logits(packed, beginning, shared)  # (u, v), (m,)
            targets = torch.tensor(packed.targets, device=logits.device)
            # In slices: the whole in fp32 would be fresh memory of 200 kB a token, slower than the model.
            slices = logits.split(_SLICE)
            known = [
                (exact.logsumexp(-1), exact.max(-1).indices) for rows in slices for exact in [rows.float()]
            ]
            total, best = (torch.cat(values) for values in zip(*known, strict=True))
            chosen = (logits[where, targets].float() - total[where]).tolist()
            greedy = (best[where] == targets).tolist()
        spans = iter(packed.spans)
        return [
            [(chosen[a:b], all(greedy[a:b])) for a, b in (next(spans) for _ in tree.branches)]
            for tree in trees
        ]

    def _logits(
        self, packed: Pack, beginning: "Cache | None", shared: int
    ) -> "tuple[torch.Tensor, torch.Tensor]":
        """Return the distinct logits (u, v) that are needed, and which of them predicts each scored token."""
        import torch

        device = self.model.device
        inputs: dict[str, Any] = {"input_ids": torch.tensor(packed.ids, device=device), "use_cache": False}
        if self.engine == "packed":
            inputs["position_ids"] = torch.tensor(packed.positions, device=device)
            inputs["attention_mask"] = self._mask(packed, shared)
        if beginning:
            inputs |= {"past_key_values": after(self.model, beginning, len(packed.ids)), "use_cache": True}
        sources = torch.tensor(packed.sources, device=device)  # (m, 2)
        wanted, where = sources.unique(dim=0, return_inverse=True)
        with only_at(self.model, wanted):
            return self.model(**inputs).logits[0], where

    def _mask(self, packed: Pack, shared: int) -> "torch.Tensor":
        """Return the additive mask (b, 1, w, shared + w): causal, context and own branch only."""
        import torch

        branch = torch.tensor(packed.branch, device=self.model.device)  # (b, w)
        order = torch.arange(branch.shape[1], device=self.model.device)
        seen = (branch[:, None] == 0) | (branch[:, None] == branch[:, :, None])
        seen &= order[:, None] >= order
        seen = torch.nn.functional.pad(seen, (shared, 0), value=True)
        blocked = torch.finfo(self.model.dtype).min
        return torch.where(seen, 0.0, blocked).to(self.model.dtype)[:, None]

    def _honours_masks(self) -> bool:
        ids = [i % self.model.config.get_text_config().vocab_size for i in range(5, 37)]
        branches = (ids[4:8], ids[8:16], ids[16:20], ids[20:])
        trees = [Tree(tuple(ids[:4]), tuple(map(tuple, branches))), Tree((ids[0],), (tuple(ids[1:7]),))]
        self.engine = "packed"
        try:
            with attending_in_parts(self.model):
                together = self._score(trees)
        except (ValueError, RuntimeError, TypeError):
            return False
        self.engine = "plain"
        alone = [[self._score([Tree(t.context, (b,))])[0][0] for b in t.branches] for t in trees]
        gaps = [
            abs(p - q)
            for x, y in zip(together, alone, strict=True)
            for a, b in zip(x, y, strict=True)
            for p, q in zip(a[0], b[0], strict=True)
        ]
        return sum(gaps) / len(gaps) < _AGREEMENT_NATS


@contextmanager
def only_at(model: "PreTrainedModel", wanted: "torch.Tensor") -> Iterator[None]:
    """Let the vocabulary's projection see the hidden states at `wanted` (u rows and indices) only.

    Inside, logits have the shape (1, u, v).
    """

    def chosen(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0][wanted[:, 0], wanted[:, 1]][None], *args[1:])

    projection: Any = model.get_output_embeddings()
    hook = projection.register_forward_pre_hook(chosen)
    try:
        yield
    finally:
        hook.remove()
