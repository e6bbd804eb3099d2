"""Fit of a base on a card, from its configuration and the headers of its weights alone.

Invariant: no weights are read or fetched. Memory is that of `models.memory`, part by part; a time rests on
the tokens and the speed that are given.

Source: as `models.memory`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from harness.errors import Problem, UserError
from harness.evaluation import costs
from harness.evaluation.candidates import ResolvedCandidate
from harness.evaluation.session import Session
from harness.models import hub, memory
from harness.models.adapters import CONFIG, Tensor, expert_parameters, parameters_of
from harness.models.hub import ModelSource
from harness.models.memory import Peak, Shape
from harness.records import Run, parse_json
from harness.spec import HUB

_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")  # as transformers finds it

_THINKING = "enable_thinking"  # the variable of the templates of Qwen3, SmolLM3 and others
_OF_EXPERTS = re.compile(r"expert|gate_up|(up|down)_proj|\bw[123]\b")  # as families call their matrices
_WHOLE = "full fine-tuning"
RANK = 16  # of the adapters that are estimated, as `lora` trains them unless it is told otherwise


class Asked(NamedTuple):
    """Question of a fit: memory of the card in GB, tokens of a row, rows of a batch, and precision.

    `tokens` are those of all training rows, in all epochs, at `tflops` of large products; `hour_usd` is the
    card's price. Without the first two there is no time, without the last no price.
    """

    gpu_gb: float
    length: int = 2048
    batch: int = 4
    precision: str = "bf16"
    tokens: float = 0.0
    tflops: float = 0.0
    hour_usd: float | None = None


class Way(NamedTuple):
    """A way to use a base: its peak memory, whether that fits, and of a training time and price.

    `why_not` says what forbids it whatever the memory.
    """

    name: str
    peak: Peak
    fits: bool
    checkpointing: bool | None = None
    time_s: float | None = None
    cost_usd: float | None = None
    why_not: str = ""


class BaseFit(NamedTuple):
    """Result of the look at a base: its size and shape, and each way to use it."""

    name: str
    n_parameters: int
    active: float
    shape: Shape
    asked: Asked
    ways: tuple[Way, ...]


def examine_base(name: str, asked: Asked) -> BaseFit:
    """Say which ways of using a base fit.

    Raises:
        UserError: there is no such model, it is gated, or its configuration does not say enough;
            or there is no such precision.
    """
    if asked.precision not in memory.BYTES:
        expected = f"one of {', '.join(memory.BYTES)}"
        raise UserError(Problem("--precision", asked.precision, expected, "leave it out"))
    config, tensors = _headers(name)
    bits = (config.get("quantization_config") or {}).get("bits") or 4
    counted = parameters_of(tensors, int(bits))
    shape = memory.shape_of(config, sum(counted.values()))
    if shape is None or not counted:
        found = "a configuration without layers, widths or weights" if counted else "no safetensors"
        expected = "config.json of a language model, and its weights as safetensors"
        raise UserError(Problem(f"--base {name}", found, expected, "a language model of transformers"))
    if in_experts := expert_parameters(counted):
        shape = shape._replace(in_experts=float(in_experts))
    return BaseFit(name, sum(counted.values()), shape.active, shape, asked, ways(shape, asked))


def ways(shape: Shape, asked: Asked) -> tuple[Way, ...]:
    """Estimate prompting, and every training with and without gradient checkpointing."""
    tokens = asked.batch * asked.length
    prompting = memory.inference_peak(shape, tokens, asked.precision, read=tokens)
    adapter = memory.lora_parameters(shape, RANK)
    trained = (("LoRA", adapter, ""), ("QLoRA", adapter, "nf4"), (_WHOLE, shape.n_parameters, ""))
    found = [Way("prompting", prompting, prompting.total <= asked.gpu_gb)]
    for name, n_trained, quantization in trained:
        for checkpointing in (True, False):
            peak = memory.training_peak(
                shape,
                n_trained,
                tokens,
                asked.precision,
                quantization=quantization,
                checkpointing=checkpointing,
                in_tiles=True,
            )
            found.append(_describe_training(name, peak, shape, asked, checkpointing, bool(quantization)))
    return tuple(found)


def _describe_training(
    name: str, peak: Peak, shape: Shape, asked: Asked, checkpointing: bool, quantized: bool
) -> Way:
    """Put a training's memory beside its time and price."""
    why_not = ""
    if quantized and (share := shape.in_experts / shape.n_parameters) > memory.MOST_IN_EXPERTS:
        why_not = f"{share:.0%} of the parameters are in experts, which NF4 leaves in 16 bits"
    time_s = _training_s(name, shape, asked, checkpointing) if asked.tokens and asked.tflops else None
    hour = asked.hour_usd
    cost = None if time_s is None or hour is None else costs.price_usd(time_s, "cuda", hour)
    return Way(name, peak, not why_not and peak.total <= asked.gpu_gb, checkpointing, time_s, cost, why_not)


