"""Peaks that benchmarks measure against: the fastest matrix product, and the most memory that was taken.

Invariant: memory is what was taken at most since `forget`: of a GPU what torch allocated, on a CPU what of
the process was resident (Linux forgets its peak by /proc/self/clear_refs).
"""

import gc
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from bench_page import Row

from harness.models.batching import common_length
from harness.models.hardware import Machine, _gflops
from harness.models.shapes import Shape

SHARE_GOAL = 65  # % of the GEMM peak
# Kinds of work, by torch's names of the operators that do it on a CPU.
_KINDS = {
    "products with weights": ("mkldnn::_linear_pointwise", "aten::addmm", "aten::mm"),
    "attention's products": ("aten::bmm", "aten::baddbmm"),
    "softmax": ("aten::_softmax", "aten::_log_softmax"),
    "multiplications and sums": ("aten::mul", "aten::add", "aten::add_", "aten::silu"),
    "copies": ("aten::copy_", "aten::cat"),
}


class ScoringCounter:
    """A candidate that counts the seconds of what is scored with it, and the tokens that predict something."""

    def __init__(self, inner):
        self._inner = inner
        self.n_tokens, self.n_projected, self.seconds = 0, 0, 0.0

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def loglikelihood(self, pairs):
        rows = sorted((*context, *continuation[:-1]) for context, continuation in pairs)
        known = [common_length(neighbours) for neighbours in pairwise(rows)]
        self.n_tokens += sum(map(len, rows)) - sum(known)
        self.n_projected += len({(*c, *rest[:i]) for c, rest in pairs for i in range(len(rest))})
        start = time.perf_counter()
        scored = self._inner.loglikelihood(pairs)
        self.seconds += time.perf_counter() - start
        return scored


def profile_operators(ask: Callable[[], object]) -> str:
    """Profile what is asked; says which share of the operators' own time each kind takes."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        ask()
    found = {event.key: event.self_cpu_time_total for event in profiled.key_averages()}
    shares = {
        kind: sum(found.get(key, 0) for key in keys) / sum(found.values()) for kind, keys in _KINDS.items()
    }
    named = [f"{share:.0%} {kind}" for kind, share in shares.items()]
    return f"time: {', '.join(named)}, {1 - sum(shares.values()):.0%} small operations"


def share_row(name: str, counted: ScoringCounter, shape: Shape, peak: float, profiled: str = "") -> Row:
    """Say which share of `peak` (1e9 operations a second) the needed products with weights are."""
    vocabulary = shape.vocabulary * shape.hidden
    n_body = shape.n_parameters - shape.in_embeddings
    flops = 2 * (n_body * counted.n_tokens + vocabulary * counted.n_projected)
    reached = flops / counted.seconds / 1e9
    said = f"{counted.n_tokens:,} needed tokens, {reached:,.0f} of {peak:,.0f} GFLOP/s, attention not counted"
    said = "; ".join(filter(None, (said, profiled)))
    return Row(f"{name}: share of the GEMM peak", 100 * reached / peak, "%", SHARE_GOAL, said, at_least=True)


def peak_gflops(machine: Machine) -> float:
    """Measure the fastest large matrix product now, the best of five rounds."""
    return max(_gflops(machine.device, machine.precision) for _ in range(5))


def forget(device: str) -> None:
    """Give back what nothing holds any more, and start the peak of a GPU's memory anew."""
    gc.collect()
    if device == "cuda":
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak_gb(device: str) -> float:
    """Return the most memory taken since `forget`, in GB of 1e9 bytes."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 1e9
    status = Path("/proc/self/status").read_text()
    return float(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e9
