"""An adapter that was trained elsewhere: by axolotl, Unsloth, LLaMA-Factory, plain PEFT or anybody.

Invariant: it is copied as it is and judged like one trained here; the same tensors on the same base
have the same digest, and so the same rows.
"""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from harness.errors import CandidateFailed, Problem
from harness.models.adapters import CONFIG, WEIGHTS, tensors_of
from harness.models.hub import ModelSource
from harness.plugins import Method
from harness.records import TrainingRecord, parse_json
from harness.spec import Recipe, Spec
from harness.training import FitContext, Weights, adapter_weights

_PICKLED = "adapter_model.bin"
_PREFIX = "base_model.model."


class Params(Spec):
    """`allow_pickle` reads `adapter_model.bin` where there are no safetensors, as tensors only."""

    allow_pickle: bool = False


def problems(recipe: Recipe, source: ModelSource, where: str) -> Iterator[Problem]:
    """Yield what forbids putting the adapter in the recipe's folder on this base."""
    folder = Path(recipe.path or "")
    if not (folder / CONFIG).exists():
        yield Problem(
            where,
            f"{folder} without {CONFIG}",
            "the folder that PEFT's save_pretrained wrote",
            "check the path",
        )
        return
    try:
        named = parse_json((folder / CONFIG).read_text("utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError):
        yield Problem(f"{folder / CONFIG}", "no JSON object", "PEFT's configuration", "export it again")
        return
    if (folder / WEIGHTS).exists():
        yield from _misfits(folder, source, str(named), where)
    elif not (folder / _PICKLED).exists():
        yield Problem(where, f"{folder} without {WEIGHTS}", "the adapter's weights", "export it again")
    elif not recipe.params.get("allow_pickle"):
        found = f"{_PICKLED}, a pickle, which can run code when it is opened"
        step = "save it again with safe_serialization=True, or set params: {allow_pickle: true}"
        yield Problem(where, found, WEIGHTS, step)


def _misfits(folder: Path, source: ModelSource, named: str, where: str) -> Iterator[Problem]:
    """Compare the shapes of low-rank matrices with those of the base's own, by name."""
    try:
        adapter = tensors_of(folder / WEIGHTS)
    except ValueError:
        yield Problem(
            f"{folder / WEIGHTS}", "no safetensors file", "the adapter's weights", "export it again"
        )
        return
    base = {
        name: tensor.shape
        for file in source.path.glob("*.safetensors")
        for name, tensor in tensors_of(file).items()
    }
    wrong = [said for name, t in adapter.items() if base and (said := _misfit(name, t.shape, base))]
    if wrong:
        found = f"an adapter for another base ({named}): {wrong[0]}"
        if len(wrong) > 1:
            found += f", and {len(wrong) - 1} more"
        step = f"set base_model: {named} on this candidate" if named != "None" else "set its base_model"
        yield Problem(where, found, f"an adapter for {source.name}", step)


def _misfit(name: str, shape: tuple[int, ...], base: dict[str, tuple[int, ...]]) -> str:
    """Say how a matrix A (r, in) or B (out, r) does not fit the base; nothing where it does."""
    for kind, axis in ((".lora_A.weight", 1), (".lora_B.weight", 0)):
        if name.endswith(kind):
            module = name.removeprefix(_PREFIX).removesuffix(kind)
            own = base.get(f"{module}.weight")
            if own is None:
                return f"{module}, which the base does not have"
            return (
                "" if shape[axis] in own else f"{module} of size {shape[axis]}, which the base has as {own}"
            )
    return ""


def fit(context: FitContext, params: Params) -> Weights:
    """Copy the adapter, its weights as safetensors.

    Raises:
        CandidateFailed: the pickled weights hold anything but tensors.
    """
    assert context.path is not None
    start, folder = time.perf_counter(), context.folder / "adapter"
    folder.mkdir()
    shutil.copy(context.path / CONFIG, folder / CONFIG)
    if (context.path / WEIGHTS).exists():
        shutil.copy(context.path / WEIGHTS, folder / WEIGHTS)
    else:
        _convert(context.path / _PICKLED, folder / WEIGHTS)
    named = parse_json((folder / CONFIG).read_text("utf-8")).get("base_model_name_or_path")
    made = TrainingRecord(copying_s=round(time.perf_counter() - start, 3), named_base=named)
    return adapter_weights(context, made)


def _convert(pickled: Path, to: Path) -> None:
    import pickle

    import torch
    from safetensors.torch import save_file

    try:
        tensors = torch.load(pickled, map_location="cpu", weights_only=True)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, to, {"format": "pt"})
    except (pickle.UnpicklingError, AttributeError, ValueError) as error:
        reason = f"{pickled} holds something other than tensors"
        raise CandidateFailed(reason, "saving it again with safe_serialization=True") from error


METHOD = Method(params=Params, fit=fit, makes="adapter", made_elsewhere=True, problems=problems)
