"""Trainer settings and the run that all training loops share."""

import random
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from harness import regularizers
from harness.errors import CandidateFailed, Diverged, one_line
from harness.models import hardware, hub, memory, out_of_memory
from harness.models.hardware import Machine
from harness.models.later import Model, Tokenizer, torch, transformers
from harness.records import TrainingRecord
from harness.spec import Spec
from harness.training import parallel
from harness.training.context import (
    SAVED_EVERY,
    SCALE,
    FitContext,
    checkpoint_callback,
    figures,
    find_last_checkpoint,
    read_state,
    skip_cards,
)
from harness.training.tokenized import tokenized_rows

Row = dict[str, Any]

# Attention scores per head and layer that may be kept for the backward pass: 1 MB in bf16.
PLAIN_SCORES = 1 << 19
_LARGE_RANK = 64  # assumed for an adapter of unknown rank
_FINAL = ("train_", "total_flos")  # prefixes of the final figures, which the report sends to trackers


_OfTorch = Literal["adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"]
_OfAdam = Literal["adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit", "ademamix", "ademamix_8bit"]
_OfLion = Literal["lion_8bit", "lion_32bit", "paged_lion_8bit", "paged_lion_32bit"]
_OF_BITSANDBYTES = ("8bit", "32bit", "ademamix")
KNOBS = ("optim", "gradient_checkpointing", "lr_scheduler_kwargs")  # passed to TRL only if set


