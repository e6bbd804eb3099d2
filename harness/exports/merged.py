"""One model in safetensors, as `save_pretrained` writes it: for transformers, vLLM, and what converts it.

Source: PEFT's `merge_and_unload(safe_merge=True)` in fp32
"""

from collections.abc import Iterator
from pathlib import Path

from harness.errors import Problem
from harness.exports import ExportJob, Written, write_whole
from harness.models.hub import ModelSource
from harness.models.weight_files import count_types
from harness.spec import ExportPolicy

QUANTIZATIONS = ("bf16", "fp16", "fp32")
_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
_SECONDS = 3.0, 15.0  # to begin with, and for 1e9 parameters


def default_quantization(base_precision: str) -> str:
    """Return the precision of the base's own files."""
    return base_precision


def problems(policy: ExportPolicy, quantization: str) -> Iterator[Problem]:
    """Yield nothing: it needs no other program."""
    yield from ()


def estimate(source: ModelSource, quantization: str) -> tuple[float, float]:
    """Estimate the bytes of the weights, and the seconds."""
    n = source.n_parameters
    return n * _BYTES[quantization], _SECONDS[0] + _SECONDS[1] * n / 1e9


def write(job: ExportJob, folder: Path) -> Written:
    """Write the merged model.

    Raises:
        CandidateFailed: the weights cannot be merged.
    """
    gap = write_whole(job, folder, job.plan.quantization)
    return Written(count_types(folder), {}, gap)
