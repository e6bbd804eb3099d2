"""Speed of a decoder on this CPU, measured by short steps of reading, generating and training.

Invariant: no weights are read. A small model is rebuilt at full depth with random weights; for a larger one,
two shallow copies give the time per layer and of everything else. Source: transformers' Llama, whose layers
most decoders have; PEFT's LoRA on every second matrix
"""

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Any

from harness.models.batching import Size, Tokens
from harness.models.cpu_kernels import prepack
from harness.models.generation import Continuation, PromptReader, answers
from harness.models.loglikelihood import Executor
from harness.models.shapes import Shape
from harness.progress import quiet_libraries

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM

_DEPTHS, _WIDEST = (1, 4), 1024  # layers and largest width of the copies; wider matrices reach the same speed
_SMALL = 2e8  # up to this many parameters, a model is copied whole
_ROUNDS = 2  # the faster one counts
_LONG_S = 2.0  # a run of more seconds, as on a loaded machine, is not repeated
_ROWS, _LENGTH, _ANSWER = 4, 80, 20  # rows, tokens per row and learned tokens of a training step
_TEXTS, _SCORED = (24, 40), 4  # number and length of the texts read together, and scored tokens of each
_PROMPTS, _SHARED, _OWN, _NEW = 96, 48, 2, 5  # prompts answered together; shared, own and new tokens of each
# Share of max_new_tokens that is really computed: in fp32, finished rows leave the batch.
_COMPUTED = {"bf16": 0.9, "fp32": 0.55}
_OPERATIONS = (2, 2, 4)  # per parameter and token that is read, generated or trained


def measure_speeds(shape: Shape, precision: str) -> list[float]:
    """Return the GFLOP/s that a decoder of this shape reaches when reading, generating and training."""
    quiet_libraries()
    import torch

    with torch.random.fork_rng():
        if shape.n_parameters <= _SMALL:
            n_parameters, *times = _time_steps(_build(shape, shape.n_layers, precision), precision)
        else:
            few, more = (_time_steps(_build(shape, depth, precision), precision) for depth in _DEPTHS)
            others = (shape.n_layers - _DEPTHS[0]) / (_DEPTHS[1] - _DEPTHS[0])
            n_parameters, *times = (a + others * max(b - a, 0.0) for a, b in zip(few, more, strict=True))
    return [n * n_parameters / took_s / 1e9 for n, took_s in zip(_OPERATIONS, times, strict=True)]


def _build(shape: Shape, depth: int, precision: str) -> "LlamaForCausalLM":
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    narrowed = min(1.0, _WIDEST / shape.hidden)
    n_heads = max(1, round(narrowed * shape.n_heads))
    n_kv_heads = max(1, round(narrowed * shape.n_kv_heads))
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=n_heads * max(1, round(narrowed * shape.hidden / n_heads)),
        intermediate_size=max(1, round(narrowed * shape.intermediate)),
        num_hidden_layers=depth,
        num_attention_heads=n_heads,
        num_key_value_heads=n_kv_heads if n_heads % n_kv_heads == 0 else n_heads,
        head_dim=shape.head_dim + shape.head_dim % 2,
        tie_word_embeddings=shape.tied,
    )
    made: LlamaForCausalLM = LlamaForCausalLM._from_config(  # noqa: SLF001
        config, dtype={"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    )
    made.eval()
    return made


def _time_steps(model: "LlamaForCausalLM", precision: str) -> tuple[float, float, float, float]:
    """Return the number of parameters, and the seconds per token read, allowed to generate, and trained."""
    import torch
    from peft import LoraConfig, get_peft_model

    layers: Any = model.model.layers
    adapted = [name for name, module in layers.named_modules() if type(module) is torch.nn.Linear][::2]
    made: Any = get_peft_model(model, LoraConfig(r=16, target_modules=[f"layers.{name}" for name in adapted]))
    made.train()
    model.set_attn_implementation("eager")
    trained = [parameter for parameter in made.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, fused=True)
    rows = torch.tensor(_draw_texts(model, _ROWS, _LENGTH))
    kept = torch.arange(_LENGTH - _ANSWER, _LENGTH)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = made(input_ids=rows, logits_to_keep=kept, use_cache=False).logits
        torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), rows[:, kept].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    trained_s = time_quickest(step) / (_ROWS * _LENGTH)
    made.unload().eval().set_attn_implementation("sdpa")  # removes the adapter
    prepack(model)
    executor = Executor(model, 1024, "packed")
    n_texts, length = _TEXTS
    texts = _draw_texts(model, n_texts, length)
    pairs = [(text[:-_SCORED], text[-_SCORED:]) for text in texts]
    read_s = time_quickest(lambda: executor.score(pairs)) / (n_texts * length)
    reader = PromptReader(model, Size(512, 1024), executor.prefixes)
    (shared,) = _draw_texts(model, 1, _SHARED)
    prompts = [shared + own for own in _draw_texts(model, _PROMPTS, _OWN)]
    per_token_s = [_time_new_tokens(reader, prompts)]
    if _NEW * per_token_s[0] < _LONG_S:
        per_token_s.append(_time_new_tokens(reader, prompts))
    generated_s = min(per_token_s) / _PROMPTS
    return model.num_parameters(), read_s, _COMPUTED[precision] * generated_s, trained_s


def time_quickest(step: Callable[[], object], rounds: int = _ROUNDS) -> float:
    """Return the seconds of the fastest run after a warm-up run; a long run is the last one."""
    times = list[float]()
    while len(times) <= rounds and max(times, default=0.0) < _LONG_S:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return min(times[1:] or times)


def _time_new_tokens(reader: PromptReader, prompts: Sequence[Tokens]) -> float:
    import torch

    read_at = list[float]()

    def goes_on(new: "torch.Tensor") -> "torch.Tensor":
        read_at.append(time.perf_counter())
        return torch.zeros(len(new), dtype=torch.bool)

    answers(reader, prompts, Continuation(_NEW, (-1,), goes_on))
    return median(later - earlier for earlier, later in pairwise(read_at))


def _draw_texts(model: "LlamaForCausalLM", n: int, length: int) -> list[Tokens]:
    draws = ((7919 * number) % model.config.vocab_size for number in range(n * length))
    return list(zip(*[draws] * length, strict=True))
