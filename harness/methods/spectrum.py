"""Whole matrices of the best signal-to-noise ratio, trained while all others stay as they are.

Invariant: of each type of linear layer the share with the largest ratios is trained, in fp32, and saved in
the precision it is served in; nothing else of the model changes or is saved. The scan lies beside the
weights.
Source: Hartford et al. 2024 (arXiv:2406.06623).
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field

from harness.errors import CandidateFailed
from harness.methods._signal_to_noise import scan_model, sum_up_scan, top_share
from harness.models import deltas
from harness.models.deltas import save_delta
from harness.models.hardware import dtype
from harness.models.shapes import Shape
from harness.plugins import Method
from harness.records import MatrixScan
from harness.training import SUPERVISED, FitContext, SupervisedParams, Weights, delta_digest, fine_tune

SCAN = "signal_to_noise.json"


class Params(SupervisedParams):
    """`share` of the matrices of each type is trained, one at least; TRL's names beside it."""

    learning_rate: float = Field(1e-4, gt=0, le=1)
    share: float = Field(0.25, gt=0, le=1)


def fit(context: FitContext, params: Params) -> Weights:
    """Scan the base, train the chosen matrices and save them under `delta/`.

    Raises:
        CandidateFailed: out of memory, no row fits, the loss was not a number, or the base's layers are
            not `torch.nn.Linear` (GPT-2's are transposed convolutions).
    """
    folder = context.folder / "delta"
    chosen: list[str] = []
    found: list[MatrixScan] = []

    def prepare(model: Any) -> None:
        context.prepare(model)
        ratios = scan_model(model, context.source.weights_digest)
        if not ratios:
            what = f"{context.source.name}, which has no linear layers to scan"
            raise CandidateFailed(what, "method: lora or method: full, which take any base")
        chosen[:] = top_share(ratios, params.share)  # again where smaller batches are tried
        found[:] = sum_up_scan(ratios, chosen)
        (context.folder / SCAN).write_text(json.dumps(ratios, indent=2), "utf-8")
        model.requires_grad_(False)
        for name in chosen:
            model.get_submodule(name).weight.requires_grad_(True)

    def save(model: Any, to: Path) -> None:
        kept = dtype(context.machine.precision)
        trained = {name: model.get_submodule(name).weight.to(kept) for name in chosen}
        save_delta(to, deltas.MATRICES, {}, trained)

    training = fine_tune(replace(context, prepare=prepare), params, None, folder, save)
    own = delta_digest(folder, context.source.weights_digest)
    return Weights("delta", own, context.folder, replace(training, scan=tuple(found)))


def estimate_trained_parameters(shape: Shape, params: Params) -> int:
    """Estimate what is trained of a model of this shape: the share of its linear layers."""
    queries, keys = shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim
    attention = 2 * shape.hidden * (queries + keys)
    return int(params.share * shape.n_layers * (attention + 3 * shape.hidden * shape.intermediate))


METHOD = Method(
    params=Params,
    fit=fit,
    makes="delta",
    **SUPERVISED,
    loops=("training", "tokens", "sft", "deltas", "signal_to_noise"),
    adapter_parameters=estimate_trained_parameters,
)
