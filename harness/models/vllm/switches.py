"""Switches of vLLM's kernels in the environment: what its numbers may depend on beside its arguments.

Invariant: a switch that nobody set is in no identity, and one that is not known here may change numbers.

Source: vllm/envs.py of vLLM, which lists them.
"""

import os
import re

INVARIANT = "VLLM_BATCH_INVARIANT"  # vLLM's switch for numbers that do not depend on the batch
# Of other prefixes those that choose how products are rounded.
_OTHERS = ("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "CUBLAS_WORKSPACE_CONFIG")
# Addresses, folders, logs, waiting, room for keys, and what Kubernetes or this program sets.
_WITHOUT_NUMBERS = re.compile(
    r"VLLM_(API_KEY|NO_USAGE_STATS|DO_NOT_TRACK|USAGE_\w+|LOGGING_\w+|LOG_\w+|CONFIGURE_LOGGING|TRACE_FUNCTION"
    r"|DEBUG_\w+|NO_DEPRECATION_WARNING|RPC_\w+|SERVICE_\w+|WORKER_MULTIPROC_METHOD|ENABLE_V1_MULTIPROCESSING"
    r"|ALLOW_RUNTIME_LORA_UPDATING|CPU_KVCACHE_SPACE|ASSETS_CACHE|RINGBUFFER_WARNING_INTERVAL|SLEEP_WHEN_IDLE"
    r"|KEEP_ALIVE_ON_ENGINE_DEATH|(\w+_)?PORT(_\w+)?|(\w+_)?(HOST|IP|DIR|ROOT|PATH|TIMEOUT)(_\w+)?)"
)


def kernel_switches() -> dict[str, str]:
    """Return the switches that are set here and may change an answer, by name."""
    found = sorted(name for name in os.environ if name.startswith("VLLM_") or name in _OTHERS)
    return {name: os.environ[name] for name in found if not _WITHOUT_NUMBERS.fullmatch(name)}
