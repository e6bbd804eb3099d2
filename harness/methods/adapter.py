"""Adapter that was trained elsewhere, by any tool that writes PEFT's format.

Invariant: it is copied unchanged and judged like one trained here.
"""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from harness.errors import CandidateFailed, Problem
from harness.methods._shared import PICKLED
from harness.models.against_base import adapter_problems, read_adapter_config
from harness.models.hub import ModelSource
from harness.models.weight_files import CONFIG, WEIGHTS
from harness.plugins import Method, MethodChecks
from harness.records import TrainingRecord
from harness.spec import Recipe, Spec
from harness.training import FitContext, Weights, made_weights


class Params(Spec):
    """`allow_pickle` allows reading `adapter_model.bin`, as tensors only, if there are no safetensors."""

    allow_pickle: bool = False


def problems(recipe: Recipe, source: ModelSource, where: str) -> Iterator[Problem]:
    """Yield the problems of the adapter in the recipe's folder on this base."""
    folder = Path(recipe.path or "")
    if not (folder / CONFIG).exists():
        is_model = (folder / "config.json").exists()
        step = f"method: model, with path: {recipe.path}" if is_model else "check the path"
        found = f"{folder} without {CONFIG}" + (", but with a whole model" if is_model else "")
        yield Problem(where, found, "the folder that PEFT's save_pretrained wrote", step)
        return
    if (folder / WEIGHTS).exists():
        yield from adapter_problems(folder, source, where)
    elif not (folder / PICKLED).exists():
        yield Problem(where, f"{folder} without {WEIGHTS}", "the adapter's weights", "export it again")
    elif not recipe.params.get("allow_pickle"):
        found = f"{PICKLED}, a pickle, which can run code when it is opened"
        step = "save it again with safe_serialization=True, or set params: {allow_pickle: true}"
        yield Problem(where, found, WEIGHTS, step)


def fit(context: FitContext, params: Params) -> Weights:
    """Copy the adapter, with its weights as safetensors."""
    assert context.path is not None
    start, folder = time.perf_counter(), context.folder / "adapter"
    folder.mkdir()
    shutil.copy(context.path / CONFIG, folder / CONFIG)
    if (context.path / WEIGHTS).exists():
        shutil.copy(context.path / WEIGHTS, folder / WEIGHTS)
    else:
        import pickle

        import torch
        from safetensors.torch import save_file

        pickled = context.path / PICKLED
        try:
            tensors = torch.load(pickled, map_location="cpu", weights_only=True)
            plain = {name: tensor.contiguous() for name, tensor in tensors.items()}
            save_file(plain, folder / WEIGHTS, {"format": "pt"})
        except (pickle.UnpicklingError, AttributeError, ValueError) as error:
            reason = f"{pickled} holds something other than tensors"
            raise CandidateFailed(reason, "saving it again with safe_serialization=True") from error
    copying_s = round(time.perf_counter() - start, 3)
    named = read_adapter_config(folder).get("base_model_name_or_path")
    made = TrainingRecord(copying_s=copying_s, named_base=named)
    return made_weights(context, "adapter", made)


METHOD = Method(params=Params, fit=fit, makes="adapter", made_elsewhere=True, checks=MethodChecks(problems))
