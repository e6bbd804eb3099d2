"""Log-probabilities of continuations, computed on one model in the layout that `trees` plans.

Invariant: what is computed depends on the token ids alone. Sequences that begin alike share one
row, under a mask that keeps their branches apart; what all contexts begin with is read once.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import inf
from typing import TYPE_CHECKING, Any

from harness.errors import CandidateFailed
from harness.models import oom
from harness.models.batching import Pack, Pair, PrefixTree, Size, grow, pack, plan, shared_length
from harness.models.cpu_kernels import chunked_attention
from harness.models.prefix_cache import PrefixCache, keeps_all_keys, row_cache
from harness.provenance.code_versions import versions_of
from harness.records import Likelihood, digest

if TYPE_CHECKING:
    import torch
    from transformers import Cache, PreTrainedModel

# Mean gap a token: bf16 reaches some 0.2 on such meaningless ids, a mask ignored several nats.
_AGREEMENT_NATS = 0.5
# A pass over all layers costs, beside its tokens, as long as reading so many.
READING_COST = 24

# Rows of logits that are turned into fp32 at a time: on a CPU more would be fresh memory, slower than the
# model; a GPU would wait for fewer.
_SLICE = {"cpu": 16, "cuda": 1024}

_SHORTER = "a smaller base_model or shorter prompts"

# Of a pair: log p of its continuation's tokens in nats, and whether all of them are argmaxes.
Scored = tuple[list[float], bool]


class Executor:
    """Computes planned packs on one model; `engine` is `packed`, or `plain` where masks are ignored.

    A model that does not honour a custom mask (recurrent layers, say) is found out by scoring a
    small tree both ways, and gets one sequence a branch instead; a known `engine` skips this.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        budget: int,
        engine: str | None = None,
        soft: "Cache | None" = None,
    ) -> None:
        self.model, self.budget, self.prefixes = model, budget, PrefixCache(model, soft=soft)
        self._too_many = inf  # tokens for which memory ran out
        self.engine = engine or ("packed" if keeps_all_keys(model) and self._honours_masks() else "plain")

    @property
    def layout_digest(self) -> str:
        """Digest of what decides the shapes that are computed together."""
        return digest([versions_of("layout"), self.engine, self.budget])

    def loglikelihoods(self, pairs: Sequence[Pair]) -> list[Likelihood]:
        """Return the likelihood of each pair's continuation after its context, in order."""
        return [Likelihood(sum(logprobs), greedy) for logprobs, greedy in self.score(pairs)]

    def score(self, pairs: Sequence[Pair]) -> list[Scored]:
        """Return log p of the tokens of each pair's continuation, and whether all of them are argmaxes."""
        if self.engine == "plain":
            return [self._score_alone(pair) for pair in pairs]
        with chunked_attention(self.model):
            return self._score_packed(pairs)

    def _score_alone(self, pair: Pair) -> Scored:
        return self._with_less_memory(grow([pair], self.budget), [pair], None)[0]

    def _score_packed(self, pairs: Sequence[Pair]) -> list[Scored]:
        virtual = self.prefixes.virtual_ids
        pairs = [(virtual + context, continuation) for context, continuation in pairs] if virtual else pairs
        shared = shared_length([context for context, _ in pairs], len(virtual))
        prefix = self._prefix(pairs[0][0][:shared]) if shared else None
        trees = grow(pairs, self.budget, shared)
        scored: dict[int, Scored] = {}
        for group in plan([tree.n_tokens for tree in trees], Size(self.budget, self.budget), READING_COST):
            scored |= self._with_less_memory([trees[i] for i in group], pairs, prefix)
        return [scored[i] for i in range(len(pairs))]

    def _prefix(self, ids: tuple[int, ...]) -> "Cache":
        """Read what all contexts begin with.

        Raises:
            CandidateFailed: there is no room for it.
        """
        with oom.enough_memory("out of memory while reading what all prompts begin with", _SHORTER):
            return self.prefixes.read(ids)

    def _with_less_memory(
        self, trees: Sequence[PrefixTree], pairs: Sequence[Pair], prefix: "Cache | None"
    ) -> dict[int, Scored]:
        """Score some trees; out of memory, half of their pairs at a time, with no prefix kept.

        Raises:
            CandidateFailed: there is no room for one pair.
        """
        import torch

        numbers = [number for tree in trees for number in tree.numbers]
        n_tokens = len(trees) * max(tree.n_tokens for tree in trees)
        try:
            if n_tokens < self._too_many or len(numbers) == 1:
                return self._score(trees, pairs, prefix)
        except oom.ERRORS as error:
            if not oom.ran_out(error):
                raise
            if not self.prefixes.forget() and len(numbers) == 1:
                raise CandidateFailed("out of memory while scoring one answer", _SHORTER) from None
            self._too_many = n_tokens  # as many again are halved before they fail
        # Outside of the clause, in which the error still holds what was computed until then.
        torch.cuda.empty_cache()
        half, shared = len(numbers) // 2, _length(prefix)
        scored: dict[int, Scored] = {}
        for part in filter(None, (numbers[:half], numbers[half:])):
            scored |= self._with_less_memory(grow(pairs, self.budget, shared, part), pairs, prefix)
        return scored

    def _score(
        self, trees: Sequence[PrefixTree], pairs: Sequence[Pair], prefix: "Cache | None" = None
    ) -> dict[int, Scored]:
        """Return what was found of each pair that the trees hold, by its number."""
        import torch

        packed = pack(trees, pairs)
        with torch.inference_mode():
            logits = self._logits(packed, prefix)  # (u, v)
            where, targets = (
                torch.tensor(of, device=logits.device) for of in (packed.where, packed.targets)
            )  # (m,)
            n_rows = _SLICE[logits.device.type]
            total = torch.cat([_normaliser(rows.float()) for rows in logits.split(n_rows)])
            chosen = logits[where, targets]
            greedy = chosen == logits.amax(-1)[where]
            # Of equal logits the first is the argmax.
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
            inputs["attention_mask"] = self._mask(packed, _length(prefix))
        if prefix:
            inputs |= {"past_key_values": row_cache(self.model, prefix, len(packed.ids)), "use_cache": True}
        with only_at(self.model, torch.tensor(packed.sources, device=device)):
            logits: torch.Tensor = self.model(**inputs).logits[0]
            return logits

    def _mask(self, packed: Pack, shared: int) -> "torch.Tensor":
        """Return the additive mask (b, 1, w, shared + w): what was read before, and the way from the root."""
        import torch

        ends = torch.tensor(packed.ends, device=self.model.device)  # (b, w)
        order = torch.arange(ends.shape[1], device=self.model.device)
        seen = (order[:, None] >= order) & (order[:, None] < ends[:, None])
        seen = torch.nn.functional.pad(seen, (shared, 0), value=True)
        blocked = torch.finfo(self.model.dtype).min
        return torch.where(seen, 0.0, blocked).to(self.model.dtype)[:, None]

    def _honours_masks(self) -> bool:
        ids = tuple(i % self.model.config.get_text_config().vocab_size for i in range(5, 37))
        branches = (ids[4:8], ids[8:16], ids[16:20], ids[20:])
        pairs = [(ids[:4], branch) for branch in branches] + [(ids[:1], ids[1:7]), (ids[3:4], ids[4:7])]
        self.engine = "packed"
        try:
            with chunked_attention(self.model):
                together = self._score(grow(pairs, 2 * len(ids)), pairs)
        except (ValueError, RuntimeError, TypeError) as error:
            if oom.ran_out(error):
                raise
            return False
        self.engine = "plain"
        gaps = [
            abs(p - q)
            for i, pair in enumerate(pairs)
            for p, q in zip(together[i][0], self._score_alone(pair)[0], strict=True)
        ]
        return sum(gaps) / len(gaps) < _AGREEMENT_NATS


def _length(prefix: "Cache | None") -> int:
    return int(prefix.get_seq_length()) if prefix else 0


def _normaliser(logits: "torch.Tensor") -> "torch.Tensor":
    """Return log Σ exp of each row of logits (u, v); `logsumexp` goes over fresh memory five times."""
    return logits.amax(-1) - logits.log_softmax(-1).amax(-1)


@contextmanager
def only_at(model: "PreTrainedModel", wanted: "torch.Tensor") -> Iterator[None]:
    """Let the vocabulary's projection see the hidden states at `wanted` (u rows and indices) only.

    Inside, logits have the shape (1, u, v).
    """

    def select(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0][wanted[:, 0], wanted[:, 1]][None], *args[1:])

    projection: Any = model.get_output_embeddings()
    hook = projection.register_forward_pre_hook(select)
    try:
        yield
    finally:
        hook.remove()
