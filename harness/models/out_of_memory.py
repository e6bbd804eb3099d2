"""Out-of-memory errors: how they are recognised, what a user is told, what is released; batches in halves."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from harness.errors import CandidateFailed
from harness.models.later import torch

# Classes of out-of-memory errors: `torch.OutOfMemoryError` is a RuntimeError.
OUT_OF_MEMORY = (RuntimeError, MemoryError)
SHORTER = "a smaller base_model or shorter prompts"
_WORDS = (
    *("DefaultCPUAllocator", "Cannot allocate memory", "std::bad_alloc"),
    # Messages of cuBLAS, cuDNN and the driver, outside torch's allocator.
    *("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "CUDA error: out of memory"),
)
_T = TypeVar("_T")

halvings: list[str] = []  # what this process was doing each time that it halved a batch
HALVED = "memory ran out and batches were halved, so scores may move by rounding, as often as by the A/A rate"


def ran_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that memory ran out."""
    is_known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return is_known or any(words in str(error) for words in _WORDS)


def release_gpu_memory() -> None:
    """Release the GPU memory that torch caches, so that other processes can use it."""
    if "torch" in sys.modules and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


@contextmanager
def explain_out_of_memory(found: str, next_step: str) -> Iterator[None]:
    """Turn an out-of-memory error into a failure of the candidate that names what to change."""
    try:
        yield
    except OUT_OF_MEMORY as error:
        if not ran_out_of_memory(error):
            raise
        raise CandidateFailed(found, next_step) from None


def compute_in_halves(
    numbers: list[int], compute: Callable[[list[int]], dict[int, _T]], forget: Callable[[], bool], doing: str
) -> dict[int, _T]:
    """Compute values by number; if memory runs out, `forget` kept prefixes and compute one half at a time."""
    try:
        return compute(numbers)
    except OUT_OF_MEMORY as error:
        if not ran_out_of_memory(error):
            raise
        if not forget() and len(numbers) == 1:
            raise CandidateFailed(f"out of memory while {doing} one answer", SHORTER) from None
    # Outside the except clause, where the error would still hold the computed tensors.
    release_gpu_memory()
    halvings.append(doing)
    half = len(numbers) // 2
    parts = filter(None, (numbers[:half], numbers[half:]))
    return {i: v for part in parts for i, v in compute_in_halves(part, compute, forget, doing).items()}
