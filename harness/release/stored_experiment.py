"""Stored experiment: its file as it is written now, beside the store of the runs that it made."""

from pathlib import Path
from typing import NamedTuple

from harness.config import CommandLine, LoadedExperiment
from harness.spec import Experiment
from harness.store import Store


class StoredExperiment(NamedTuple):
    """An experiment, the folder of its file, its store, its selected candidates, and what commands repeat."""

    experiment: Experiment
    folder: Path
    store: Store
    selected: tuple[str, ...]
    typed: CommandLine


def open_stored(loaded: LoadedExperiment) -> StoredExperiment:
    """Put the store of its runs beside a loaded experiment."""
    at = Store(loaded.folder / "runs")
    return StoredExperiment(loaded.experiment, loaded.folder, at, loaded.selected, loaded.typed)
