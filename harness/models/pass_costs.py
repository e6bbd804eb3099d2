"""Speeds and costs of a model's steps here, measured by short steps with random weights or by its own passes.

Invariant: a speed needs no weights: a small model is rebuilt at full depth; for a larger one, two shallow
copies give the time per layer and of everything else. On a CPU the costs of a pass, and so layouts, are
fixed; on a GPU they are measured once per card, model shape and precision, and rounded to powers of two, so
that the same card always gives the same layout; the number of keys that fit is computed.
Source: transformers' Llama, whose layers most decoders have; PEFT's LoRA on every second matrix; a pass takes
time for its weights and launches, per token, pair of attending tokens and key that is read (Pope et al. 2022,
arXiv:2211.05102)
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import pairwise
from math import inf, log2
from statistics import median
from typing import Any, NamedTuple

from harness.cache import cache_dir, memo, recall
from harness.models import hardware, hub, memory, out_of_memory
from harness.models.batching import CPU_COSTS, PassCosts, Size, Tokens
from harness.models.cpu_kernels import prepack
from harness.models.devices import LEAST_TOKENS, is_spread
from harness.models.generation import Continuation, PromptReader, answers
from harness.models.hardware import STEP_TOKENS, Machine
from harness.models.hub import ModelSource
from harness.models.later import Model, peft, torch, transformers
from harness.models.loglikelihood import UNSUPPORTED, Executor, project_only
from harness.models.prefix_cache import PrefixCache
from harness.models.shapes import Shape
from harness.progress import quiet_libraries
from harness.provenance import versions_of
from harness.records import digest

_DEPTHS, _WIDEST = (1, 4), 1024  # layers and largest width of the copies; wider matrices reach the same speed
_SMALL = 2e8  # up to this many parameters, a model is copied whole
_ROUNDS = 2  # the faster one counts
_LONG_S = 2.0  # a run of more seconds, as on a loaded machine, is not repeated
_TRAINED_ROWS, _ANSWER = 4, 10  # rows of a training step, and the learned tokens of each
_TEXTS, _SCORED = (24, 40), 4  # number and length of the texts read together, and scored tokens of each
_PROMPTS, _SHARED, _OWN, _NEW = 96, 48, 2, 5  # prompts answered together; shared, own and new tokens of each
# Share of max_new_tokens that is really computed: in fp32, finished rows leave the batch.
_COMPUTED = {"bf16": 0.9, "fp32": 0.55}
# Per parameter and token that is read, generated, or trained in a long or a short step.
_OPERATIONS = (2, 2, 4, 4)


def measure_speeds(shape: Shape, precision: str) -> list[float]:
    """Return a decoder's GFLOP/s when reading, generating, and training in a long and in a short step."""
    quiet_libraries()
    with torch.random.fork_rng():
        if shape.n_parameters <= _SMALL:
            n_parameters, *times = _time_steps(_build(shape, shape.n_layers, precision), precision)
        else:
            shallow, deep = (_time_steps(_build(shape, depth, precision), precision) for depth in _DEPTHS)
            scale = (shape.n_layers - _DEPTHS[0]) / (_DEPTHS[1] - _DEPTHS[0])
            n_parameters, *times = (a + scale * max(b - a, 0.0) for a, b in zip(shallow, deep, strict=True))
    return [n * n_parameters / took_s / 1e9 for n, took_s in zip(_OPERATIONS, times, strict=True)]


