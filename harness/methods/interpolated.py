"""Weights interpolated between the base and another candidate's whole model.

Invariant: every tensor is base + scale · (fine-tuned − base), computed in fp32 and stored in the precision of
the fine-tuned one. Source: Wortsman et al. 2022 (arXiv:2109.01903).
"""

import shutil
import time

from pydantic import Field

from harness.errors import CandidateFailed
from harness.methods._shared import RESCUE, requires_init
from harness.models.later import torch
from harness.plugins import Method, MethodChecks
from harness.records import TrainingRecord
from harness.spec import Spec
from harness.training import FitContext, Weights, made_weights


class Params(Spec):
    """`scale` is the share of the way from the base to the fine-tune."""

    scale: float = Field(0.5, gt=0, le=1)


def fit(context: FitContext, params: Params) -> Weights:
    """Write the model at this share of the way from the base to the one that `init_from` names."""
    from safetensors.torch import load_file, save_file

    if context.init is None:
        raise CandidateFailed("interpolated without init_from", "init_from: the candidate that is meant")
    start, folder = time.perf_counter(), context.folder / "model"
    shutil.copytree(context.init, folder)
    base: dict[str, torch.Tensor] = {}
    for file in context.source.path.glob("*.safetensors"):
        base |= load_file(file)
    for file in sorted(folder.glob("*.safetensors")):
        mixed = load_file(file)
        for name in sorted(mixed.keys() & base.keys()):  # tied tensors stay tied
            known, tuned = base[name], mixed[name]
            if known.shape != tuned.shape:
                shapes = f"{tuple(tuned.shape)}, which the base has as {tuple(known.shape)}"
                step = "weights of the base's own vocabulary at the other end"
                raise CandidateFailed(f"{name} of the shape {shapes}", step)
            mixed[name] = known.float().lerp(tuned.float(), params.scale).to(tuned.dtype)
        save_file(mixed, file, {"format": "pt"})
    made = TrainingRecord(mixing_s=round(time.perf_counter() - start, 3))
    return made_weights(context, "model", made)


METHOD = Method(
    params=Params,
    fit=fit,
    makes="model",
    seeded=True,
    init_from="model",
    interpolates=True,
    checks=MethodChecks(requires_init("the candidate at the other end", "full")),
    rescue=RESCUE,
)
