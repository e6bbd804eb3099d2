"""Memory that runs out: a GPU says so by an error of its own, a CPU by its allocator's words."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from harness.errors import CandidateFailed

# What such an error is an instance of: `torch.OutOfMemoryError` is a RuntimeError.
ERRORS = (RuntimeError, MemoryError)
_OF_A_CPU = ("DefaultCPUAllocator", "Cannot allocate memory", "std::bad_alloc")
# Of a GPU outside of torch's own allocator: in cuBLAS, cuDNN and the driver.
_OF_A_GPU = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "CUDA error: out of memory")


def ran_out(error: BaseException) -> bool:
    """Say whether an error means that no memory was left."""
    import torch

    known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return known or any(words in str(error) for words in (*_OF_A_CPU, *_OF_A_GPU))


def release() -> None:
    """Give back what torch keeps of a GPU's memory for later, so that another process can have it."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


@contextmanager
def explain_out_of_memory(found: str, next_step: str) -> Iterator[None]:
    """Turn running out of memory into a failure of the candidate that says what to turn."""
    try:
        yield
    except ERRORS as error:
        if not ran_out(error):
            raise
        raise CandidateFailed(found, next_step) from None
