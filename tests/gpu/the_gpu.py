"""The GPU of this machine, or the reason to skip a test."""

import pytest

from harness.models.hardware import Machine, probe


def gpu(precision: str = "auto") -> Machine:
    """Probe the GPU; skip if torch sees none."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip(f"torch {torch.__version__} sees no GPU")
    return probe("cuda", precision)
