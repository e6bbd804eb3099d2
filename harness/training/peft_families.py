"""PEFT's families of adapters: their configurations, what each needs in training, and what they cannot do.

Invariant: a saved adapter gives, on the published base, the logits that it had in memory. Initialisations
that change the base's weights (PiSSA, OLoRA) are saved as a LoRA of twice the rank, which differs by rounding
alone. Adapters of the output head are refused, because TRL's losses multiply hidden states by the head's own
matrix. Source: names, defaults and layers are PEFT's; AdaLoRA's penalty: Zhang et al. 2023
(arXiv:2303.10512), equation 4; PiSSA: Meng et al. 2024 (arXiv:2404.02948); EVA: Paischer et al. 2024
(arXiv:2410.07170).
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, cast, get_type_hints

from pydantic import ValidationError, create_model

from harness.errors import CandidateFailed, Problem, did_you_mean
from harness.models import windows
from harness.models.devices import build_without_weights
from harness.models.later import peft, torch, transformers
from harness.models.weight_files import CONVERTED, describe_beside_low_rank
from harness.progress import quiet_libraries
from harness.spec import Recipe
from harness.training.parallel import save_trained

# Families that route among experts or tasks (Lily by all tokens of a batch), wrap whole adapters or models,
# or train on special inputs.
_OWN_LOOPS = ("CPT", "CARTRIDGE", "LILY", "MULTITASK_PROMPT_TUNING", "POLY", "SHADOW", "XLORA")
# Families that must choose their modules themselves.
_OWN_MODULES = ("IA3", "LN_TUNING", "ADAPTION_PROMPT", "TRAINABLE_TOKENS")
# Parameters that choose modules.
_NAMES = ("target_modules", "exclude_modules")
# Keys that the harness sets, or that describe how an adapter is applied later.
_SET_HERE = ("peft_type", "task_type", "inference_mode", "auto_mapping", "peft_version", "runtime_config")
_ITERATED = re.compile(r"pissa_niter_\d+")


class PeftFamily(NamedTuple):
    """Additions of a family to a training: a penalty on the loss, callbacks, a start hook and saving.

    `keeps_last`: the last checkpoint is saved instead of the best. `keeps_part`: checkpoints contain only
    trained parameters. `starts_over`: a training cannot resume from its checkpoints.
    """

    penalty: "Callable[[Any], torch.Tensor | float]" = lambda model: 0.0
    callbacks: "tuple[transformers.TrainerCallback, ...]" = ()
    begin: Callable[[Any], None] = lambda trainer: None
    save: Callable[..., None] = lambda model, folder, **options: model.save_pretrained(folder, **options)
    keeps_last: bool = False
    keeps_part: bool = False
    starts_over: bool = False


PLAIN = PeftFamily()


def families() -> dict[str, Any]:
    """Return PEFT's configuration classes of the families that the training loop supports."""
    quiet_libraries()
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    classes = {str(getattr(kind, "value", kind)): c for kind, c in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    return {name: c for name, c in sorted(classes.items()) if name not in _OWN_LOOPS}


def family_problems(
    peft_type: str, params: Mapping[str, Any], base: Path, device: str, where: str, quantization: str = ""
) -> list[Problem]:
    """List the problems of a family's adapter on the model in `base`: what PEFT does not know or accept."""
    classes = families()
    if peft_type not in classes:
        why = ", which has a training of its own in PEFT" if peft_type in _OWN_LOOPS else ""
        expected, step = f"one of PEFT's families {', '.join(classes)}", did_you_mean(peft_type, classes)
        return [Problem(where, f"peft_type {peft_type!r}{why}", expected, "another family" if why else step)]
    names = [f.name for f in fields(classes[peft_type]) if f.name not in _SET_HERE]
    unknown = [name for name in params if name not in names]
    if reserved := [name for name in unknown if name in _SET_HERE]:
        expected = f"parameters of PEFT's {classes[peft_type].__name__} that the training does not set itself"
        return [Problem(where, f"parameter {n!r}", expected, f"remove {n}") for n in reserved]
    if unknown:
        expected = f"a parameter of PEFT's {classes[peft_type].__name__} or of TRL's trainer"
        return [Problem(where, f"unknown parameter {n!r}", expected, did_you_mean(n, names)) for n in unknown]
    if unsupported := _find_unsupported(params, device, quantization):
        return [Problem(where, *unsupported)]
    expected = f"parameters that PEFT's {classes[peft_type].__name__} takes on this base"
    try:
        _try(peft_type, json.dumps(params), base)
    except ValidationError as error:
        detail = error.errors()[-1]  # for a union, the last error lists the literals
        found = f"{detail['loc'][0]}: {detail['input']!r} ({detail['msg']})"
        return [Problem(where, found, expected, "fix params")]
    except (TypeError, ValueError, AttributeError, ImportError, ArithmeticError, OSError, re.error) as error:
        return [Problem(where, " ".join(str(error).split()), expected, "fix params")]
    return []


def _find_unsupported(
    params: Mapping[str, Any], device: str, quantization: str
) -> tuple[str, str, str] | None:
    """Find a LoRA parameter that cannot be trained or served here: found, expected and next step."""
    start, fix = _start(params), ("pissa, eva, olora or true", "another init_lora_weights")
    if start == "loftq" and device != "cuda":
        found = "init_lora_weights: loftq, which quantises the weights on a GPU, and this machine has none"
        return found, *fix
    if start == "corda":
        return "init_lora_weights: corda, which begins with statistics that no training here collects", *fix
    patterns = [name for name in ("rank_pattern", "alpha_pattern") if params.get(name)]
    if params.get("use_rslora") and patterns:
        option = f"use_rslora and {patterns[0]}"
    else:
        option = "use_dora" if params.get("use_dora") else describe_beside_low_rank(params)
    if start.startswith(CONVERTED) and option:
        found = f"init_lora_weights: {start} with {option}, which PEFT's conversion does not save"
        return found, "one of the two", "leave one of them out"
    if start.startswith(CONVERTED) and quantization:
        moves = "which moves the weights of a base"
        found = f"init_lora_weights: {start}, {moves}, and quantization: {quantization}"
        return found, "a base in 16 or 32 bits, or another start", "remove quantization, or init_lora_weights"
    if params.get("alora_invocation_tokens"):
        why = "an adapter for a part of a row, and rows are read packed and in pieces"
        return f"alora_invocation_tokens: {why}", "an adapter for whole rows", "leave it out"
    return None


@cache
def _try(peft_type: str, params: str, base: Path) -> None:
    """Apply an adapter to a base without weights, once per recipe."""
    config = peft_config(peft_type, json.loads(params))
    refuse_values(config, json.loads(params))
    trial: Any = config
    if _start(vars(config)):
        trial = replace(trial, init_lora_weights=False)  # other initialisations compute with weights
    if not (base / "config.json").exists():
        return  # still packed: PEFT checks it after the run has unpacked it
    if (model := build_without_weights(base)) is None:
        return
    if config.is_prompt_learning:
        max_positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        n, layer_windows = vars(config)["num_virtual_tokens"], windows(model.config)
        if max_positions and n >= max_positions:
            raise ValueError(f"num_virtual_tokens: {n}, where the base reads {max_positions} tokens at most")
        if layer_windows is None or any(layer_windows):
            raise ValueError("a soft prompt, and layers that do not attend to everything that was read")
    exclude_unadapted(trial, model.config.model_type)
    try:
        with torch.device("meta"):
            adapted: Any = peft.get_peft_model(model, trial)
    except (NotImplementedError, RuntimeError) as error:
        if "negative dimension" in str(error):
            raise ValueError("a size below 0") from error
        return  # some families compute with the weights when they are applied
    if adapts_head(adapted):
        raise ValueError(ADAPTED_HEAD)
    refuse_start(config, adapted, _start(vars(config)))


def peft_config(peft_type: str, params: Mapping[str, Any]) -> "peft.PeftConfig":
    """Build PEFT's configuration of a new adapter; ImportError, TypeError, ValueError if it refuses."""
    config_class = families()[peft_type]
    types = get_type_hints(config_class)
    # PEFT's annotation has a placeholder for PiSSA's number of iterations.
    names = set(params) - ({"init_lora_weights"} if _ITERATED.fullmatch(_start(params)) else set())
    annotated: dict[str, Any] = {name: (types[name], ...) for name in params if name in names}
    schema: Any = create_model(str(config_class.__name__), **annotated)
    checked = schema.model_validate({name: params[name] for name in names})
    values = {"task_type": "CAUSAL_LM", **params, **{name: getattr(checked, name) for name in names}}
    # Patterns in the order in which PEFT saves and opens them, because the first match counts.
    values |= {n: dict(sorted(value.items(), key=str)) for n, value in values.items() if is_pattern(n, value)}
    if "target_modules" in (f.name for f in fields(config_class)) and peft_type not in _OWN_MODULES:
        values.setdefault("target_modules", "all-linear")
    if peft_type == "ADALORA":
        values.setdefault("total_step", 1 << 30)  # a placeholder until the number of steps is known
    if _start(params) == "eva":
        values.setdefault("eva_config", peft.EvaConfig())
    return cast("peft.PeftConfig", config_class(**values))


def list_own_values(peft_type: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters that differ from PEFT's defaults and ours, with module names sorted."""
    known_fields = {f.name: f for f in fields(families()[peft_type])} if peft_type in families() else {}
    changed_values = {}
    for name, value in params.items():
        field = known_fields.get(name)
        preset = field and (field.default_factory() if callable(field.default_factory) else field.default)
        default = "all-linear" if name == "target_modules" and peft_type not in _OWN_MODULES else preset
        if field is None or isinstance(value, bool) != isinstance(default, bool) or value != default:
            # Pairs, because the order of patterns matters and digests of mappings ignore it.
            changed_values[name] = sorted(value.items(), key=str) if is_pattern(name, value) else value
    return sort_names(changed_values)


def sort_names(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters with lists of modules sorted, because PEFT follows the order of the base."""
    return {
        name: sorted(set(value))
        if name in _NAMES and isinstance(value, list) and all(isinstance(item, str) for item in value)
        else value
        for name, value in params.items()
    }


def family_of(config: "peft.PeftConfig", scratch: Path) -> PeftFamily:
    """Return the additions of a configuration's family; `scratch` is a folder for its files."""
    start = _start(vars(config))
    if config.peft_type == "ADALORA":
        # Checkpoints lack the importance of ranks, and PEFT saves only the remaining ranks.
        class RankAllocation(transformers.TrainerCallback):
            """Callback that updates AdaLoRA's ranks, which trainers do not do."""

            def on_optimizer_step(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
                rest["model"].base_model.update_and_allocate(state.global_step)

        return PeftFamily(_orthogonality, (RankAllocation(),), _schedule, keeps_last=True, starts_over=True)
    if config.peft_type == "P_TUNING" or vars(config).get("prefix_projection"):
        # PEFT saves only the encoder's output, from which the encoder cannot be restored.
        return PeftFamily(keeps_last=True, starts_over=True)
    if vars(config).get("kasa_config") or vars(config).get("monteclora_config"):
        # KaSA's and MonteCLoRA's penalties, which PEFT leaves to the training loop.
        return PeftFamily(
            lambda model: model.base_model._get_kasa_loss() + model.base_model._get_monteclora_loss()  # noqa: SLF001
        )
    if start == "eva":
        return PeftFamily(begin=_begin_eva)
    if start.startswith(CONVERTED):
        initial, init_value = scratch / "initial", vars(config)["init_lora_weights"]

        def begin(trainer: Any) -> None:
            config = trainer.model.peft_config["default"]
            config.init_lora_weights = True  # it must not be initialised this way again when opened
            save_trained(PLAIN.save, trainer.model, initial)
            config.init_lora_weights = init_value

        def save(model: Any, folder: Path) -> None:
            model.save_pretrained(folder, path_initial_model_for_weight_conversion=str(initial))

        return PeftFamily(begin=begin, save=save)
    return PLAIN


def virtual_tokens(model: Any) -> int:
    """Count the virtual tokens before the input in a model's hidden states."""
    config = getattr(model, "active_peft_config", None)
    if config is None or not config.is_prompt_learning or config.peft_type == "PREFIX_TUNING":
        return 0
    return int(config.num_virtual_tokens)


def _start(params: Mapping[str, Any]) -> str:
    return str(params.get("init_lora_weights", "")).lower()


def _schedule(trainer: Any) -> None:
    """Set AdaLoRA's number of steps; by default the last tenth trains with the final ranks."""
    config = trainer.model.peft_config["default"]
    args, batches = trainer.args, len(trainer.get_train_dataloader())
    steps = batches / args.gradient_accumulation_steps * args.num_train_epochs
    total = args.max_steps if args.max_steps > 0 else int(steps)
    config.total_step = min(config.total_step, total)
    config.tfinal = config.tfinal or max(1, total // 10)
    if config.tinit + config.tfinal >= total:
        found = f"AdaLoRA's tinit {config.tinit} and tfinal {config.tfinal} leave none of {total} steps"
        raise CandidateFailed(found, "a smaller params.tinit or tfinal, or more epochs")


def _orthogonality(model: Any) -> "torch.Tensor":
    """Return the weighted mean deviation of P and Q from orthogonality, in the Frobenius norm."""
    norms = []
    for name, parameter in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            product = parameter @ parameter.T if "lora_A" in name else parameter.T @ parameter
            norms.append(torch.linalg.matrix_norm(product - torch.eye(len(product), device=product.device)))
    weight: float = model.peft_config["default"].orth_reg_weight
    return weight * torch.stack(norms).mean()


def _begin_eva(trainer: Any) -> None:
    """Initialise an adapter by EVA; refuse batches with too few tokens, for which PEFT would wait forever."""
    from peft.tuners.lora.eva import prepare_model_inputs_fn_language_modeling as learnt_tokens

    config = trainer.model.peft_config["default"]
    rank = max(config.r, *config.rank_pattern.values()) if config.rank_pattern else config.r
    n = round(rank * config.eva_config.rho)
    with torch.random.fork_rng(devices=[]):  # PEFT reads the same batches
        batches = (dict(batch) for batch in trainer.get_train_dataloader())
        largest = max((len(learnt_tokens(batch, config)) for batch in batches), default=0)
    if largest < n:
        found = f"EVA of rank {rank} needs {n} trained tokens in a batch, and the largest batch has {largest}"
        raise CandidateFailed(found, "a larger params.per_device_train_batch_size, or a smaller r")
    peft.initialize_lora_eva_weights(trainer.model, trainer.get_train_dataloader())


UNQUANTIZED = (
    *("ADAMSS", "DEFT", "DELORA", "FROD", "GLORA", "HRA"),
    *("OSF", "PEANUT", "PSOFT", "SUPERTUNING", "TINYLORA"),
)
NOT_ON_NF4 = ("LOHA", "LOKR")  # shaped like the stored matrices, which NF4 packs into a column
_VARIANTS = ("kasa_config", "monteclora_config")


def quantization_problems(
    recipe: Recipe, params: Mapping[str, Any], device: str, where: str
) -> Iterator[Problem]:
    """Yield the problems of an adapter with these PEFT parameters on a recipe's quantised base."""
    family = params.get("peft_type", "LORA")
    for key, quantization in (("quantization", recipe.quantization), ("serve_on", recipe.serve_on)):
        if quantization not in ("int8", "nf4") or (quantization == "nf4" and device != "cuda"):
            continue
        why = ""
        if family in (UNQUANTIZED if quantization == "int8" else (*UNQUANTIZED, *NOT_ON_NF4)):
            why = f"peft_type: {family}, which computes with unquantised weights"
        elif str(params.get("init_lora_weights", "")).lower() == "mica":
            why = "init_lora_weights: mica, which computes with unquantised weights"
        elif variant := next((name for name in _VARIANTS if params.get(name) is not None), ""):
            why = f"{variant}, which PEFT leaves out of quantised layers"
        elif params.get("use_dora") and quantization == "int8" and device != "cuda":
            why = "use_dora, whose norms bitsandbytes does not compute in 8 bits on a CPU"
        if why:
            expected = "a base in 16 or 32 bits, or an adapter for quantised layers, such as LoRA"
            yield Problem(where, f"{why}, and {key}: {quantization}", expected, f"remove {key}")
            return


def refuse_values(config: "peft.PeftConfig", params: Mapping[str, Any]) -> None:
    """Refuse values that PEFT accepts but that cannot be trained, or mean something else once saved."""
    values = vars(config)
    for name, pattern in params.items():
        may_overlap = is_pattern(name, pattern) and not all(map(str.isidentifier, pattern))
        if may_overlap and list(pattern) != sorted(pattern):
            found, expected = map(", ".join, (pattern, sorted(pattern)))
            raise ValueError(f"{name}: {found}; PEFT saves and matches patterns by name: {expected}")
    if config.is_prompt_learning and not (values.get("num_virtual_tokens") or 0) > 0:
        raise ValueError("num_virtual_tokens: none, where a soft prompt has one at least")
    if config.peft_type == "ADALORA":
        if values["init_r"] < values["target_r"]:
            ranks = f"init_r {values['init_r']}, from which ranks fall, below target_r {values['target_r']}"
            raise ValueError(ranks)
        for name in ("target_r", "deltaT"):
            if values[name] < 1:
                raise ValueError(f"{name}: {values[name]}, which is 1 at least")


def is_pattern(name: str, value: Any) -> bool:
    """Tell whether a parameter maps module patterns to values, such as ranks."""
    return name.endswith("_pattern") and isinstance(value, dict)


def refuse_start(config: "peft.PeftConfig", model: Any, start: str) -> None:
    """Refuse starts from a decomposition with a rank above a layer's directions, or on embeddings."""
    # PEFT would compute undefined values for EVA, save them for PiSSA, and drop embeddings' adapters there.
    if not start.startswith(("eva", *CONVERTED)):
        return
    for name, module in model.named_modules():
        if start.startswith(CONVERTED) and getattr(module, "lora_embedding_A", None):
            raise ValueError(f"init_lora_weights: {start} of {name}, an embedding, which PEFT does not save")
        rank = getattr(module, "r", {}).get("default", 0) if hasattr(module, "lora_A") else 0
        sizes = [getattr(module, size, rank) for size in ("in_features", "out_features")]
        if start == "eva":
            rank, sizes = round(rank * config.eva_config.rho), sizes[:1]  # type: ignore[attr-defined]
        if rank > min(sizes):
            layer = name.rpartition(".")[2]
            raise ValueError(f"{rank} directions by init_lora_weights: {start}, and {layer} has {min(sizes)}")


ADAPTED_HEAD = "an adapter of lm_head, or of embeddings that it is tied to, which no training here trains"


def adapts_head(model: Any) -> bool:
    """Tell whether a PEFT model has an adapter on its output head."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return isinstance(model.get_output_embeddings(), BaseTunerLayer)


# Linear layers that take no adapter: routers of experts return more than their products, and the kernels of
# Mamba-like layers read the weights of `out_proj` directly, so PEFT refuses its low-rank families there.
_ROUTERS = dict.fromkeys(("llama4", "llama4_text", "phimoe"), "router")
_FUSED = dict.fromkeys(("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"), "out_proj")
_LOW_RANK = ("LORA", "ADALORA", "RANDLORA")


def exclude_unadapted(config: "peft.PeftConfig", model_type: str) -> None:
    """Exclude layers that take no adapter, besides those a configuration excludes, for `all-linear`."""
    fused = _FUSED if config.peft_type in _LOW_RANK else {}
    name, values = (_ROUTERS | fused).get(model_type), vars(config)
    if name is None or values.get("target_modules") != "all-linear" or "exclude_modules" not in values:
        return
    excluded: Any = values["exclude_modules"]
    if excluded and not isinstance(excluded, str):
        values["exclude_modules"] = {*excluded, name}
    else:
        values["exclude_modules"] = "|".join(filter(None, (rf".*\.{name}", excluded)))
