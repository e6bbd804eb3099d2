"""TensorBoard: a folder of event files a run, with curves, figures and the verdict as text.

Source: event files and text plugin of the package tensorboard, which needs neither torch nor TensorFlow here.
"""

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.report.trackers.tracked_run import TrackedRun

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter


def send(experiment: str, runs: Sequence[TrackedRun], folder: Path) -> str:
    """Write these runs' event files again; return the command that shows them."""
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    place = folder / experiment
    for run in runs:
        shutil.rmtree(place / run.label, ignore_errors=True)
        writer = EventFileWriter(str(place / run.label))
        _write(writer, run)
        writer.close()
    return f"tensorboard --logdir {place}"


def _write(writer: "EventFileWriter", run: TrackedRun) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    now = time.time()
    figures = {name: ((0, value),) for name, value in run.metrics.items()}
    for name, curve in {**figures, **run.curves}.items():
        for step, value in curve:
            scalar = Summary(value=[Summary.Value(tag=name, simple_value=value)])
            writer.add_event(Event(wall_time=now, step=step, summary=scalar))
    for name, text in {**run.params, **run.tags}.items():
        writer.add_event(Event(wall_time=now, step=0, summary=_text(name, text)))


def _text(name: str, text: str) -> "Summary":
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.text import metadata
    from tensorboard.util.tensor_util import make_tensor_proto

    plain = metadata.create_summary_metadata(display_name=name, description="")
    return Summary(value=[Summary.Value(tag=name, metadata=plain, tensor=make_tensor_proto(text))])
