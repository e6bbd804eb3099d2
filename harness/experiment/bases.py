"""Bases: whether one fits a GPU, and quantisation of those that do not fit as published.

Invariant: no weights are read or fetched; estimates use the configuration and the headers of the weights.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from harness import plugins
from harness.errors import Problem, UserError, refuse
from harness.evaluation import costs
from harness.evaluation.candidates import ResolvedCandidate
from harness.models import hub, memory, shapes
from harness.models.devices import Room, weights_bytes
from harness.models.hardware import Machine
from harness.models.hub import ModelSource, quantize
from harness.models.memory import OVERHEAD_GB, Peak
from harness.models.shapes import Shape
from harness.models.weight_files import (
    Tensor,
    expert_parameters,
    map_stored_tensors,
    read_config,
    refuse_damaged,
)
from harness.spec import HUB, Experiment


def choose_quantization(
    experiment: Experiment, sources: Mapping[str, ModelSource], machine: Machine, room: Room
) -> dict[str, ModelSource]:
    """Return the bases, quantised if they exceed all GPUs' memory and every training quantises them."""
    gpus = [n for name, n in room.items() if name != "cpu"]
    usable_bytes = sum(gpus) - len(gpus) * OVERHEAD_GB * 1e9
    chosen_sources, trainings = dict(sources), []
    for recipe in experiment.candidates.values():
        starts = not (recipe.weights_of or recipe.init_from or recipe.merges)
        if starts and (method := plugins.method(recipe.method)).tunes:
            base = recipe.base_model or experiment.base_model
            trainings.append((base, recipe.quantization or method.quantization))
    for name, source in sources.items():
        quantizations = {quantization for base, quantization in trainings if base == name}
        if gpus and len(quantizations) == 1 and weights_bytes(source, machine.precision) > usable_bytes:
            chosen_sources[name] = quantize(source, quantizations.pop())
    problems = []
    for name, recipe in experiment.candidates.items():
        served_on = chosen_sources.get(recipe.base_model or experiment.base_model)
        if recipe.serve_on == "bf16" and served_on and served_on.quantization:
            found = f"serve_on: bf16 on {served_on.name}, which fits no GPU here in 16 bits"
            expected = f"{served_on.quantization}, as it is trained"
            step = "remove serve_on, or a machine with more memory"
            problems.append(Problem(f"candidate {name}", found, expected, step))
    refuse(problems)
    return chosen_sources


_THINKING = "enable_thinking"  # variable in the templates of Qwen3, SmolLM3 and others
_WHOLE = "full fine-tuning"
_WHOLE_IN_BF16 = "full fine-tuning (dtype: bfloat16)"
# Formats of quantised files on which adapters can train directly; other formats are unpacked first.
_ADAPTED = ("bitsandbytes", "gptq", "awq", "fp8", "hqq", "aqlm", "eetq")
_SHARED = {0: "", 2: " by ZeRO 2", 3: " by FSDP or ZeRO 3"}  # by ZeRO stage, or its equivalent
RANK = 16  # of the estimated adapters, the default of `lora`


class FitQuery(NamedTuple):
    """A card's memory in GB, tokens per row, rows per batch, and precision.

    `tokens` counts all training rows over all epochs, `tflops` is the speed of large matrix products, and
    `hour_usd` the card's price. Each of `gpus` has this memory; they share a batch and the trained state.
    """

    gpu_gb: float
    length: int = 2048
    batch: int = 4
    precision: str = "bf16"
    tokens: float = 0.0
    tflops: float = 0.0
    hour_usd: float | None = None
    gpus: int = 1


class BaseUse(NamedTuple):
    """One use of a base: peak memory, whether it fits, time and price; `why_not` rules it out."""

    name: str
    peak: Peak
    fits: bool
    checkpointing: bool | None = None
    time_s: float | None = None
    cost_usd: float | None = None
    why_not: str = ""


class BaseFit(NamedTuple):
    """A base with its size and shape, its possible uses, notes, and proposed trainings."""

    name: str
    n_parameters: int
    active: float
    shape: Shape
    asked: FitQuery
    ways: tuple[BaseUse, ...]
    notes: tuple[str, ...] = ()
    proposed: tuple[str, ...] = ()


