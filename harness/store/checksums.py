"""What was written to a file of rows, so that one that was damaged since is known before it is read.

Invariant: a checksum is noted before its file gets its name, and none is forgotten while the folder
stands; so whatever is interrupted, a file that is whole is not taken for a damaged one.

    runs/rows/<digest>/checksums.json          one CRC-32 for each rows.parquet that was written
"""

import json
import zlib
from contextlib import suppress
from pathlib import Path

from harness.store.layout import Store, write_whole

_PIECE = 1 << 20  # bytes


def note_checksum(store: Store, path: Path, written: Path) -> None:
    """Note what is about to become a file, while it still has another name.

    Raises:
        HarnessError: the disk is full.
    """
    known = {*(_noted(path) or ()), _checksum(written)}
    write_whole(store, _file(path), json.dumps(sorted(known)) + "\n")


def is_as_written(path: Path) -> bool | None:
    """Tell whether a file holds what was written to it; None where that was not noted.

    Raises:
        OSError: the file cannot be read.
    """
    found = _checksum(path)  # before what is noted is read: another process may replace the file in between
    known = _noted(path)
    return None if known is None else found in known


def _noted(path: Path) -> list[str] | None:
    with suppress(OSError, ValueError):
        found: list[str] = json.loads(_file(path).read_text("utf-8"))
        return found
    return None


def _file(path: Path) -> Path:
    return path.with_name("checksums.json")


def _checksum(path: Path) -> str:
    value = 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            value = zlib.crc32(piece, value)
    return f"{value:08x}"
