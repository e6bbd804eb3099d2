"""Spectrum: trains the weight matrices with the best signal-to-noise ratios and freezes all others.

Invariant: of each type of linear layer the share with the largest ratios is trained, in fp32; nothing else
changes or is saved. A ratio depends only on the base's weights. Source: Hartford et al. 2024
(arXiv:2406.06623): the sum of the singular values above the bound of Marchenko and Pastur 1967 over that of
those below, divided by the largest. The scale of the noise comes from the interquartile range, here compared
with that of the law itself: a normal distribution's would put the bound inside a square matrix's noise.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from math import ceil, pi, sqrt
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from harness.cache import memo
from harness.errors import CandidateFailed
from harness.models import deltas
from harness.models.hardware import dtype
from harness.models.later import torch
from harness.models.shapes import Shape
from harness.plugins import Method, MethodAlternative
from harness.provenance import versions_of
from harness.records import MatrixScan, digest
from harness.training import SUPERVISED, FitContext, SupervisedParams, Weights, fine_tune, made_weights
from harness.training.parallel import compute_once, is_first

SCAN = "signal_to_noise.json"
_GRID = 20_001  # grid points for integrating the law's density


class Params(SupervisedParams):
    """`share` is the trained share of the matrices of each type, at least one; also TRL's names."""

    learning_rate: float = Field(1e-4, gt=0, le=1)
    share: float = Field(0.25, gt=0, le=1)


def fit(context: FitContext, params: Params) -> Weights:
    """Scan the base, train the chosen matrices and save them under `delta/`."""
    chosen_names: list[str] = []
    scans: list[MatrixScan] = []

    def prepare(model: Any) -> None:
        context.prepare(model)
        ratios = compute_once(lambda: scan_model(model, context.source.weights_digest))
        if not ratios:
            reason = f"{context.source.name}, which has no linear layers to scan"
            raise CandidateFailed(reason, "method: lora or method: full, which take any base")
        chosen_names[:] = top_share(ratios, params.share)  # set again when smaller batches are tried
        scans[:] = sum_up_scan(ratios, chosen_names)
        if is_first():
            (context.folder / SCAN).write_text(json.dumps(ratios, indent=2), "utf-8")
        model.requires_grad_(False)
        for name in chosen_names:
            model.get_submodule(name).weight.requires_grad_(True)

    def save(model: Any, to: Path, state_dict: Mapping[str, Any] | None = None) -> None:
        save_dtype, state = dtype(context.machine.precision), state_dict or model.state_dict()
        trained_weights = {name: state[f"{name}.weight"].to(save_dtype) for name in chosen_names}
        deltas.save_delta(to, deltas.MATRICES, {}, trained_weights)

    training = fine_tune(replace(context, prepare=prepare), params, None, context.folder / "delta", save)
    return made_weights(context, "delta", replace(training, scan=tuple(scans)))


def estimate_trained_parameters(shape: Shape, params: Params) -> int:
    """Estimate the trained parameters of a model of this shape: the share of its linear layers."""
    queries, keys = shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim
    attention = 2 * shape.hidden * (queries + keys)
    return int(params.share * shape.n_layers * (attention + 3 * shape.hidden * shape.intermediate))


def scan_model(model: Any, weights_digest: str) -> dict[str, float]:
    """Return the ratio of every linear layer of a decoder, by name; remembered by digest."""
    key = digest([weights_digest, str(model.dtype), versions_of("signal_to_noise")])

    def compute_ratios() -> dict[str, float]:
        ratios = {}
        for name, layer in model.named_modules():
            if isinstance(layer, torch.nn.Linear) and any(part.isdecimal() for part in name.split(".")):
                with torch.no_grad():
                    values = torch.linalg.svdvals(layer.weight.float()).cpu().numpy().astype(float)
                ratios[name] = signal_to_noise(values, layer.weight.shape)
        return ratios

    ratio_by_name: dict[str, float] = memo("signal_to_noise", key, compute_ratios)
    return ratio_by_name


def signal_to_noise(values: np.ndarray, shape: Sequence[int]) -> float:
    """Return a matrix's ratio: sum of signal over sum of noise, divided by the largest singular value."""
    # Without noise, fp32's rounding is used instead; a matrix of zeros has no signal.
    largest = float(values.max(initial=0.0))
    if not largest:
        return 0.0
    is_signal = values > noise_bound(values, shape)
    noise = max(float(values[~is_signal].sum()), float(np.finfo(np.float32).eps) * largest)
    return float(values[is_signal].sum()) / noise / largest


def noise_bound(values: np.ndarray, shape: Sequence[int]) -> float:
    """Return the largest singular value of noise with the matrix's scale: s √m (1 + √(n/m))."""
    ratio = min(shape) / max(shape)
    low, high = np.quantile(values, (0.25, 0.75))
    return float((high - low) / _interquartile_range(ratio) * (1 + sqrt(ratio)))


@cache
def _interquartile_range(ratio: float) -> float:
    """Return the interquartile range of the singular values of noise of scale 1/√m, with n/m = `ratio`."""
    # Their density is √((b² − x²)(x² − a²)) / (π ratio x) between a = 1 − √ratio and b = 1 + √ratio.
    a, b = 1 - sqrt(ratio), 1 + sqrt(ratio)
    edges = np.linspace(a, b, _GRID)
    x = (edges[1:] + edges[:-1]) / 2
    density = np.sqrt((b**2 - x**2) * (x**2 - a**2)) / (pi * ratio * x)
    below = np.cumsum(density)
    low, high = np.interp((0.25, 0.75), below / below[-1], edges[1:])
    return float(high - low)


def top_share(ratios: Mapping[str, float], share: float) -> list[str]:
    """List the share of the matrices of each type with the largest ratios, at least one per type."""
    chosen_names: list[str] = []
    for names in _group_by_type(ratios).values():
        chosen_names += sorted(names, key=lambda name: -ratios[name])[: ceil(share * len(names) - 1e-9)]
    return sorted(chosen_names)


def sum_up_scan(ratios: Mapping[str, float], chosen_names: Sequence[str]) -> tuple[MatrixScan, ...]:
    """Summarise a scan by type: numbers of matrices and of trained ones, and the ratios at the cut."""
    scans = []
    for kind, names in _group_by_type(ratios).items():
        trained = [ratios[name] for name in names if name in chosen_names]
        most_frozen = max((ratios[name] for name in names if name not in chosen_names), default=None)
        counts = {"n": len(names), "n_trained": len(trained)}
        scans.append(MatrixScan(type=kind, **counts, least_trained=min(trained), most_frozen=most_frozen))
    return tuple(scans)


def _group_by_type(ratios: Mapping[str, float]) -> dict[str, list[str]]:
    """Group names by the part after their layer's number: `self_attn.q_proj`."""
    names_by_type = defaultdict[str, list[str]](list)
    for name in ratios:
        parts = name.split(".")
        last = max(i for i, part in enumerate(parts) if part.isdecimal())
        names_by_type[".".join(parts[last + 1 :])].append(name)
    return names_by_type


METHOD = Method(
    params=Params,
    fit=fit,
    makes="delta",
    **SUPERVISED,
    loops=("training", "tokens", "sft", "deltas", "signal_to_noise"),
    n_parameters=estimate_trained_parameters,
    alternative=MethodAlternative(
        {}, "trains the quarter of the model's own matrices that carry most signal"
    ),
)
