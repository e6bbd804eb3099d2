"""One model in safetensors, as written by `save_pretrained`, for transformers, vLLM and converters.

Source: PEFT's `merge_and_unload(safe_merge=True)` in fp32
"""

from pathlib import Path

from harness.exports import PRECISIONS, ExportJob, Format, Written, write_whole
from harness.models.weight_files import count_types


def write(job: ExportJob, folder: Path) -> Written:
    """Write the merged model."""
    gap = write_whole(job, folder, job.plan.quantization)
    return Written(count_types(folder), {}, gap)


FORMAT = Format(bits=PRECISIONS, write=write, seconds=(3.0, 15.0))