def examine_base(name: str, query: FitQuery) -> BaseFit:
    """Estimate which uses of a base fit.

    Raises UserError if the model does not exist, is gated, or its configuration is incomplete.
    """
    refuse(_unusable(query))
    folder = hub.unpack() if name in hub.NAMES else Path(name).expanduser()
    if folder.is_dir():
        config: Mapping[str, Any] = read_config(folder)
        refuse_damaged(folder)
        tensors: Mapping[str, Tensor] = map_stored_tensors(folder)
    else:
        config, tensors = hub.remote_headers(name.removeprefix(HUB), "--base")
    counted = hub.count_by_tensor(tensors, config)
    n_bytes = sum(tensor.end - tensor.begin for tensor in tensors.values())
    n, in_experts = sum(counted.values()), float(expert_parameters(counted))
    shape = shapes.shape_of(config, n, n_bytes, in_experts or None)
    if shape is None or not counted:
        found = "a configuration without layers, widths or weights" if counted else "no safetensors"
        if shapes.complete_config(config).get("is_encoder_decoder"):
            found = "an encoder with a decoder"
        expected = "config.json of a causal language model, and its weights as safetensors"
        raise UserError(f"--base {name}", found, expected, "a language model of transformers")
    if shape.idle >= shape.n_parameters:
        found = f"experts of {shape.in_experts:,.0f} parameters, and weights of {shape.n_parameters:,.0f}"
        step = "the config.json that was published with the weights"
        raise UserError(f"--base {name}", found, "the experts that config.json names", step)
    quantized = shapes.quantization_method(config)
    notes, uses = list[str](), ways(shape, query, quantized)
    if not shape.adapted:
        notes.append(
            "PEFT could not count its adapters: figures of LoRA and QLoRA are those of Llama's layers; with"
            " experts, or layers other than attention, up to three times as many parameters may be trained"
        )
    if quantized:
        notes.append(
            f"its files are quantised ({quantized}), and take the memory of their headers; QLoRA and "
            f"{_WHOLE} take a base in 16 bits"
        )
    notes += [shapes.UNPACKED[quantized]] if quantized in shapes.UNPACKED else []
    proposed = tuple(_propose(uses, query.gpu_gb))
    return BaseFit(name, n, shape.active, shape, query, uses, tuple(notes), proposed)


def _propose(uses: Sequence[BaseUse], gpu_gb: float) -> Iterator[str]:
    # Yields the trainings to consider on this card, with reasons: QLoRA only where LoRA does not fit.
    smallest = {use.name: use for use in sorted(uses, key=lambda use: -use.peak.total)}
    fits = {use.name: use for use in smallest.values() if any(w.fits for w in uses if w.name == use.name)}
    if lora := next((use for name, use in fits.items() if name.startswith("LoRA")), None):
        yield f"{lora.name}: from {lora.peak.total:.1f} GB, and merged it answers as fast as the base"
    elif qlora := next((use for name, use in fits.items() if name.startswith("QLoRA")), None):
        plain = min(use.peak.total for name, use in smallest.items() if name.startswith("LoRA"))
        more = f"LoRA on the base in 16 bits takes {plain:.1f} GB of {gpu_gb:.4g}"
        on_nf4 = f"on NF4 {qlora.peak.total:.1f}; it answers more slowly than in 16 bits"
        yield f"{qlora.name}: {more}, {on_nf4}"
    for method, alternative in plugins.alternatives().items():
        if use := next((use for name, use in fits.items() if name.startswith(method)), None):
            reason = f"{alternative.reason}, from {use.peak.total:.1f} GB"
            yield f"{use.name}: {reason}; it answers as fast as the base"


def _unusable(query: FitQuery) -> Iterator[Problem]:
    if query.precision not in memory.BYTES:
        yield Problem("--precision", query.precision, f"one of {', '.join(memory.BYTES)}", "leave it out")
    for option, value in (("tokens", query.tokens), ("tflops", query.tflops), ("hour-usd", query.hour_usd)):
        if value is not None and not math.isfinite(value):
            yield Problem(f"--{option}", str(value), "a finite number", f"--{option} 100")
    if query.gpus > query.batch:
        found = f"{query.gpus} cards, and {query.batch} rows of a batch"
        yield Problem("--gpus", found, "a row for each card, which share them", f"--batch {query.gpus}")


