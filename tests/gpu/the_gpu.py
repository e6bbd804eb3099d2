"""The GPU of this machine, or the reason why a test is skipped."""

import pytest

from harness.models.hardware import Machine, probe


def gpu(precision: str = "auto") -> Machine:
    """Probe the GPU; skip where torch sees none."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip(f"torch {torch.__version__} sees no GPU")
    return probe("cuda", precision)
