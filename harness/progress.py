"""Progress protocol of long work, and the environment of libraries: their output and how threads wait."""

import logging
import os
import time
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from math import nan
from pathlib import Path
from typing import Protocol


class Advance(Protocol):
    """Reports finished work within one stage."""

    def __call__(self, done: float, total: float, note: str = "") -> None:
        """Report how much of the stage is done, both numbers in the stage's own unit."""


class Progress(Protocol):
    """Receives stages of work when they begin, and the rows of the table when they finish."""

    def stage(self, label: str, expected_s: float = 0.0) -> AbstractContextManager[Advance]:
        """Open a stage with its expected duration in seconds; a context manager of `Advance`."""

    def show(self, candidate: str, line: str, *items: str) -> None:
        """Show an intermediate result of a candidate, with some of its items on a line each."""

    def finish(self, candidate: str, line: str, *items: str) -> None:
        """Show the line of a candidate that is done or failed, with some of its items on a line each."""


class PrefixedProgress:
    """Passes progress on with a prefix before each label and line."""

    def __init__(self, inner: Progress, prefix: str) -> None:
        self._inner, self._prefix = inner, prefix

    def stage(self, label: str, expected_s: float = 0.0) -> AbstractContextManager[Advance]:
        """Open a stage with the prefixed label."""
        return self._inner.stage(f"{self._prefix}{label}", expected_s)

    def show(self, candidate: str, line: str, *items: str) -> None:
        """Show the prefixed line of a candidate that is not done yet."""
        self._inner.show(candidate, f"{self._prefix}{line}", *items)

    def finish(self, candidate: str, line: str, *items: str) -> None:
        """Show the prefixed line of a candidate."""
        self._inner.finish(candidate, f"{self._prefix}{line}", *items)


class SilentProgress:
    """Reports nothing: for use from Python and in tests."""

    @contextmanager
    def stage(self, label: str, expected_s: float = 0.0) -> Iterator[Advance]:
        """Open a stage and ignore its reports."""
        yield lambda done, total, note="": None

    def show(self, candidate: str, line: str, *items: str) -> None:
        """Ignore the candidate."""

    def finish(self, candidate: str, line: str, *items: str) -> None:
        """Ignore the candidate."""


_ENVIRONMENT = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "HF_HUB_DISABLE_TELEMETRY": "1",  # TRL reports each trainer to the hub otherwise
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",  # read when tqdm is imported
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "PYDANTIC_DISABLE_PLUGINS": "__all__",  # else it reads the entry points of all packages
}


# Threads that compute together wait for each other by spinning, some ten milliseconds by libgomp's default.
# On a shared machine they would spin while the awaited thread has no processor, so there they spin as briefly
# as libgomp does with more threads than processors; Intel's wait is milliseconds. Alone they spin just over
# the gaps between a model's operations, which costs less than the default. Results are the same.
_BRIEF, _LONG = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "1"}, {"GOMP_SPINCOUNT": "20000"}
_LOOK_S, _IDLE_SHARE = 0.2, 0.25  # share of one processor that other work may use unnoticed


# Growing blocks of GPU memory: batches of different sizes leave no gaps.
_ALLOCATION = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}


def quiet_environment() -> None:
    """Set the variables that libraries read at import; costs nothing, so call it first."""
    allocation = {} if "PYTORCH_CUDA_ALLOC_CONF" in os.environ else _ALLOCATION
    for name, value in (_ENVIRONMENT | allocation).items():
        os.environ.setdefault(name, value)


def spins_briefly(read_s: Callable[[], float] | None = None, look_s: float = _LOOK_S) -> bool:
    """Choose, once and before torch is loaded, how long threads spin; return whether it is brief.

    Brief if other processes use the processors that these threads need; measuring this takes `look_s`.
    `read_s` returns the seconds for which the processors were busy so far. The user's environment takes
    precedence.
    """
    limit = os.environ.get("OMP_NUM_THREADS", "")
    if limit != "1" and not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & set(os.environ):
        read_s, own_s, began = read_s or _read_busy_s, time.process_time(), time.perf_counter()
        busy_s = read_s()
        time.sleep(look_s)
        others_s = read_s() - busy_s - (time.process_time() - own_s)
        spare = max(0, len(_processors()) - int(limit)) if limit.isdigit() else 0
        unseen_s = (spare + _IDLE_SHARE) * (time.perf_counter() - began)
        chosen = _LONG if others_s <= unseen_s else _BRIEF  # brief also where it is unknown (NaN)
        os.environ.update(chosen | {name: os.environ[name] for name in chosen if name in os.environ})
    return os.environ.get("GOMP_SPINCOUNT") == _BRIEF["GOMP_SPINCOUNT"]


def _processors() -> Collection[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)


def _read_busy_s() -> float:
    """Return how many seconds these processors were busy since boot; NaN if the system does not say."""
    names, lines = {f"cpu{number}" for number in _processors()}, []
    with suppress(OSError):
        lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
    # User, nice, system, idle, waiting for a disk, two kinds of interrupts, and time of other machines.
    times = [[int(ticks) for ticks in values[:8]] for name, *values in lines if name in names]
    if not times:
        return nan
    return sum(sum(ticks) - ticks[3] - ticks[4] for ticks in times) / os.sysconf("SC_CLK_TCK")


def quiet_libraries() -> None:
    """Mute transformers, datasets, TRL, PEFT and related libraries; call it before they are imported."""
    quiet_environment()
    spins_briefly()
    warnings.filterwarnings("ignore")
    muted = ("transformers", "trl", "peft", "datasets", "accelerate", "torch", "bitsandbytes")
    for name in (*muted, "sentence_transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from huggingface_hub import constants
    from transformers.utils import logging as transformers_logging

    if os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1":  # not yet known if it was imported before
        constants.HF_HUB_DISABLE_TELEMETRY = True
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
