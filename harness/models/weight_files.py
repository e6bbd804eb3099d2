"""Files of weights: tensors and parameters by their headers, digests, configuration of a model's folder.

Invariant: a digest depends on what the weights compute, never on paths, versions or a file's layout. No
weights are loaded, and no pickle is read.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from harness.cache import memo
from harness.errors import CandidateFailed, Problem, UserError, refuse
from harness.models.later import safetensors
from harness.models.shapes import config_problems
from harness.records import checksum, digest, parse_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Values that do not affect what an adapter computes: its origin and training.
_OF_TRAINING = (
    *("auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "inference_mode"),
    *("init_lora_weights", "loftq_config", "lora_dropout", "lora_ga_config", "peft_version", "revision"),
    *("runtime_config", "task_type"),
)
# Initialisations of LoRA that change the base's weights; PEFT converts the first ones when it saves them.
CONVERTED = ("pissa", "olora", "corda", "lora_ga")
_MOVES_BASE = (*CONVERTED, "loftq")
_BESIDE = ("modules_to_save", "lora_bias", "trainable_token_indices", "layer_replication", "kasa_config")


def own_name(name: str) -> str:
    """Return a tensor's name in the base from its name in a PEFT adapter."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


class Tensor(NamedTuple):
    """One tensor of a safetensors file: type, shape and byte range."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def tensors_of(path: Path) -> dict[str, Tensor]:
    """Map the tensors of a safetensors file by name, from its header; a ValueError if it is truncated."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > path.stat().st_size:
            raise ValueError(f"{path} has no safetensors header")
        header: dict[str, Any] = parse_json(file.read(size))
    header.pop("__metadata__", None)
    start, n_bytes = 8 + size, path.stat().st_size
    tensors = {
        name: Tensor(t["dtype"], tuple(t["shape"]), *(start + offset for offset in t["data_offsets"]))
        for name, t in header.items()
    }
    if (n_expected := max((t.end for t in tensors.values()), default=start)) > n_bytes:
        raise ValueError(f"{path} has {n_bytes:,} of {n_expected:,} bytes")
    return tensors


# Tensors that accompany a quantised weight: scales, zeros and order.
_OF_QUANTIZATION = re.compile(
    r"(^|[._])(qzeros|scales|g_idx|(weight|input)_scale(_inv|_2)?|weight_(zero_point|shape|global_scale)|"
    r"input_global_scale|(nested_)?(absmax|quant_map)|quant_state\..*)$"
)
# Granite and JetMoE name one input and one output tensor for all experts of a layer.
_EXPERT = re.compile(r"\.experts\.|\.(block_sparse_moe|mlp)\.(input|output)_linear\.")


def parameters_of(tensors: Mapping[str, Tensor], bits: int = 4) -> dict[str, int]:
    """Count a model's parameters by tensor; `bits` is the width of weights that AWQ, GPTQ and HQQ pack."""
    counted = {}
    for name, tensor in tensors.items():
        layer, _, last = name.rpartition(".")
        is_beside_hqq = f"{layer}.W_q" in tensors and last not in ("W_q", "bias")
        is_mask = len(tensor.shape) == 4 and tensor.shape[:2] == (1, 1)
        if _OF_QUANTIZATION.search(name) or is_beside_hqq or is_mask:
            continue
        scaled = (f"{name}.absmax", f"{name}_scale_2")  # bitsandbytes' and ModelOpt's
        is_half_bytes = name.endswith(("_blocks", "weight_packed")) or any(n in tensors for n in scaled)
        weights_per_number: float = 2 if tensor.dtype == "U8" and is_half_bytes else 1
        if name.endswith(("qweight", "weight_packed")) and tensor.dtype != "U8":
            weights_per_number = 32 / bits
        elif name.endswith("W_q"):
            weights_per_number = 8 / bits if tensor.dtype == "U8" else 32 // bits
        counted[name] = int(prod(tensor.shape) * weights_per_number)
    return counted


def expert_parameters(counted: Mapping[str, int]) -> int:
    """Count the parameters of experts, by the names of their tensors."""
    return sum(n for name, n in counted.items() if _EXPERT.search(name))


def refuse_infinite(folder: Path) -> None:
    """Refuse an adapter with NaN or infinite values, as from a diverged training."""
    for name, tensor in safetensors.load_file(folder / WEIGHTS).items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            found = f"an adapter whose weights are not numbers ({name})"
            raise CandidateFailed(found, "training it again, with a lower learning rate")


def moves_base(config: Mapping[str, Any]) -> bool:
    """Tell whether applying an adapter with this configuration changes the base's weights."""
    start = str(config.get("init_lora_weights", "")).lower()
    return start.startswith(_MOVES_BASE) or bool(config.get("kasa_config"))


def refuse_moved_base(config: Mapping[str, Any]) -> None:
    """Refuse an adapter whose initialisation changed the base, and that was saved unconverted."""
    if moves_base(config):
        start = config.get("init_lora_weights")
        found = f"an adapter with init_lora_weights: {start}, which changed its base"
        step = "saving it with path_initial_model_for_weight_conversion, as PEFT describes"
        raise CandidateFailed(found, step)


