"""Keep libraries from writing on the terminal, which belongs to results and our own progress.

Invariant: errors still reach the user, as exceptions; only log lines, warnings and bars are muted.
"""

import logging
import os
import warnings

_ENVIRONMENT = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",  # read when tqdm is imported
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


def quiet_environment() -> None:
    """Set what libraries read when they are imported; costs nothing, so call it first."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def quiet_libraries() -> None:
    """Mute transformers, datasets, TRL, PEFT and bitsandbytes; call it before they are imported elsewhere."""
    quiet_environment()
    warnings.filterwarnings("ignore")
    for name in ("transformers", "trl", "peft", "datasets", "accelerate", "torch", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
