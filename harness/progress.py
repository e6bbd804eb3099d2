"""Progress protocol of long work, and the environment of libraries: muted, and without long spinning.

Invariant: nothing here knows a terminal; the command line passes in what draws there. Errors of
libraries still reach the user as exceptions; only log lines, warnings and bars are muted.
"""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Advance(Protocol):
    """Reports finished work within one stage."""

    def __call__(self, done: float, total: float, note: str = "") -> None:
        """Say how much of the stage is done, both in the stage's own unit."""


class Progress(Protocol):
    """Receives stages of work as they begin, and the rows of the table as they finish."""

    def stage(self, label: str, expected_s: float = 0.0) -> AbstractContextManager[Advance]:
        """Open a stage that is expected to take so many seconds; a context manager of `Advance`."""

    def show(self, candidate: str, line: str, *items: str) -> None:
        """Show what a candidate has reached that is not done yet, and some of its items in a line each."""

    def finish(self, candidate: str, line: str, *items: str) -> None:
        """Show the line of a candidate that is done or has failed, and some of its items in a line each."""


class PrefixedProgress:
    """Passes progress on, each label and line with the same words in front."""

    def __init__(self, inner: Progress, prefix: str) -> None:
        self._inner, self._prefix = inner, prefix

    def stage(self, label: str, expected_s: float = 0.0) -> AbstractContextManager[Advance]:
        """Open a stage under its longer label."""
        return self._inner.stage(f"{self._prefix}{label}", expected_s)

    def show(self, candidate: str, line: str, *items: str) -> None:
        """Show the longer line of a candidate that is not done yet."""
        self._inner.show(candidate, f"{self._prefix}{line}", *items)

    def finish(self, candidate: str, line: str, *items: str) -> None:
        """Show the longer line of a candidate."""
        self._inner.finish(candidate, f"{self._prefix}{line}", *items)


class SilentProgress:
    """Reports nothing: for use from Python and in tests."""

    @contextmanager
    def stage(self, label: str, expected_s: float = 0.0) -> Iterator[Advance]:
        """Open a stage and ignore what it reports."""
        yield lambda done, total, note="": None

    def show(self, candidate: str, line: str, *items: str) -> None:
        """Ignore the candidate."""

    def finish(self, candidate: str, line: str, *items: str) -> None:
        """Ignore the candidate."""


_ENVIRONMENT = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",  # read when tqdm is imported
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "PYDANTIC_DISABLE_PLUGINS": "__all__",  # else it reads the entry points of every package there is
}


# Threads that compute together wait for each other by spinning, for some ten milliseconds: beside other work
# they spin while the one they wait for has no processor. This is what libgomp takes where threads outnumber
# processors (some 30 microseconds); of Intel's it is milliseconds. What is computed is the same.
_SHORT_SPINNING = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "1"}


# Memory of a GPU whose blocks grow: batches of all sizes leave no gaps in it.
_ALLOCATION = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}


def quiet_environment() -> None:
    """Set what libraries read when they are imported; costs nothing, so call it first."""
    spinning = {} if "OMP_WAIT_POLICY" in os.environ else _SHORT_SPINNING
    allocation = {} if "PYTORCH_CUDA_ALLOC_CONF" in os.environ else _ALLOCATION
    for name, value in (_ENVIRONMENT | spinning | allocation).items():
        os.environ.setdefault(name, value)


def quiet_libraries() -> None:
    """Mute transformers, datasets, TRL, PEFT and their kin; call it before they are imported elsewhere."""
    quiet_environment()
    warnings.filterwarnings("ignore")
    muted = ("transformers", "trl", "peft", "datasets", "accelerate", "torch", "bitsandbytes")
    for name in (*muted, "sentence_transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
