"""Costs of a pass on a card: measured once for each card, shape of a model and precision, and kept.

Invariant: on a CPU nothing is measured, and batches are laid out as ever. What is measured is rounded to a
power of two, so that the same card gives the same layout again; the keys that fit are counted, not measured.
Source: a pass takes the time of its weights and launches, and so much for each token, pair of tokens that
attend and key that is read (Pope et al. 2022, arXiv:2211.05102)
"""

from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from math import inf, log2
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.cache import cache_dir, memo, recall
from harness.models import hardware, hub, memory
from harness.models.batching import CPU_COSTS, PassCosts, Size
from harness.models.devices import LEAST_TOKENS, is_spread
from harness.models.generation import Continuation, PromptReader, answers
from harness.models.hardware import Machine
from harness.models.hub import ModelSource
from harness.models.loglikelihood import UNSUPPORTED, project_only
from harness.models.prefix_cache import PrefixCache
from harness.models.step_times import time_quickest
from harness.provenance import versions_of
from harness.records import digest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_KIND = "pass_costs"  # of what is remembered
_REPEATS = 3  # of which the quickest counts
_ROWS = 8  # of a pass; as many more say what a token takes
_TOKENS, _FEW_KEYS, _MANY_KEYS = 128, 256, 2048  # of a row, at most
_STEPS = 8  # new tokens, less one that is read
# Beyond these something else was measured.
_MOST = PassCosts(reading=1 << 12, answering=1 << 20, attention=1 << 14)
_KEYS_SHARE = 0.8  # of the memory that weights leave; the rest is for what a pass computes


class Timings(NamedTuple):
    """Seconds of passes, and how many tokens they had.

    `one` reads a token, `rows` so many rows of `width` tokens, `twice` as many again, `joined` as many tokens
    as `twice` in one row. A step of answering takes `few_keys` or `many_keys` where rows see `few` or `many`.
    """

    one: float
    rows: float
    twice: float
    joined: float
    few_keys: float
    many_keys: float
    width: int
    few: int
    many: int


def costs_of(model: "PreTrainedModel", source: ModelSource, machine: Machine) -> PassCosts:
    """Return what a pass of a base costs here: a CPU's own figures, or those of its card."""
    if machine.device == "cpu":
        return CPU_COSTS
    placed: Any = model
    cards = len(set(placed.hf_device_map.values())) if is_spread(model) else 1
    return card_costs(model, source, machine, cards * hardware.memory("cuda").total_gib * 2**30)


def card_costs(
    model: "PreTrainedModel", source: ModelSource, machine: Machine, card_bytes: float
) -> PassCosts:
    """Return the costs of a card of so much memory, measured where they are not known yet."""
    shape = hub.shape(source)
    if shape is None:
        return CPU_COSTS
    shape = shape._replace(stored_bytes=0.0)  # of files, which are others where the same model was trained
    key = digest([machine.name, machine.precision, shape, versions_of("layout")])
    kept = memo(_KIND, key, lambda: _measure(model))
    found = PassCosts(*kept) if kept else CPU_COSTS
    room = card_bytes - 1e9 * (memory.weights_gb(shape, machine.precision) + memory.OVERHEAD_GB)
    keys = _KEYS_SHARE * room / max(memory.kv_cache_bytes(shape, 1, machine.precision), 1.0)
    return found._replace(keys=max(LEAST_TOKENS, 1 << int(log2(max(keys, 1.0)))))


def list_known_costs() -> dict[str, Any]:
    """Return all costs that were measured here, for workers on other machines with such cards."""
    found: dict[str, Any] = {}
    for file in (cache_dir() / _KIND).glob("*.json"):
        with suppress(OSError, ValueError):
            found[file.stem] = recall(file)
    return found


def learn_costs(known: Mapping[str, Any]) -> None:
    """Take over what was measured elsewhere."""
    for key, costs in known.items():
        memo(_KIND, key, lambda costs=costs: costs)  # type: ignore[misc]


def _measure(model: "PreTrainedModel") -> list[int] | None:
    """Measure what passes of a model take; None where memory runs out, it cannot be read or timed."""
    try:
        found = solve(measure_passes(model))
        return list(found) if found else None
    except (*memory.OUT_OF_MEMORY, *UNSUPPORTED):  # what is wrong with the model is said where it answers
        pass
    memory.release_gpu_memory()
    return None


def solve(seen: Timings) -> PassCosts | None:
    """Return costs in tokens from seconds, each a power of two; None where no token takes any time."""
    token_s = (seen.twice - seen.rows) / (_ROWS * seen.width)
    if token_s <= 0:  # another process disturbed the passes
        return None
    length = 2 * _ROWS * seen.width
    pairs = length**2 - 2 * _ROWS * seen.width**2
    key_s = (seen.many_keys - seen.few_keys) / (_ROWS * (seen.many - seen.few))
    joined = (seen.joined - seen.twice) / token_s
    return PassCosts(
        reading=_round_to_power(seen.one / token_s, _MOST.reading),
        answering=_round_to_power(seen.few_keys / key_s if key_s > 0 else inf, _MOST.answering),
        attention=_round_to_power(pairs / joined if joined > 0 else inf, _MOST.attention),
    )


def _round_to_power(tokens: float, most: int) -> int:
    """Return the power of two that is nearest to a cost, at most `most`."""
    return most if tokens >= most else 1 << max(0, round(log2(max(tokens, 1.0))))


def measure_passes(model: "PreTrainedModel") -> Timings:
    """Measure passes of a model that read and answer, each as the quickest of some."""
    text = model.config.get_text_config()
    longest = int(getattr(text, "max_position_embeddings", 0) or 1 << 30) - 2 * _STEPS
    width, many = min(_TOKENS, longest // (2 * _ROWS)), min(_MANY_KEYS, longest)
    few = min(_FEW_KEYS, many // 4)
    return Timings(
        one=_read_s(model, 1, 1, text.vocab_size),
        rows=_read_s(model, _ROWS, width, text.vocab_size),
        twice=_read_s(model, 2 * _ROWS, width, text.vocab_size),
        joined=_read_s(model, 1, 2 * _ROWS * width, text.vocab_size),
        few_keys=_step_s(model, few, text.vocab_size),
        many_keys=_step_s(model, many, text.vocab_size),
        width=width,
        few=few,
        many=many,
    )


def _read_s(model: "PreTrainedModel", rows: int, width: int, n_ids: int) -> float:
    """Measure a pass over rows of so many tokens, with the logits of each row's last one."""
    import torch

    device = model.device
    ids = torch.arange(rows * width, device=device).reshape(rows, width) % n_ids
    wanted = torch.tensor([(row, width - 1) for row in range(rows)], device=device)

    def read() -> None:
        with torch.inference_mode(), project_only(model, wanted):
            model(input_ids=ids, use_cache=False).logits.sum().item()  # which waits for the card

    return time_quickest(read, _REPEATS)


def _step_s(model: "PreTrainedModel", n_keys: int, n_ids: int) -> float:
    """Measure the step that gives some rows their next token, each of which sees so many keys."""
    shared = tuple(i % n_ids for i in range(n_keys - 1))
    prompts = [(*shared, row % n_ids) for row in range(_ROWS)]
    reader = PromptReader(model, Size(_ROWS, _ROWS * n_keys), PrefixCache(model))
    ways = (Continuation(n_new, (-1,), lambda new: new[:, 0] < 0) for n_new in (1, 1 + _STEPS))
    first, last = (time_quickest(partial(answers, reader, prompts, how), _REPEATS) for how in ways)
    return max(0.0, last - first) / _STEPS
