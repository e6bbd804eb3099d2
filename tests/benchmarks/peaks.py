"""Peaks that benchmarks measure against: the fastest matrix product, and the most memory that was taken.

Invariant: on a GPU memory is what torch allocated since `forget`, on a CPU the process's resident peak,
which cannot be forgotten.
"""

import gc
import resource
import time
from itertools import pairwise

from bench_page import Row

from harness.footprint import Shape
from harness.machine import Machine, _gflops
from harness.trees import common_length

SHARE_GOAL = 65  # % of the GEMM peak


class Counting:
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


def share_row(name: str, counted: Counting, shape: Shape, peak: float) -> Row:
    """Say which share of `peak` (1e9 operations a second) the needed products with weights are."""
    vocabulary = shape.vocabulary * shape.hidden
    n_body = shape.n_parameters - shape.in_embeddings
    flops = 2 * (n_body * counted.n_tokens + vocabulary * counted.n_projected)
    reached = flops / counted.seconds / 1e9
    said = f"{counted.n_tokens:,} needed tokens, {reached:,.0f} of {peak:,.0f} GFLOP/s, attention not counted"
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


def peak_gb(device: str) -> float:
    """Return the most memory taken since `forget`, in GB of 1e9 bytes."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
