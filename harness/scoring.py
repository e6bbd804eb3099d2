"""Log-probabilities of continuations: a planner that packs shared contexts, and the executor.

Invariant: what is computed depends on the token ids alone. Choices of one item share their
context, and several items lie in one sequence under a mask that keeps them apart, so every
token is computed once and nothing is padded.

The planner is pure; only `Executor` needs torch.
"""

import inspect
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.records import Likelihood, digest

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

PLANNER_VERSION = 2
# Mean gap a token: bf16 reaches some 0.2 on such meaningless ids, a mask ignored several nats.
_AGREEMENT_NATS = 0.5

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


class Pack(NamedTuple):
    """Trees laid out in one sequence of t tokens.

    `owner` and `branch` (both of length t) say to which tree and branch a token belongs, branch
    0 being the context; `positions` are the positions within tree and branch. `sources` and
    `targets` are, for each scored token, the index that predicts it and its id; `spans` cut
    them into branches, in order.
    """

    ids: list[int]
    owner: list[int]
    branch: list[int]
    positions: list[int]
    sources: list[int]
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


def plan(trees: Sequence[Tree], budget: int) -> list[list[int]]:
    """Cut tree indices, sorted by size, into groups of at most `budget` tokens (one tree at least)."""
    order = sorted(range(len(trees)), key=lambda i: (trees[i].n_tokens, i))
    groups: list[list[int]] = []
    size = budget + 1
    for i in order:
        if size + trees[i].n_tokens > budget:
            groups.append([])
            size = 0
        groups[-1].append(i)
        size += trees[i].n_tokens
    return groups


def pack(trees: Sequence[Tree]) -> Pack:
    """Lay trees out in one sequence."""
    out = Pack([], [], [], [], [], [], [])
    for number, tree in enumerate(trees):
        depth = len(tree.context)
        _append(out, tree.context, number, 0, 0)
        trunk = len(out.ids) - 1
        for label, branch in enumerate(tree.branches, 1):
            first = len(out.ids)
            _append(out, branch, number, label, depth)
            out.spans.append((len(out.targets), len(out.targets) + len(branch)))
            out.sources.extend([trunk, *range(first, first + len(branch) - 1)])
            out.targets.extend(branch)
    return out


def _append(out: Pack, ids: Sequence[int], owner: int, branch: int, start: int) -> None:
    out.ids.extend(ids)
    out.owner.extend([owner] * len(ids))
    out.branch.extend([branch] * len(ids))
    out.positions.extend(range(start, start + len(ids)))


class Executor:
    """Computes planned packs on one model; `engine` is `packed`, or `plain` where masks are ignored.

    A model that does not honour a custom mask (recurrent layers, say) is found out by scoring a
    small tree both ways, and gets one sequence a branch instead; a known `engine` skips this.
    """

    def __init__(self, model: "PreTrainedModel", budget: int, engine: str | None = None) -> None:
        self.model, self.budget = model, budget
        bare: Any = model
        if hasattr(model, "get_base_model"):
            bare = bare.get_base_model()
        self._keeps_chosen_logits = "logits_to_keep" in inspect.signature(bare.forward).parameters
        self.engine = engine or ("packed" if self._honours_masks() else "plain")

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
        parts = [(i, part) for i, tree in enumerate(trees) for part in split(tree, self.budget)]
        smaller = [part for _, part in parts]
        scored: dict[int, Branches] = {}
        for group in plan(smaller, self.budget):
            scored.update(zip(group, self._with_less_memory(smaller, group), strict=True))
        out: list[Branches] = [[] for _ in trees]
        for number, (i, _) in enumerate(parts):
            out[i] += scored[number]
        return out

    def _with_less_memory(self, trees: Sequence[Tree], group: list[int]) -> list[Branches]:
        """Score a group; out of memory, score its halves."""
        import torch

        try:
            return self._score([trees[i] for i in group])
        except torch.OutOfMemoryError:
            if len(group) == 1:
                raise
            torch.cuda.empty_cache()
            half = len(group) // 2
            return self._with_less_memory(trees, group[:half]) + self._with_less_memory(trees, group[half:])

    def _score(self, trees: Sequence[Tree]) -> list[Branches]:
        import torch

        packed = pack(trees)
        with torch.inference_mode():
            logits, where = self._logits(packed, masked=self.engine == "packed")  # (u, v), (m,)
            targets = torch.tensor(packed.targets, device=logits.device)
            # In slices: the whole in fp32 would be fresh memory of 200 kB a token, slower than the model.
            slices = logits.split(_SLICE)
            total = torch.cat([rows.float().logsumexp(-1) for rows in slices])
            best = torch.cat([rows.argmax(-1) for rows in slices])
            chosen = (logits[where, targets].float() - total[where]).tolist()
            greedy = (best[where] == targets).tolist()
        spans = iter(packed.spans)
        return [
            [(chosen[a:b], all(greedy[a:b])) for a, b in (next(spans) for _ in tree.branches)]
            for tree in trees
        ]

    def _logits(self, packed: Pack, *, masked: bool) -> "tuple[torch.Tensor, torch.Tensor]":
        """Return the distinct logits (u, v) that are needed, and which of them predicts each scored token."""
        import torch

        device = self.model.device
        row = {"input_ids": packed.ids, "position_ids": packed.positions}
        inputs = {name: torch.tensor([values], device=device) for name, values in row.items()}
        if masked:
            inputs["attention_mask"] = self._mask(packed)
        else:
            del inputs["position_ids"]
        wanted, where = torch.tensor(packed.sources, device=device).unique(return_inverse=True)
        if self._keeps_chosen_logits:
            inputs["logits_to_keep"] = wanted
        logits: torch.Tensor = self.model(**inputs, use_cache=False).logits[0]
        return (logits if self._keeps_chosen_logits else logits[wanted]), where

    def _mask(self, packed: Pack) -> "torch.Tensor":
        """Return the additive mask (1, 1, t, t): causal, within a tree, context and own branch only."""
        import torch

        owner, branch = (torch.tensor(v, device=self.model.device) for v in (packed.owner, packed.branch))
        order = torch.arange(len(owner), device=self.model.device)
        seen = (owner[:, None] == owner) & (order[:, None] >= order)
        seen &= (branch == 0) | (branch[:, None] == branch)
        blocked = torch.finfo(self.model.dtype).min
        return torch.where(seen, 0.0, blocked).to(self.model.dtype)[None, None]

    def _honours_masks(self) -> bool:
        ids = [i % self.model.config.get_text_config().vocab_size for i in range(5, 37)]
        trees = [
            Tree(tuple(ids[:8]), (tuple(ids[8:12]), tuple(ids[12:18]))),
            Tree(tuple(ids[18:28]), (tuple(ids[28:]),)),
        ]
        self.engine = "packed"
        try:
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
