"""Files that another machine wrote: a network file system may remember for a while that they are not there.

Invariant: what a worker has made is waited for before anybody looks for it, so it is never made twice.

Source: nfs(5), *Directory entry caching*: `acdirmax`, 60 s unless the mount says otherwise.
"""

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from harness.errors import CandidateFailed

PATIENCE_S = 90.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.02, 1.0


def wait_for_files(folder: Path, names: Sequence[str], patience_s: float = PATIENCE_S) -> None:
    """Wait until files below a folder, which are known to be there, are seen by this machine.

    Raises:
        CandidateFailed: one of them is not seen in time.
    """
    end, pause = time.monotonic() + patience_s, _FIRST_WAIT_S
    while unseen := [name for name in names if not (folder / name).exists()]:
        if time.monotonic() > end:
            found = f"{folder / unseen[0]}, which a worker wrote, is not seen here after {patience_s:.0f} s"
            raise CandidateFailed(found, "a smaller acdirmax where the file system of the runs is mounted")
        for name in unseen:
            _ask_again(folder, name)
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_WAIT_S)


def _ask_again(folder: Path, name: str) -> None:
    """List the folders on the way to a file: listing asks the server, where a name may come from memory."""
    for parent in reversed(Path(name).parents):
        with suppress(OSError):
            os.listdir(folder / parent)  # noqa: PTH208
