"""Out-of-memory errors: how they are recognised, what a user is told, and what is released.

Scoring (`loglikelihood.py`) and answering (`hf.py`) go on with half of the batch.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from harness.errors import CandidateFailed
from harness.models.later import torch

# Classes of out-of-memory errors: `torch.OutOfMemoryError` is a RuntimeError.
OUT_OF_MEMORY = (RuntimeError, MemoryError)
_WORDS = (
    *("DefaultCPUAllocator", "Cannot allocate memory", "std::bad_alloc"),
    # Messages of cuBLAS, cuDNN and the driver, outside torch's allocator.
    *("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "CUDA error: out of memory"),
)


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
