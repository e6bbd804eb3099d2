"""Peaks that benchmarks compare with: the fastest matrix product, and the peak memory.

Invariant: the peak counts since `forget`: on a GPU the memory that torch allocated, on a CPU the resident
memory of the process (Linux resets its peak by /proc/self/clear_refs).
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
# Kinds of work, by torch's names of CPU operators.
_KINDS = {
    "products with weights": ("mkldnn::_linear_pointwise", "aten::addmm", "aten::mm"),
    "attention's products": ("aten::bmm", "aten::baddbmm"),
    "softmax": ("aten::_softmax", "aten::_log_softmax"),
    "multiplications and sums": ("aten::mul", "aten::add", "aten::add_", "aten::silu"),
    "copies": ("aten::copy_", "aten::cat"),
}


class ScoringCounter:
    """A candidate that counts the seconds of scoring, and the tokens that predict something."""

    def __init__(self, inner):
        self._inner = inner
        self.n_tokens, self.n_projected, self.seconds = 0, 0, 0.0

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def loglikelihood(self, pairs):
        rows = sorted((*context, *continuation[:-1]) for context, continuation in pairs)
        shared = [common_length(neighbours) for neighbours in pairwise(rows)]
        self.n_tokens += sum(map(len, rows)) - sum(shared)
        self.n_projected += len({(*c, *rest[:i]) for c, rest in pairs for i in range(len(rest))})
        start = time.perf_counter()
        scored = self._inner.loglikelihood(pairs)
        self.seconds += time.perf_counter() - start
        return scored


def profile_operators(ask: Callable[[], object]) -> str:
    """Profile a call; return the share of the operators' own time by kind."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        ask()
    times = {event.key: event.self_cpu_time_total for event in profiled.key_averages()}
    shares = {
        kind: sum(times.get(key, 0) for key in keys) / sum(times.values()) for kind, keys in _KINDS.items()
    }
    texts = [f"{share:.0%} {kind}" for kind, share in shares.items()]
    return f"time: {', '.join(texts)}, {1 - sum(shares.values()):.0%} small operations"


def share_row(name: str, counted: ScoringCounter, shape: Shape, peak: float, profiled: str = "") -> Row:
    """Return the share of `peak` (1e9 operations per second) that necessary products with weights reach."""
    vocabulary = shape.vocabulary * shape.hidden
    n_body = shape.n_parameters - shape.in_embeddings
    flops = 2 * (n_body * counted.n_tokens + vocabulary * counted.n_projected)
    reached = flops / counted.seconds / 1e9
    note = f"{counted.n_tokens:,} needed tokens, {reached:,.0f} of {peak:,.0f} GFLOP/s, attention not counted"
    note = "; ".join(filter(None, (note, profiled)))
    return Row(f"{name}: share of the GEMM peak", 100 * reached / peak, "%", SHARE_GOAL, note, at_least=True)


def peak_gflops(machine: Machine) -> float:
    """Measure the current speed of the fastest large matrix product, the best of five rounds."""
    return max(_gflops(machine.device, machine.precision) for _ in range(5))


def forget(device: str) -> None:
    """Release unreferenced memory, and reset the peak of a GPU's memory."""
    gc.collect()
    if device == "cuda":
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak_gb(device: str) -> float:
    """Return the peak memory since `forget`, in GB of 1e9 bytes."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 1e9
    status = Path("/proc/self/status").read_text()
    return float(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e9
