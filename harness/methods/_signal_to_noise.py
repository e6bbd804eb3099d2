"""Signal-to-noise ratios of a model's weight matrices, and the matrices of each type that have the largest.

Invariant: a singular value is signal where it exceeds the bound of Marchenko and Pastur for noise alone,
whose scale is that of the matrix's own singular values; a ratio depends on the base's weights and nothing
else.
Source: Hartford et al. 2024 (arXiv:2406.06623): the sum of the values above the bound over that of those
below, divided by the largest. As there the scale of the noise comes from the interquartile range, which a few
large values hardly move; here it is held against that of the law itself (Marchenko and Pastur 1967), where
the authors take a normal distribution's, which puts the bound of a square matrix inside of its noise.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from math import ceil, pi, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.cache import memo
from harness.provenance import versions_of
from harness.records import MatrixScan, digest

if TYPE_CHECKING:
    from torch import nn

_GRID = 20_001  # points at which the law's distribution is added up


def scan_model(model: Any, weights_digest: str) -> dict[str, float]:
    """Return the ratio of every linear layer of a decoder by its name; remembered by the digest."""
    key = digest([weights_digest, str(model.dtype), versions_of("signal_to_noise")])

    def make() -> dict[str, float]:
        import torch

        with torch.no_grad():
            values = {
                name: torch.linalg.svdvals(layer.weight.float()).cpu().numpy().astype(float)
                for name, layer in _linear_layers(model).items()
            }
        shapes = {name: tuple(layer.weight.shape) for name, layer in _linear_layers(model).items()}
        return {name: signal_to_noise(values[name], shapes[name]) for name in values}

    found: dict[str, float] = memo("signal_to_noise", key, make)
    return found


def signal_to_noise(values: np.ndarray, shape: Sequence[int]) -> float:
    """Return the ratio of a matrix's singular values: sum of signal over sum of noise, over the largest."""
    # Where nothing is noise, that of fp32 stands in its place; a matrix of zeros has no signal.
    largest = float(values.max(initial=0.0))
    if not largest:
        return 0.0
    is_signal = values > noise_bound(values, shape)
    noise = max(float(values[~is_signal].sum()), float(np.finfo(np.float32).eps) * largest)
    return float(values[is_signal].sum()) / noise / largest


def noise_bound(values: np.ndarray, shape: Sequence[int]) -> float:
    """Return the largest singular value that noise of the matrix's own scale has: s √m (1 + √(n/m))."""
    ratio = min(shape) / max(shape)
    low, high = np.quantile(values, (0.25, 0.75))
    return float((high - low) / _interquartile_range(ratio) * (1 + sqrt(ratio)))


@cache
def _interquartile_range(ratio: float) -> float:
    """Return that of the singular values of noise of scale 1/√m, where n/m is `ratio`."""
    # Their density is √((b² − x²)(x² − a²)) / (π ratio x) between a = 1 − √ratio and b = 1 + √ratio.
    a, b = 1 - sqrt(ratio), 1 + sqrt(ratio)
    edges = np.linspace(a, b, _GRID)
    x = (edges[1:] + edges[:-1]) / 2
    density = np.sqrt((b**2 - x**2) * (x**2 - a**2)) / (pi * ratio * x)
    below = np.cumsum(density)
    low, high = np.interp((0.25, 0.75), below / below[-1], edges[1:])
    return float(high - low)


def top_share(ratios: Mapping[str, float], share: float) -> list[str]:
    """Name the share of the matrices of each type that have the largest ratios, one of each type at least."""
    chosen: list[str] = []
    for names in _group_by_type(ratios).values():
        n = ceil(share * len(names) - 1e-9)
        chosen += sorted(names, key=lambda name: -ratios[name])[:n]
    return sorted(chosen)


def sum_up_scan(ratios: Mapping[str, float], chosen: Sequence[str]) -> tuple[MatrixScan, ...]:
    """Sum up a scan by type: how many matrices there are and are trained, and the ratios at the cut."""
    out = []
    for kind, names in _group_by_type(ratios).items():
        trained = [ratios[name] for name in names if name in chosen]
        left = [ratios[name] for name in names if name not in chosen]
        out.append(
            MatrixScan(
                type=kind,
                n=len(names),
                n_trained=len(trained),
                least_trained=min(trained),
                most_frozen=max(left, default=None),
            )
        )
    return tuple(out)


def _group_by_type(ratios: Mapping[str, float]) -> dict[str, list[str]]:
    """Group names by what stands behind the number of their layer: `self_attn.q_proj`."""
    found: dict[str, list[str]] = {}
    for name in ratios:
        parts = name.split(".")
        last = max(i for i, part in enumerate(parts) if part.isdecimal())
        found.setdefault(".".join(parts[last + 1 :]), []).append(name)
    return found


def _linear_layers(model: Any) -> "dict[str, nn.Linear]":
    from torch import nn

    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and any(part.isdecimal() for part in name.split("."))
    }