def _training_s(name: str, shape: Shape, asked: Asked, checkpointing: bool) -> float:
    """Estimate the time of a training: its start, and its operations at the share that trainings reach."""
    n_adapter = 0 if name == _WHOLE else memory.lora_parameters(shape, RANK)
    flops = memory.training_flops(shape.active, asked.tokens, n_adapter, checkpointing=checkpointing)
    start_s = costs.start_s(shape.n_parameters * memory.BYTES[asked.precision], "cuda")
    return start_s + flops / (asked.tflops * 1e12 * costs.SHARES["cuda"].train)


def quantization_problems(candidate: ResolvedCandidate) -> Iterator[Problem]:
    """Yield that quantising leaves a base mostly as it is: it takes linear layers, and no experts."""
    for base in dict.fromkeys((candidate.served_base, candidate.trained_base)):
        if not base.quantization or hub.is_packed(base):
            continue
        if (share := hub.expert_share(base)) > memory.MOST_IN_EXPERTS:
            found = (
                f"{base.quantization} of {base.name}, of which {share:.0%} are experts that stay in 16 bits"
            )
            yield Problem(f"candidate {candidate.name}", found, "a base of linear layers", "method: lora")


def marker_problems(candidate: ResolvedCandidate, *, chat: bool) -> Iterator[Problem]:
    """Yield that nothing marks what the assistant says, where a training is to learn that alone."""
    if not any(trial.source.params.get("assistant_only_loss") for trial in candidate.trials):
        return
    where, step = f"candidate {candidate.name}", "leave out assistant_only_loss"
    base = candidate.trained_base
    if not chat:
        found = "assistant_only_loss, and a target with chat_template: false"
        yield Problem(where, found, "a target that is asked in chat", step)
    elif not hub.is_packed(base) and not _MARKED.search(hub.chat_template(base)):
        found = (
            f"assistant_only_loss, and a chat template that does not mark the assistant's words ({base.name})"
        )
        expected = "{% generation %} and {% endgeneration %} around them in its chat template"
        yield Problem(where, found, expected, f"{step}: the answer alone is learnt, as ever")


def base_remarks(session: Session, runs: Iterable[Run]) -> Iterator[str]:
    """Yield what to know of bases whose thinking nobody decided, and of experts that were not trained."""
    for name, source in session.sources.items():
        undecided = not hub.is_packed(source) and not source.switches
        if undecided and _THINKING in hub.chat_template(source):
            yield (
                f"{name}: its chat template has {_THINKING}, which is not set; a base that thinks first is "
                "cut off where a fine-tune is not, unless both are told not to think; "
                f"chat_template_kwargs: {{{_THINKING}: false}}"
            )
    for run in runs:
        candidate = session.candidates.get(run.candidate)
        made = session.store.weights(run.training.fit_key) if run.training.fit_key else None
        if candidate and made and leaves_experts(candidate.base, made):
            yield (
                f"{run.candidate}: its adapter leaves the base's experts alone; "
                "target_parameters: [mlp.experts.gate_up_proj, mlp.experts.down_proj] would reach them"
            )


def leaves_experts(base: ModelSource, folder: Path) -> bool:
    """Tell whether the adapter in a folder is on none of the experts that its base has."""
    try:
        said = parse_json((folder / "adapter" / CONFIG).read_text("utf-8"))
    except OSError:
        return False
    modules = said.get("target_modules") or []
    named = [*([modules] if isinstance(modules, str) else modules), *(said.get("target_parameters") or ())]
    return not any(map(_OF_EXPERTS.search, named)) and hub.expert_share(base) > 0


def _headers(name: str) -> tuple[Mapping[str, Any], Mapping[str, Tensor]]:
    """Read a model's configuration and the headers of its weights, from a folder or the hub.

    Raises:
        UserError: it is neither a folder with a configuration nor a hub id that can be asked for.
    """
    folder = Path(name).expanduser()
    if name in hub.NAMES:
        folder = hub.unpack()
    if not folder.is_dir():
        return hub.remote_headers(name.removeprefix(HUB), "--base")
    try:
        return parse_json((folder / "config.json").read_text("utf-8")), hub.stored_tensors(folder)
    except (OSError, ValueError) as error:
        found = f"a folder that cannot be read ({error})"
        problem = Problem(f"--base {name}", found, "config.json and whole safetensors", "check the path")
        raise UserError(problem) from None