def ways(shape: Shape, query: FitQuery, quantized: str = "") -> tuple[BaseUse, ...]:
    """Estimate prompting, and every training with and without gradient checkpointing.

    Files `quantized` by the named method are estimated both as stored and unpacked to 16 bits.
    """
    uses = []
    for name, form in _forms("prompting", shape, quantized):
        tokens = query.batch * query.length
        prompting = memory.inference_peak(form, tokens, query.precision, read=tokens)
        if query.gpus > 1:  # each GPU holds some of the layers with their keys
            weights, keys = prompting.weights / query.gpus, prompting.keys / query.gpus
            prompting = prompting._replace(weights=weights, keys=keys)
        uses.append(BaseUse(name, prompting, prompting.total <= query.gpu_gb))
    # Each with the number of parameters that it trains (0: all of them), and the base's quantisation.
    lora = memory.lora_parameters(shape, RANK)
    trainings = [(name, form, lora, "") for name, form in _forms("LoRA", shape, quantized)]
    if not quantized:
        trainings += [("QLoRA", shape, lora, "nf4"), (_WHOLE, shape, 0, "")]
        trainings += [(_WHOLE_IN_BF16, shape, 0, "")] if query.precision != "fp16" else []
        for name, alternative in plugins.alternatives().items():
            method = plugins.method(name)
            n_part = method.n_parameters(shape, method.params(**alternative.params))
            trainings.append((" ".join([name, *alternative.params.values()]), shape, n_part, ""))
    cards, n_bytes = query.gpus, shape.n_parameters * memory.BYTES[query.precision]
    for name, form, n_adapter, quantization in trainings:
        why_not, in_experts = "", shape.in_experts / shape.n_parameters
        if quantization and in_experts > memory.MOST_IN_EXPERTS:
            why_not = f"{in_experts:.0%} of the parameters are in experts, which NF4 leaves in 16 bits"
        # ZeRO stages that can shard it; only FSDP shards a four-bit base.
        stages = (0,) if cards == 1 else (0, 3) if quantization else (0, 2, 3)
        for stage, checkpointing in product(stages, (True, False)):
            peak = memory.training_peak(
                form,
                n_adapter or shape.n_parameters,
                math.ceil(query.batch / cards) * query.length,
                query.precision,
                quantization=quantization,
                checkpointing=checkpointing,
                in_tiles=True,
                trained_in="bf16" if name == _WHOLE_IN_BF16 else "fp32",
                shards=cards if stage else 1,
                zero_stage=stage,
            )
            time_s = cost = None
            if query.tokens and query.tflops:  # start-up, then operations at the utilisation of trainings
                work = shape.active, query.tokens, n_adapter
                flops = memory.training_flops(*work, checkpointing=checkpointing)
                time_s = costs.start_s(n_bytes, "cuda")
                time_s += flops / (cards * query.tflops * 1e12 * costs.TRAIN_SHARE)
                if query.hour_usd is not None:
                    cost = costs.price_usd(cards * time_s, "cuda", query.hour_usd)
            fits = not why_not and peak.total <= query.gpu_gb
            shared = _SHARED[stage].partition(" or ")[0] if quantization else _SHARED[stage]
            uses.append(BaseUse(name + shared, peak, fits, checkpointing, time_s, cost, why_not))
    return tuple(uses)


def _forms(name: str, shape: Shape, quantized: str) -> Iterator[tuple[str, Shape]]:
    adapts = name == "prompting" or not quantized or quantized in _ADAPTED
    if adapts:
        yield name, shape
    if quantized in shapes.UNPACKED or not adapts:
        yield f"{name} (unpacked)", shape._replace(stored_bytes=0.0)


def quantization_problems(candidate: ResolvedCandidate) -> Iterator[Problem]:
    """Yield a problem if a base cannot be quantised: its files already are, or it is mostly experts."""
    where = f"candidate {candidate.name}"
    for base in dict.fromkeys((candidate.served_base, candidate.trained_base)):
        if not base.quantization or hub.is_packed(base):
            continue
        method = shapes.quantization_method(read_config(base.path))
        if method not in ("", "bitsandbytes"):
            found = f"{base.quantization} of {base.name}, whose files are quantised already ({method})"
            yield Problem(where, found, "a base in 16 bits", "method: lora on the files as they are")
        elif (share := hub.expert_share(base)) > memory.MOST_IN_EXPERTS:
            found = f"{base.quantization} of {base.name}, where {share:.0%} are experts that stay in 16 bits"
            yield Problem(where, found, "a base of linear layers", "method: lora")


def base_remarks(sources: Mapping[str, ModelSource]) -> Iterator[str]:
    """Yield notes on bases that are measured quantised, or whose template's thinking mode is not set."""
    for name, source in sources.items():
        if source.quantization:
            yield (
                f"{name} does not fit the GPUs here in 16 bits: the base itself is measured in "
                f"{source.quantization.upper()}, as it is served"
            )
        if not hub.is_packed(source) and not source.switches and _THINKING in hub.chat_template(source):
            yield (
                f"{name}: its chat template has {_THINKING}, which is not set; a base that thinks first is "
                "cut off where a fine-tune is not, unless both are told not to think; "
                f"chat_template_kwargs: {{{_THINKING}: false}}"
            )
