"""Costs of a pass on a GPU, measured once per card, model shape and precision, and cached.

Invariant: on a CPU layouts are fixed. Measurements are rounded to powers of two, so that the same card always
gives the same layout; the number of keys that fit is computed. Source: a pass takes time for its weights and
launches, per token, pair of attending tokens and key that is read (Pope et al. 2022, arXiv:2211.05102)
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

_KIND = "pass_costs"  # kind of the cached values
_REPEATS = 3  # the fastest one counts
_ROWS = 8  # of a pass; twice as many show the time per token
_TOKENS, _FEW_KEYS, _MANY_KEYS = 128, 256, 2048  # most tokens of a row
_STEPS = 8  # new tokens minus one
# Larger values are measurement errors.
_MOST = PassCosts(reading=1 << 12, answering=1 << 20, attention=1 << 14)
_KEYS_SHARE = 0.8  # share of the memory besides weights; the rest is for activations


class Timings(NamedTuple):
    """Seconds of a pass of one token, per further token, per pair of attending tokens, of a step, per key."""

    one: float
    token: float
    pair: float
    step: float
    key: float


def costs_of(model: "PreTrainedModel", source: ModelSource, machine: Machine) -> PassCosts:
    """Return the costs of a base's pass here: fixed ones on a CPU, else those of its GPUs."""
    if machine.device == "cpu":
        return CPU_COSTS
    placed: Any = model
    cards = len(set(placed.hf_device_map.values())) if is_spread(model) else 1
    return card_costs(model, source, machine, cards * hardware.memory("cuda").total_gib * 2**30)


def card_costs(
    model: "PreTrainedModel", source: ModelSource, machine: Machine, card_bytes: float
) -> PassCosts:
    """Return the costs of a card with `card_bytes` of memory, measured unless known."""
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
    """Return all costs measured here, for workers on other machines with the same cards."""
    found: dict[str, Any] = {}
    for file in (cache_dir() / _KIND).glob("*.json"):
        with suppress(OSError, ValueError):
            found[file.stem] = recall(file)
    return found


def learn_costs(known: Mapping[str, Any]) -> None:
    """Store costs that were measured elsewhere."""
    for key, costs in known.items():
        memo(_KIND, key, lambda costs=costs: costs)  # type: ignore[misc]


def _measure(model: "PreTrainedModel") -> list[int] | None:
    """Measure a model's passes; None if memory runs out, or it cannot be read or timed."""
    with suppress(*memory.OUT_OF_MEMORY, *UNSUPPORTED):  # a broken model is reported when it answers
        found = solve(measure_passes(model))
        return list(found) if found else None
    memory.release_gpu_memory()
    return None


def solve(seen: Timings) -> PassCosts | None:
    """Return costs in tokens from seconds, as powers of two; None if a token takes no time."""
    if seen.token <= 0:  # another process disturbed the passes
        return None
    return PassCosts(
        reading=_round_to_power(seen.one / seen.token, _MOST.reading),
        answering=_round_to_power(seen.step / seen.key if seen.key > 0 else inf, _MOST.answering),
        attention=_round_to_power(seen.token / seen.pair if seen.pair > 0 else inf, _MOST.attention),
    )


def _round_to_power(tokens: float, most: int) -> int:
    return most if tokens >= most else 1 << max(0, round(log2(max(tokens, 1.0))))


def measure_passes(model: "PreTrainedModel") -> Timings:
    """Measure passes of reading and answering, each as the fastest of several."""
    text = model.config.get_text_config()
    longest = int(getattr(text, "max_position_embeddings", 0) or 1 << 30) - 2 * _STEPS
    width, many = min(_TOKENS, longest // (2 * _ROWS)), min(_MANY_KEYS, longest)
    few, length, n_ids = min(_FEW_KEYS, many // 4), 2 * _ROWS * width, text.vocab_size
    rows_s, twice_s = (_read_s(model, n * _ROWS, width, n_ids) for n in (1, 2))
    joined_s = _read_s(model, 1, length, n_ids)
    few_s, many_s = (_step_s(model, n_keys, n_ids) for n_keys in (few, many))
    return Timings(
        one=_read_s(model, 1, 1, n_ids),
        token=(twice_s - rows_s) / (_ROWS * width),
        pair=(joined_s - twice_s) / (length**2 - length * width),
        step=few_s,
        key=(many_s - few_s) / (_ROWS * (many - few)),
    )


def _read_s(model: "PreTrainedModel", rows: int, width: int, n_ids: int) -> float:
    """Measure a pass over rows of `width` tokens, with the logits of each row's last token."""
    import torch

    device = model.device
    ids = torch.arange(rows * width, device=device).reshape(rows, width) % n_ids
    wanted = torch.tensor([(row, width - 1) for row in range(rows)], device=device)

    def read() -> None:
        with torch.inference_mode(), project_only(model, wanted):
            model(input_ids=ids, use_cache=False).logits.sum().item()  # which waits for the card

    return time_quickest(read, _REPEATS)


def _step_s(model: "PreTrainedModel", n_keys: int, n_ids: int) -> float:
    """Measure a generation step for some rows with `n_keys` keys each."""
    shared = tuple(i % n_ids for i in range(n_keys - 1))
    prompts = [(*shared, row % n_ids) for row in range(_ROWS)]
    reader = PromptReader(model, Size(_ROWS, _ROWS * n_keys), PrefixCache(model))
    ways = (Continuation(n_new, (-1,), lambda new: new[:, 0] < 0) for n_new in (1, 1 + _STEPS))
    first, last = (time_quickest(partial(answers, reader, prompts, how), _REPEATS) for how in ways)
    return max(0.0, last - first) / _STEPS