def _build(shape: Shape, depth: int, precision: str) -> "transformers.LlamaForCausalLM":
    narrowed = min(1.0, _WIDEST / shape.hidden)
    n_heads = max(1, round(narrowed * shape.n_heads))
    n_kv_heads = max(1, round(narrowed * shape.n_kv_heads))
    config = transformers.LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=n_heads * max(1, round(narrowed * shape.hidden / n_heads)),
        intermediate_size=max(1, round(narrowed * shape.intermediate)),
        num_hidden_layers=depth,
        num_attention_heads=n_heads,
        num_key_value_heads=n_kv_heads if n_heads % n_kv_heads == 0 else n_heads,
        head_dim=shape.head_dim + shape.head_dim % 2,
        tie_word_embeddings=shape.tied,
    )
    model: transformers.LlamaForCausalLM = transformers.LlamaForCausalLM._from_config(  # noqa: SLF001
        config, dtype={"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    )
    model.eval()
    return model


def _time_steps(model: "transformers.LlamaForCausalLM", precision: str) -> tuple[float, ...]:
    """Return the number of parameters, and the seconds per token for each of `_OPERATIONS`."""
    layers: Any = model.model.layers
    adapted = [name for name, module in layers.named_modules() if type(module) is torch.nn.Linear][::2]
    peft_model: Any = peft.get_peft_model(
        model, peft.LoraConfig(r=16, target_modules=[f"layers.{name}" for name in adapted])
    )
    peft_model.train()
    model.set_attn_implementation("eager")
    trained = [parameter for parameter in peft_model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, fused=True)

    def step(rows: "torch.Tensor") -> None:
        tail = torch.arange(rows.shape[1] - _ANSWER, rows.shape[1])
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = peft_model(input_ids=rows, logits_to_keep=tail, use_cache=False).logits
        torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), rows[:, tail].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    batches = [torch.tensor(_draw_texts(model, _TRAINED_ROWS, n // _TRAINED_ROWS)) for n in STEP_TOKENS]
    # The short one first: a long step of a slow machine is timed once, and would be a cold one.
    short_s, long_s = (time_quickest(partial(step, rows)) / rows.numel() for rows in batches[::-1])
    peft_model.unload().eval().set_attn_implementation("sdpa")  # removes the adapter
    prepack(model)
    executor = Executor(model, 1024, "packed")
    n_texts, length = _TEXTS
    pairs = [(text[:-_SCORED], text[-_SCORED:]) for text in _draw_texts(model, n_texts, length)]
    read_s = time_quickest(lambda: executor.score(pairs)) / (n_texts * length)
    reader = PromptReader(model, Size(512, 1024), executor.prefixes)
    (shared,) = _draw_texts(model, 1, _SHARED)
    prompts = [shared + suffix for suffix in _draw_texts(model, _PROMPTS, _OWN)]
    per_token_s = [_time_new_tokens(reader, prompts)]
    if _NEW * per_token_s[0] < _LONG_S:
        per_token_s.append(_time_new_tokens(reader, prompts))
    generated_s = min(per_token_s) / _PROMPTS
    return model.num_parameters(), read_s, _COMPUTED[precision] * generated_s, long_s, short_s


def time_quickest(step: Callable[[], object], rounds: int = _ROUNDS) -> float:
    """Return the seconds of the fastest run after a warm-up run; a long run is the last one."""
    times = list[float]()
    while len(times) <= rounds and max(times, default=0.0) < _LONG_S:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return min(times[1:] or times)


def _time_new_tokens(reader: PromptReader, prompts: Sequence[Tokens]) -> float:
    read_at = list[float]()

    def goes_on(new: "torch.Tensor") -> "torch.Tensor":
        read_at.append(time.perf_counter())
        return torch.zeros(len(new), dtype=torch.bool)

    answers(reader, prompts, Continuation(_NEW, (-1,), goes_on))
    return median(later - earlier for earlier, later in pairwise(read_at))


def _draw_texts(model: "transformers.LlamaForCausalLM", n: int, length: int) -> list[Tokens]:
    draws = ((7919 * number) % model.config.vocab_size for number in range(n * length))
    return list(zip(*[draws] * length, strict=True))


_KIND = "pass_costs"  # kind of the cached values
_REPEATS = 3  # the fastest one counts
_ROWS = 8  # rows of a pass; one of twice as many gives the time per token
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


def costs_of(model: Model, source: ModelSource, machine: Machine) -> PassCosts:
    """Return the costs of a base's pass here: fixed ones on a CPU, else those of its GPUs."""
    if machine.device == "cpu":
        return CPU_COSTS
    placed: Any = model
    cards = len(set(placed.hf_device_map.values())) if is_spread(model) else 1
    return card_costs(model, source, machine, cards * hardware.memory("cuda").total_gib * 2**30)


def card_costs(model: Model, source: ModelSource, machine: Machine, card_bytes: float) -> PassCosts:
    """Return the costs of a card with `card_bytes` of memory, measured unless known."""
    shape = hub.shape(source)
    if shape is None:
        return CPU_COSTS
    shape = shape._replace(stored_bytes=0.0)  # files differ where the same model was trained
    key = digest([machine.name, machine.precision, shape, versions_of("layout")])
    numbers = memo(_KIND, key, lambda: _measure(model))
    costs = PassCosts(*numbers) if numbers else CPU_COSTS
    room = card_bytes - 1e9 * (memory.weights_gb(shape, machine.precision) + memory.OVERHEAD_GB)
    keys = _KEYS_SHARE * room / max(memory.kv_cache_bytes(shape, 1, machine.precision), 1.0)
    return costs._replace(keys=max(LEAST_TOKENS, 1 << int(log2(max(keys, 1.0)))))


def list_known_costs() -> dict[str, Any]:
    """Return all costs measured here, for workers on other machines with the same cards."""
    costs: dict[str, Any] = {}
    for file in (cache_dir() / _KIND).glob("*.json"):
        with suppress(OSError, ValueError):
            costs[file.stem] = recall(file)
    return costs


def learn_costs(costs_by_key: Mapping[str, Any]) -> None:
    """Store costs that were measured elsewhere."""
    for key, costs in costs_by_key.items():
        memo(_KIND, key, lambda costs=costs: costs)  # type: ignore[misc]


def _measure(model: Model) -> list[int] | None:
    """Measure a model's passes; None if memory runs out, or it cannot be read or timed."""
    with suppress(*out_of_memory.OUT_OF_MEMORY, *UNSUPPORTED):  # a broken model is reported when it answers
        costs = solve(measure_passes(model))
        return list(costs) if costs else None
    out_of_memory.release_gpu_memory()
    return None


def solve(timings: Timings) -> PassCosts | None:
    """Return costs in tokens from seconds, as powers of two; None if a token takes no time."""
    if timings.token <= 0:  # another process disturbed the passes
        return None
    return PassCosts(
        reading=_round_to_power(timings.one / timings.token, _MOST.reading),
        answering=_round_to_power(timings.step / timings.key if timings.key > 0 else inf, _MOST.answering),
        attention=_round_to_power(timings.token / timings.pair if timings.pair > 0 else inf, _MOST.attention),
    )


def _round_to_power(tokens: float, limit: int) -> int:
    return limit if tokens >= limit else 1 << max(0, round(log2(max(tokens, 1.0))))


def measure_passes(model: Model) -> Timings:
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


def _read_s(model: Model, rows: int, width: int, n_ids: int) -> float:
    """Measure a pass over rows of `width` tokens, with the logits of each row's last token."""
    device = model.device
    ids = torch.arange(rows * width, device=device).reshape(rows, width) % n_ids
    last_indices = torch.tensor([(row, width - 1) for row in range(rows)], device=device)

    def read() -> None:
        with torch.inference_mode(), project_only(model, last_indices):
            model(input_ids=ids, use_cache=False).logits.sum().item()  # `item` waits for the GPU

    return time_quickest(read, _REPEATS)


def _step_s(model: Model, n_keys: int, n_ids: int) -> float:
    """Measure a generation step for some rows with `n_keys` keys each."""
    prompts = [(*(i % n_ids for i in range(n_keys - 1)), row % n_ids) for row in range(_ROWS)]
    reader = PromptReader(model, Size(_ROWS, _ROWS * n_keys), PrefixCache(model))
    continuations = (Continuation(n_new, (-1,), lambda new: new[:, 0] < 0) for n_new in (1, 1 + _STEPS))
    first, last = (time_quickest(partial(answers, reader, prompts, how), _REPEATS) for how in continuations)
    return max(0.0, last - first) / _STEPS
