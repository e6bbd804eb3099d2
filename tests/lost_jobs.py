"""Jobs that are killed until they were begun a number of times, as a cluster loses them."""

import os
import signal
from pathlib import Path


def run(file: Path, job: object, known: object) -> str:
    """Note that a job was begun; end it without a word where its number of losses is not reached."""
    losses, begun = int(file.read_text()), file.with_suffix(".begun")
    with begun.open("a") as notes:
        notes.write("x")
    if len(begun.read_text()) <= losses:
        os.kill(os.getpid(), signal.SIGKILL)
    return f"begun {losses + 1} times"
