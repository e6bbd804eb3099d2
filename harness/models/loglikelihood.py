"""Log-probabilities of continuations, computed on one model in the layout that `batching` plans.

Invariant: the layout depends on token ids alone. Sequences with a common prefix share a row, under a mask
that separates their branches; the prefix of all contexts is read once.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import inf, isnan
from statistics import fmean
from typing import TYPE_CHECKING, Any

from harness.errors import CandidateFailed, one_line
from harness.models.batching import (
    CPU_COSTS,
    Pack,
    Pair,
    PassCosts,
    PrefixTree,
    Size,
    count_shared_prefix,
    grow,
    pack,
    plan,
)
from harness.models.cpu_kernels import chunk_attention
from harness.models.memory import OUT_OF_MEMORY, explain_out_of_memory, ran_out_of_memory
from harness.models.prefix_cache import PrefixCache, additive_mask, cut_to_windows, forget_length, row_cache
from harness.provenance import versions_of
from harness.records import digest

if TYPE_CHECKING:
    import torch
    from transformers import Cache, PreTrainedModel

# Mean gap per token on random ids: some 0.2 in 16 bits, 1e-4 in fp32, several nats if a mask is ignored.
AGREEMENT_NATS = {2: 0.5, 4: 0.05}  # by bytes per number
# Errors of transformers if a model takes no custom mask or cache.
UNSUPPORTED = (ValueError, RuntimeError, TypeError, LookupError, AttributeError, AssertionError)

# Rows of logits that are converted to fp32 at a time: on a CPU more would need fresh memory, which is slower
# than the model; a GPU would idle with fewer.
_SLICE = {"cpu": 16, "cuda": 1024}

_ANOTHER = "another base_model"
_SHORTER = "a smaller base_model or shorter prompts"

# Score of a pair: log-probabilities of its continuation's tokens in nats, and whether all are argmaxes.
Scored = tuple[list[float], bool]
# Layouts of pairs: `packed` into prefix trees under masks, `padded` to the longest of a batch, or `plain`,
# one at a time, on request.
ENGINES = ("packed", "padded", "plain")


def layout_digest(engine: str, budget: int, costs: PassCosts = CPU_COSTS) -> str:
    """Return the digest of what determines the shapes of batches on any model."""
    own = [] if costs == CPU_COSTS else [costs]
    tried = ["tried beside others"] if engine == "padded" else []  # see `generation`
    return digest([versions_of("layout"), engine, budget, *own, *tried])


class Executor:
    """Executor of planned packs on one model; `engine` is `packed`, or `padded` if masks are ignored.

    Unless `engine` is known, a small tree is scored in both layouts. CandidateFailed is raised if the model's
    logits are NaN or infinite.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        budget: int,
        engine: str | None = None,
        soft: "Cache | None" = None,
        costs: PassCosts = CPU_COSTS,
    ) -> None:
        self.costs = costs
        self.model, self.budget, self.prefixes = model, budget, PrefixCache(model, soft=soft)
        self.engine = engine or self._choose_engine()

    def score(self, pairs: Sequence[Pair]) -> list[Scored]:
        """Return the log-probabilities of each pair's continuation, and whether all tokens are argmaxes."""
        # Texts so long that positions scale with their length are scored alone.
        lengths = [len(context) + len(continuation) for context, continuation in pairs]
        alike = inf if self.prefixes.virtual_ids else self.prefixes.longest_alike
        short = [i for i, length in enumerate(lengths) if length < alike]
        by_place = dict(zip(short, self._score_together([pairs[i] for i in short]), strict=True))
        for i in sorted({*range(len(pairs))} - by_place.keys()):
            forget_length(self.model)
            by_place[i] = self._score_alone(pairs[i])
        scored = [by_place[i] for i in range(len(pairs))]
        if any(isnan(sum(logprobs)) for logprobs, _ in scored):
            raise self._no_numbers()
        return scored

    def refuse_no_numbers(self) -> None:
        """Score a probe; CandidateFailed if the model cannot be run or its logits are not numbers."""
        if any(map(isnan, self._probe_alone(self._probes()[0][0]))):
            raise self._no_numbers()

    def _probe_alone(self, pair: Pair) -> list[float]:
        try:
            return self._score_alone(pair)[0]
        except UNSUPPORTED as error:
            found = f"{type(self.model).__name__} cannot be computed by transformers ({one_line(error)})"
            raise CandidateFailed(found, _ANOTHER) from error

    def _no_numbers(self) -> CandidateFailed:
        found = f"the model's logits are not numbers in {str(self.model.dtype).removeprefix('torch.')}"
        return CandidateFailed(found, "precision: fp32, or bf16 where the device has it")

    def _score_together(self, pairs: Sequence[Pair]) -> list[Scored]:
        if self.engine == "plain":
            return [self._score_alone(pair) for pair in pairs]
        if self.engine == "padded":
            return self._score_trees(pairs, 0, None)
        virtual = self.prefixes.virtual_ids
        pairs = [(virtual + context, continuation) for context, continuation in pairs] if virtual else pairs
        with chunk_attention(self.model):
            shared = count_shared_prefix([context for context, _ in pairs], len(virtual))
            found = "out of memory while reading what all prompts begin with"
            with explain_out_of_memory(found, _SHORTER):
                prefix = self.prefixes.read(pairs[0][0][:shared]) if shared else None
            return self._score_trees(pairs, shared, prefix)

    def _score_alone(self, pair: Pair) -> Scored:
        return self._with_less_memory(self._trees([pair]), [pair], None)[0]

    def _score_trees(self, pairs: Sequence[Pair], shared: int, prefix: "Cache | None") -> list[Scored]:
        trees = self._trees(pairs, shared)
        scored: dict[int, Scored] = {}
        lengths, size = [len(tree.ids) for tree in trees], Size(self.budget, self.budget)
        for group in plan(lengths, size, self.costs.reading, self.costs.keys, shared):
            scored |= self._with_less_memory([trees[i] for i in group], pairs, prefix)
        return [scored[i] for i in range(len(pairs))]

    def _trees(
        self, pairs: Sequence[Pair], shared: int = 0, numbers: Sequence[int] | None = None
    ) -> list[PrefixTree]:
        joins, attending = self.engine == "packed", self.costs.attention
        return grow(pairs, self.budget, shared, numbers, joins=joins, attending=attending)

    def _with_less_memory(
        self, trees: Sequence[PrefixTree], pairs: Sequence[Pair], prefix: "Cache | None"
    ) -> dict[int, Scored]:
        """Score trees; after memory ran out, half of the pairs at a time, without kept prefixes."""
        import torch

        numbers = [number for tree in trees for number in tree.numbers]
        try:
            return self._score(trees, pairs, prefix)
        except OUT_OF_MEMORY as error:
            if not ran_out_of_memory(error):
                raise
            if not self.prefixes.forget() and len(numbers) == 1:
                raise CandidateFailed("out of memory while scoring one answer", _SHORTER) from None
        # Outside the except clause, where the error would still hold the computed tensors.
        torch.cuda.empty_cache()
        half, shared = len(numbers) // 2, _length(prefix)
        scored: dict[int, Scored] = {}
        for part in filter(None, (numbers[:half], numbers[half:])):
            scored |= self._with_less_memory(self._trees(pairs, shared, part), pairs, prefix)
        return scored

    def _score(
        self, trees: Sequence[PrefixTree], pairs: Sequence[Pair], prefix: "Cache | None" = None
    ) -> dict[int, Scored]:
        import torch

        packed = pack(trees, pairs)
        with torch.inference_mode():
            logits = self._logits(packed, prefix)  # (u, v)
            where, targets = (
                torch.tensor(of, device=logits.device) for of in (packed.where, packed.targets)
            )  # (m,)
            n_rows = _SLICE[logits.device.type]
            # log Σ exp of each row; `logsumexp` would make five passes over fresh memory.
            slices = (rows.float() for rows in logits.split(n_rows))
            total = torch.cat([rows.amax(-1) - rows.log_softmax(-1).amax(-1) for rows in slices])
            chosen = logits[where, targets]
            greedy = chosen == logits.amax(-1)[where]
            # The argmax is the first of equal logits.
            for hits in greedy.nonzero()[:, 0].split(n_rows):
                greedy[hits] = logits[where[hits]].float().argmax(-1) == targets[hits]
            logprobs, best = (chosen.float() - total[where]).tolist(), greedy.tolist()
        return {
            number: (logprobs[a:b], all(best[a:b]))
            for number, (a, b) in zip(packed.numbers, packed.spans, strict=True)
        }

    def _logits(self, packed: Pack, prefix: "Cache | None") -> "torch.Tensor":
        """Return the logits (u, v) at the pack's sources."""
        import torch

        device = self.model.device
        inputs: dict[str, Any] = {"input_ids": torch.tensor(packed.ids, device=device), "use_cache": False}
        if self.engine == "packed":
            inputs["position_ids"] = torch.tensor(packed.positions, device=device)
            # Each token attends to the prefix and to its path from the root: (b, w, shared + w).
            positions, shared = inputs["position_ids"], _length(prefix)
            ends = torch.tensor(packed.ends, device=device)  # (b, w)
            order = torch.arange(ends.shape[1], device=device)
            seen = (order[:, None] >= order) & (order[:, None] < ends[:, None])
            mask = additive_mask(self.model, torch.nn.functional.pad(seen, (shared, 0), value=True))
            before = torch.arange(shared, device=device).expand(len(ends), -1)
            places = torch.cat([before, positions], 1)
            windows = self.prefixes.windows or ()
            inputs["attention_mask"] = cut_to_windows(mask, positions, places, windows)
        if prefix:
            inputs |= {"past_key_values": row_cache(self.model, prefix, len(packed.ids)), "use_cache": True}
        with project_only(self.model, torch.tensor(packed.sources, device=device)):
            logits: torch.Tensor = self.model(**inputs).logits[0]
            return logits

    def _choose_engine(self) -> str:
        """Choose the layout by scoring a small tree in both."""
        is_stateful = self.model._is_stateful  # noqa: SLF001 (it is said nowhere else)
        if is_stateful and self.prefixes.windows is not None:
            found = f"{type(self.model).__name__} keeps a state that no cache of transformers' holds"
            raise CandidateFailed(found, _ANOTHER)
        probes = self._probes()
        packed = [self._score_packed_probe(pairs) for pairs in probes if self.prefixes.windows is not None]
        self.engine = "padded"
        alone = [[self._probe_alone(pair) for pair in pairs] for pairs in probes]
        if any(isnan(p) for pairs in alone for logprobs in pairs for p in logprobs):
            raise self._no_numbers()
        # Dropping the second half of each continuation must not change the scores of the first.
        halves = [self._score_alone((context, ids[: len(ids) // 2]))[0] for context, ids in probes[0]]
        whole = [logprobs[: len(half)] for logprobs, half in zip(alone[0], halves, strict=True)]
        if gap(halves, whole) > self._tolerance:
            found = f"{type(self.model).__name__} reads a token by those after it too"
            raise CandidateFailed(found, _ANOTHER)
        agree = packed and all(a and gap(a, b) < self._tolerance for a, b in zip(packed, alone, strict=True))
        return "packed" if agree else "padded"

    @property
    def _tolerance(self) -> float:
        return AGREEMENT_NATS[self.model.dtype.itemsize]

    def _probes(self) -> list[list[Pair]]:
        """Return pairs with a common prefix, and one longer than the model's attention window."""
        n_ids = self.model.config.get_text_config().vocab_size
        ids = tuple(i % n_ids for i in range(5, 37))
        branches = (ids[4:8], ids[8:16], ids[16:20], ids[20:])
        short = [(ids[:4], branch) for branch in branches] + [(ids[:1], ids[1:7]), (ids[3:4], ids[4:7])]
        window = max(self.prefixes.windows or (0,))
        if window == 0 or window + len(ids) > self.budget:
            return [short]
        long = tuple((5 + i * i) % n_ids for i in range(window + len(ids)))
        return [short, [(long[:-8], long[-8:])]]

    def _score_packed_probe(self, pairs: Sequence[Pair]) -> list[list[float]]:
        """Return the log-probabilities of packed pairs; None if the model takes no such mask."""
        self.engine = "packed"
        longest = max(len(context) + len(continuation) for context, continuation in pairs)
        try:
            with chunk_attention(self.model):
                found = self._score(grow(pairs, max(64, longest)), pairs)
        except UNSUPPORTED as error:
            if ran_out_of_memory(error):
                raise
            return []
        return [found[i][0] for i in range(len(pairs))]


def gap(some: Sequence[Sequence[float]], others: Sequence[Sequence[float]]) -> float:
    """Return the mean absolute difference of log-probabilities of the same tokens, in nats."""
    pairs = (zip(*both, strict=True) for both in zip(some, others, strict=True))
    return fmean(abs(p - q) for pair in pairs for p, q in pair)


def _length(prefix: "Cache | None") -> int:
    return int(prefix.get_seq_length()) if prefix else 0


@contextmanager
def project_only(model: "PreTrainedModel", wanted: "torch.Tensor") -> Iterator[None]:
    """Project only the hidden states at `wanted` (u rows and indices) to the vocabulary.

    Inside, logits have the shape (1, u, v).
    """

    def select(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        at = wanted.to(args[0].device)  # layers may be on several devices
        return (args[0][at[:, 0], at[:, 1]][None], *args[1:])

    projection: Any = model.get_output_embeddings()
    hook = projection.register_forward_pre_hook(select)
    try:
        yield
    finally:
        hook.remove()