def changes_modules(config: Mapping[str, Any]) -> bool:
    """Tell whether an adapter with this configuration copies or changes modules of the base."""
    return moves_base(config) or bool(config.get("modules_to_save") or config.get("layer_replication"))


def describe_beside_low_rank(config: Mapping[str, Any]) -> str:
    """Name a part of a LoRA adapter besides low-rank updates; empty if there is none."""
    if config.get("bias", "none") != "none":
        return f"bias: {config['bias']}"
    return next((name for name in _BESIDE if config.get(name)), "")


def adapter_digest(folder: Path, base_digest: str) -> str:
    """Return the digest of an adapter on its base: its tensors and the values that scale them, no paths."""
    config = parse_json((folder / CONFIG).read_text())
    ignored_keys = set(_OF_TRAINING) - ({"init_lora_weights"} if moves_base(config) else set())
    kept_values = {k: v for k, v in config.items() if k not in ignored_keys and v is not None}
    sorted_values = {k: sorted(v) if isinstance(v, list) else v for k, v in kept_values.items()}
    return digest([base_digest, tensors_digest(folder / WEIGHTS), sorted_values])


def model_digest(folder: Path, base_digest: str) -> str:
    """Return the digest of a whole model that was trained from a base: its tensors."""
    files = sorted(folder.glob("*.safetensors"))
    return digest([base_digest, {path.name: tensors_digest(path) for path in files}])


def tensors_digest(path: Path) -> str:
    """Digest the tensors of a safetensors file in the order of their names, whatever its own order."""
    content = hashlib.sha256()
    with path.open("rb") as file:
        for name, tensor in sorted(tensors_of(path).items()):
            content.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
            file.seek(tensor.begin)
            n_left = tensor.end - tensor.begin
            while n_left > 0 and (block := file.read(min(n_left, 1 << 24))):
                content.update(block)
                n_left -= len(block)
    return content.hexdigest()


SAFETENSORS = "*.safetensors"
_INDEX, _WHOLE = "model.safetensors.index.json", "model.safetensors"
_TWICE = "consolidated*"  # Mistral's copy of the sharded weights in another form
_AGAIN = "copy or download it again"
_SHA256 = re.compile("[0-9a-f]{64}")


def find_matching(path: Path, patterns: Iterable[str]) -> list[Path]:
    """List the files of a folder whose names match a pattern, each once, by name."""
    return sorted({p for pattern in patterns for p in path.glob(pattern)})


def weights_files(path: Path) -> list[Path]:
    """List the safetensors of a model, without Mistral's copy if transformers' own files are there."""
    files = find_matching(path, (SAFETENSORS,))
    if (path / _INDEX).exists() or (path / _WHOLE).exists():
        return [file for file in files if not file.match(_TWICE)]
    return files


def weights_bytes(folder: Path) -> int:
    """Return the bytes that the weights of a model take on disk."""
    return sum(file.stat().st_size for file in weights_files(folder))


def map_stored_tensors(path: Path) -> dict[str, Tensor]:
    """Map the tensors of a folder's safetensors, from their headers alone."""
    return {name: tensor for file in weights_files(path) for name, tensor in tensors_of(file).items()}


def read_config(path: Path) -> dict[str, Any]:
    """Read the configuration of a model's folder."""
    file = path / "config.json"
    try:
        config = parse_json(file.read_text("utf-8"), object_hook=_read_float)
    except FileNotFoundError:
        problem = Problem(str(path), "no config.json", "a model saved by save_pretrained", "check the path")
        raise UserError(problem) from None
    except ValueError as error:
        problem = Problem(str(file), f"no JSON ({error})", "the configuration of a model", _AGAIN)
        raise UserError(problem) from None
    refuse(config_problems(config, str(path)))
    return dict(config)


def _read_float(value: dict[str, Any]) -> Any:
    """Return a number that transformers writes as an object because JSON has no infinity."""
    with suppress(TypeError, ValueError, KeyError):
        return float(value["__float__"])
    return value


def refuse_damaged(path: Path) -> None:
    """Refuse incomplete weights, such as those of an interrupted download."""
    problems, missing, index = [], list[str](), path / _INDEX
    for file in [*weights_files(path), *([index] if index.exists() else [])]:
        try:
            if file == index:
                names = set(parse_json(file.read_text("utf-8"))["weight_map"].values())
                missing = sorted(name for name in names if not (path / name).exists())
            else:
                tensors_of(file)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            problems.append(Problem(str(file), f"a damaged file ({error})", "a whole file", _AGAIN))
    expected = "all files of its weights"
    problems += [Problem(str(path), f"no {name}, which {_INDEX} names", expected, _AGAIN) for name in missing]
    refuse(problems)


def content_digest(files: Iterable[Path]) -> str:
    """Digest files by their names and contents."""
    return digest({p.name: file_checksum(p) for p in files})


def file_checksum(path: Path) -> str:
    """Return the checksum of a file, remembered by path, size and time, or taken from the hub's cache."""
    real = path.resolve()
    if real.parent.name == "blobs" and path.is_symlink() and _SHA256.fullmatch(real.name):
        return real.name
    stat = real.stat()
    key = digest([str(real), stat.st_size, stat.st_mtime_ns])
    return str(memo("checksums", key, lambda: checksum(real)))
