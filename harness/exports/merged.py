"""One model in safetensors, as written by `save_pretrained`, for transformers, vLLM and converters.

Source: PEFT's `merge_and_unload(safe_merge=True)` in fp32
"""

from harness.exports import PRECISIONS, Format, write_whole

FORMAT = Format(
    bits=PRECISIONS,
    write=lambda job, folder: write_whole(job, folder, job.plan.quantization),
    seconds=(3.0, 15.0),
)