class LoopParams(Spec):
    """Parameters of every training loop, under TRL's names; each loop has its own default learning rate.

    Rows longer than `max_length` tokens are dropped and counted, never truncated. `gradient_checkpointing`
    defaults to on where a GPU's memory would not suffice without it.
    """

    learning_rate: float = Field(gt=0, le=1)
    num_train_epochs: float = Field(1.0, gt=0, le=100)
    weight_decay: float = Field(0.0, ge=0)
    max_steps: int = Field(-1, ge=-1)
    per_device_train_batch_size: int = Field(8, ge=1)
    gradient_accumulation_steps: int = Field(1, ge=1)
    lr_scheduler_type: Literal[
        "cosine", "linear", "constant", "constant_with_warmup", "cosine_with_min_lr"
    ] = "cosine"
    lr_scheduler_kwargs: dict[Literal["min_lr", "min_lr_rate", "num_cycles"], float] | None = None
    optim: Literal[_OfTorch, _OfAdam, _OfLion] | None = None
    gradient_checkpointing: bool | None = None
    warmup_steps: float = Field(0.05, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    max_length: int = Field(1024, ge=8)

    @field_validator("max_steps")
    @classmethod
    def _check_steps(cls, steps: int) -> int:
        if steps == 0:
            raise ValueError("max_steps: 0, which trains nothing; leave it out for whole epochs")
        return steps

    @property
    def trained_in(self) -> str:
        """Precision of the trained parameters."""
        return "fp32"

    @model_validator(mode="after")
    def _check_lowest_rate(self) -> "LoopParams":
        lowest = {"min_lr", "min_lr_rate"} & set(self.lr_scheduler_kwargs or {})
        if (self.lr_scheduler_type == "cosine_with_min_lr") != (len(lowest) == 1):
            takes = "takes lr_scheduler_kwargs: {min_lr_rate: 0.1}"
            raise ValueError(f"lr_scheduler_type: cosine_with_min_lr {takes}")
        return self


def attention(machine: Machine) -> str:
    """Return the attention implementation for training: FlashAttention-2 in bf16 on a GPU that has it."""
    from transformers.utils import is_flash_attn_2_available

    fits = machine.device == "cuda" and machine.precision == "bf16"
    return "flash_attention_2" if fits and is_flash_attn_2_available() else "sdpa"


def attend_plainly(model: Model, longest: int, batch_size: int) -> None:
    """Use eager attention, which keeps all scores, for short rows on a CPU: it is far faster there."""
    if model.device.type == "cpu" and batch_size * longest**2 <= PLAIN_SCORES:
        model.set_attn_implementation("eager")


# The memory estimate is within a fifth; activations are kept only if that margin is free.
_SPARE = 1.2


def checkpoints_activations(
    context: FitContext, params: LoopParams, n_trained: float | None, free_gib: float
) -> bool:
    """Tell whether a training fits in memory only with gradient checkpointing, which takes a third more time.

    `n_trained` parameters are trained, None for an adapter; `free_gib` includes the memory of the weights.
    """
    shape = hub.shape(context.source)
    if shape is None:
        return True
    peak = memory.training_peak(
        shape,
        memory.lora_parameters(shape, _LARGE_RANK) if n_trained is None else n_trained,
        params.per_device_train_batch_size * params.max_length,
        context.machine.precision,
        quantization=context.source.quantization,
        checkpointing=False,
        in_tiles=True,
        optim=params.optim,
        trained_in=params.trained_in,
        shards=parallel.process_count() if parallel.name_sharding() else 1,
        zero_stage=parallel.zero_stage(),
    )
    return _SPARE * peak.total > free_gib * 2**30 / 1e9


def is_of_bitsandbytes(optim: str | None) -> bool:
    """Tell whether an optimiser comes from bitsandbytes."""
    return (optim or "").endswith(_OF_BITSANDBYTES)


def settings(context: FitContext, params: LoopParams, n_trained: float | None = None) -> dict[str, Any]:
    """Return the TRL arguments that all methods share, and those of `KNOBS` that the user set."""
    from transformers.utils import is_bitsandbytes_available

    recompute, on_gpu = False, context.machine.device == "cuda"
    if on_gpu:  # free, or reserved by this process; all shards decide by the smallest amount
        free_gib = hardware.memory("cuda").free_gib + torch.cuda.memory_reserved() / 2**30
        recompute = checkpoints_activations(context, params, n_trained, -parallel.most(-free_gib, "cuda"))
    user_settings = {name: value for name in KNOBS if (value := getattr(params, name)) is not None}
    if is_of_bitsandbytes(params.optim) and not is_bitsandbytes_available():
        found = f"optim: {params.optim} is bitsandbytes', which is not installed"
        raise CandidateFailed(found, "pip install 'harness-evals[qlora]'")
    return {
        "seed": context.seed,
        "data_seed": context.seed,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # otherwise transformers logs a NaN loss as a number
        "include_num_input_tokens_seen": "non_padding",
        "disable_tqdm": True,
        "gradient_checkpointing": recompute,
        "bf16": context.machine.precision == "bf16",
        "fp16": context.machine.precision == "fp16",
        "use_cpu": not on_gpu,
        "report_to": "none",
        "dataloader_pin_memory": on_gpu,
        "train_sampling_strategy": "group_by_length",
        "save_strategy": "epoch",
        "save_steps": SAVED_EVERY,
        "restore_callback_states_from_checkpoint": True,  # the patience that early stopping has used up
        **regularizers.arguments(context.regularize),
        **user_settings,
    }


def evaluations(params: LoopParams, *, best: bool) -> dict[str, Any]:
    """Return the TRL arguments that validate each epoch and, if `best`, keep the best checkpoint."""
    return {
        "eval_strategy": "epoch",
        "per_device_eval_batch_size": params.per_device_train_batch_size,
        "prediction_loss_only": True,
        "load_best_model_at_end": best,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": False,
    }


def make_shared_trainer(kind: Any) -> Any:
    """Return a trainer class that also counts the tokens of batches with the two answers of pairs.

    Its processes together draw the rows of a step that one process would draw.
    """

    class SharedTrainer(kind):  # type: ignore[misc]
        def _get_train_sampler(self, *rows: Any) -> Any:
            # Rows of similar length are grouped per step.
            n_steps = self.args.gradient_accumulation_steps
            self.args.gradient_accumulation_steps = n_steps * parallel.process_count()
            try:
                return super()._get_train_sampler(*rows)
            finally:
                self.args.gradient_accumulation_steps = n_steps

        def _track_num_input_tokens(self, inputs: Row) -> None:
            mask_names = ("chosen_attention_mask", "rejected_attention_mask")
            if "input_ids" not in inputs and all(name in inputs for name in mask_names):
                mask = torch.cat([inputs[name].flatten() for name in mask_names])
                inputs = {"input_ids": mask, "attention_mask": mask}
            super()._track_num_input_tokens(inputs)

    return SharedTrainer


def add_regularizers(kind: Any, context: FitContext, tokenizer: Tokenizer, max_length: int) -> Any:
    """Return a subclass of a trainer that applies the context's regularisers, penalties once per step."""
    regularize, kind = context.regularize, _draw_apart(kind, context)
    if not regularizers.has_hook(regularize, "penalty", "step", "select"):
        return kind

    rows = {}
    for name, examples in context.general.items():
        text = f"general rows of {name}"
        fits, _ = tokenized_rows(context, examples, tokenizer, max_length, lambda _, *row: {"row": row}, text)
        rows[name] = tuple(regularizers.GeneralRow(ids, start) for start, ids in (r["row"] for r in fits))

    class RegularizedTrainer(kind):  # type: ignore[misc]
        def train(self, resume_from_checkpoint: str | None = None, **options: Any) -> Any:
            self.penalties = regularizers.penalties(regularize, self.model, context.seed, rows)
            self.trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
            n_planned = 0  # read before training, which removes the checkpoint
            if resume_from_checkpoint:
                n_planned = read_state(Path(resume_from_checkpoint))["max_steps"]
            output = super().train(resume_from_checkpoint, **options)
            steps = self.state.global_step, n_planned or self.state.max_steps
            names = regularizers.select_moved_names(regularize, list(self.trained), *steps, context.seed)
            for name, parameter in self.trained.items():
                parameter.requires_grad_(name in names)
            return output

        def training_step(self, model: Any, inputs: Row, num_items_in_batch: Any = None) -> Any:
            progress = self.state.global_step / self.state.max_steps
            names = regularizers.select_trained_names(regularize, list(self.trained), progress, context.seed)
            for name, parameter in self.trained.items():
                parameter.requires_grad_(name in names)
            run_step = super().training_step
            logged = getattr(self, "_metrics", {}).get("train", {})  # TRL's, by name
            first_lengths: dict[str, int] = {}

            def backward() -> Any:
                nonlocal first_lengths
                given_inputs = dict(inputs) if isinstance(inputs, Mapping) else inputs  # a list of prompts
                loss = run_step(model, given_inputs, num_items_in_batch)
                first_lengths = first_lengths or {name: len(values) for name, values in logged.items()}
                for penalty in self.penalties if self.accelerator.sync_gradients else ():
                    for term in penalty(self.state.global_step):
                        if term.requires_grad:  # False where this step freezes its weights
                            self.accelerator.backward(term)
                return loss

            loss = regularizers.compute_gradients(regularize, model, backward)
            for name, length in first_lengths.items():
                del logged[name][length:]  # extra passes of a regulariser log metrics of perturbed weights
            return loss

    return RegularizedTrainer


def _draw_apart(kind: Any, context: FitContext) -> Any:
    """Return a trainer whose draws on a CPU depend on seed, step and batch alone, if a regulariser draws."""
    if not regularizers.has_hook(context.regularize, "DRAWS"):
        return kind

    class ApartTrainer(kind):  # type: ignore[misc]
        read: tuple[int, int] = (-1, 0)  # the current step and the number of its batches read so far

        def training_step(self, *inputs: Any, **options: Any) -> Any:
            step, n_read = self.state.global_step, self.read[1]
            n_read = n_read if self.read[0] == step else 0
            self.read = (step, n_read + 1)
            generator = random.Random(f"{context.seed}/pass/{step}/{n_read}/{self.args.process_index}")
            before = torch.get_rng_state()
            torch.default_generator.manual_seed(generator.getrandbits(63))
            try:
                return super().training_step(*inputs, **options)
            finally:
                torch.set_rng_state(before)

    return ApartTrainer


NO_MEMORY = "out of memory while training"
MEMORY_KNOBS = "params.per_device_train_batch_size (with gradient_accumulation_steps) or max_length"


# Turns an out-of-memory error into a failure that names the parameters to change.
explain_out_of_memory = partial(out_of_memory.explain_out_of_memory, NO_MEMORY, MEMORY_KNOBS)


def make_trainer(
    kind: Any,
    config: Any,
    context: FitContext,
    params: LoopParams,
    tokenizer: Tokenizer,
    scratch: Path,
    arguments: Mapping[str, Any],
    *,
    own_params: Iterable[str] = (),
    n_trained: float | None = None,
    callbacks: Iterable[Any] = (),
    **options: Any,
) -> Any:
    """Return a trainer of class `kind` with the context's regularisers; its checkpoints go to `scratch`.

    The `config` class gets the shared settings, `arguments`, and its fields in `params` except `own_params`.
    """
    known_names = set(type(params).model_fields) & {field.name for field in fields(config)}
    values = params.model_dump(include=known_names.difference(KNOBS, own_params))
    with explain_out_of_memory():
        common = settings(context, params, n_trained)
        try:
            args = config(output_dir=str(scratch), **common | dict(arguments), **values)
            if args.n_gpu > 1:  # TRL refuses one process with several GPUs
                args._n_gpu = 1  # noqa: SLF001  (otherwise only an environment variable sets it)
            shared_kind = make_shared_trainer(kind)
            regularized = add_regularizers(shared_kind, context, tokenizer, params.max_length)
            all_callbacks = [*callbacks, make_report_callback(context)]
            return regularized(args=args, callbacks=all_callbacks, **options)
        except ValueError as error:
            found = f"the training cannot be set up ({one_line(error)})"
            raise CandidateFailed(found, "other params") from error


def run(
    trainer: "transformers.Trainer",
    start: float,
    n_dropped: int,
    save: Callable[[Any], None],
    trained_in: str = "fp32",
) -> TrainingRecord:
    """Train from the last checkpoint, save, return the record; `start` is `start_time`. Diverged at NaN."""
    from transformers.utils import is_liger_kernel_available

    if trainer.args.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()  # earlier work of this process does not count
        if is_liger_kernel_available():
            from transformers.integrations.liger import apply_liger_kernel

            # TRL's own argument for Liger is deprecated and conflicts with its loss; TRL's loss stays.
            apply_liger_kernel(trainer.model, {"fused_linear_cross_entropy": False})
    if trained_in == "fp32" and parallel.name_sharding() != parallel.DEEPSPEED:  # it keeps fp32 copies
        _keep_updates(trainer.model)
    _spare_casts(trainer.model)
    # With progress bars off, the trainer would print each log line to stdout, which is for results.
    trainer.remove_callback(transformers.PrinterCallback)
    folder = Path(str(trainer.args.output_dir))
    if parallel.is_first():
        find_last_checkpoint(folder, clean=True)
    parallel.wait_for_all()
    last = find_last_checkpoint(folder)
    trainer.add_callback(checkpoint_callback(start, last))
    state = read_state(last.folder) if last else None
    if state and state["stateful_callbacks"]["TrainerControl"]["args"]["should_training_stop"]:
        # transformers does not restore that training had stopped, and would go on to the end of the epoch.
        trainer.args.max_steps, trainer.args.num_train_epochs = -1, int(state["epoch"])
    with explain_out_of_memory(), skip_cards(trainer):
        trainer.train(resume_from_checkpoint=str(last.folder) if last else None)
    save(trainer.model)
    parallel.wait_for_all()
    record = figures(trainer, n_dropped, time.perf_counter() - start, last.elapsed_s if last else 0.0)
    if (n := parallel.process_count()) == 1:
        return record
    args = trainer.args
    sizes = args.per_device_train_batch_size, args.gradient_accumulation_steps
    return record.add(n_processes=n, batch_size=sizes[0], accumulated_batches=sizes[1])


def start_time(folder: Path) -> float:
    """Return the `time.perf_counter` at which training began, as if earlier calls had ended just now."""
    last = find_last_checkpoint(folder)
    return time.perf_counter() - (last.elapsed_s if last else 0.0)


def _keep_updates(model: Any) -> None:
    """Convert the trained parameters to fp32: TRL makes a QLoRA adapter bf16, which loses small updates."""
    # The gradient scaler of an fp16 training also refuses bf16 parameters.
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def _spare_casts(model: Any) -> None:
    """Skip PEFT's cast of LoRA inputs to fp32, which autocast undoes; dropout would draw in bf16."""
    from peft.tuners.lora import Linear

    def leave(cast: Callable[[Any, Any], Any], rows: Any, dtype: Any) -> Any:
        device = rows.device.type
        is_narrow = torch.is_autocast_enabled(device) and rows.dtype == torch.get_autocast_dtype(device)
        return rows if is_narrow else cast(rows, dtype)

    for layer in model.modules():
        is_plain = type(layer) is Linear and not layer.lora_variant
        if is_plain and all(isinstance(d, torch.nn.Identity) for d in layer.lora_dropout.values()):
            layer._cast_input_dtype = partial(leave, layer._cast_input_dtype)  # noqa: SLF001


def make_report_callback(context: FitContext) -> "transformers.TrainerCallback":
    """Return a callback that reports progress, sends logged values, and ends a training of infinite loss.

    In fp16 it also logs the loss scale at the start and after each step.
    """

    def scale_of(optimizer: Any) -> float:
        scaler = getattr(optimizer, "scaler", None) if context.machine.precision == "fp16" else None
        return float(scaler.get_scale()) if scaler is not None else 0.0

    class ReportCallback(transformers.TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
            if state.global_step == 0 and (scale := scale_of(optimizer)):
                state.log_history.append({SCALE: scale, "step": 0})

        def on_log(self, args: Any, state: Any, control: Any, **sources: Any) -> None:
            logged: Row = sources.get("logs") or {}
            losses = {name: float(logged[name]) for name in ("loss", "eval_loss") if name in logged}
            if not all(map(isfinite, losses.values())):  # later steps would not recover
                raise Diverged("the training loss is not a number", "a lower params.learning_rate")
            if "loss" in losses:
                context.advance(state.global_step, state.max_steps, f"loss {losses['loss']:.2f}")
            metrics = {
                f"eval/{name[5:]}" if name.startswith("eval_") else f"train/{name}": float(value)
                for name, value in logged.items()
                if isinstance(value, int | float) and isfinite(value) and not name.startswith(_FINAL)
            }
            if context.send and metrics:
                context.send(metrics, state.global_step)
            if (scale := scale_of(sources.get("optimizer"))) and "loss" in state.log_history[-1]:
                state.log_history[-1][SCALE] = scale

    return ReportCallback()
