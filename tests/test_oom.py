"""Memory that runs out is noticed on either device, and nothing else is taken for it."""

import pytest
import torch

from harness.errors import CandidateFailed
from harness.models.oom import explain_out_of_memory, ran_out


def test_a_cpu_without_memory_is_noticed_and_another_error_is_not():
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 46)
    assert not isinstance(error.value, torch.OutOfMemoryError)
    assert ran_out(error.value)
    with pytest.raises(RuntimeError) as error:
        torch.ones(2) @ torch.ones(3)
    assert not ran_out(error.value)
    with pytest.raises(RuntimeError, match="inconsistent tensor size"), explain_out_of_memory("x", "y"):
        torch.ones(2) @ torch.ones(3)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    ],
)
def test_what_python_and_a_gpu_say_is_noticed(error):
    assert ran_out(error)


def test_a_candidate_without_memory_fails_with_what_to_turn():
    with pytest.raises(CandidateFailed, match="out of memory while training; try: max_length"):  # noqa: SIM117
        with explain_out_of_memory("out of memory while training", "max_length"):
            torch.empty(1 << 46)
