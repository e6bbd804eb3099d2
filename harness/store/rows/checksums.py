"""Checksums of files: noted before a file gets its name, so that a damaged one is told from a whole one.

Invariant: none is forgotten, so a file that is whole is not taken for a damaged one.
"""

import json
import zlib
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from harness.records import RowsIdentity, load
from harness.store.layout import Store, write_whole

_PIECE = 1 << 20  # bytes


def note_checksum(store: Store, path: Path, written: Path) -> None:
    """Note what is about to become a file, while it still has another name."""
    known = {*(_read_checksums(path) or ()), _checksum(written)}
    write_whole(store, _file(path), json.dumps(sorted(known)) + "\n")


def is_as_written(path: Path) -> bool | None:
    """Tell whether a file holds what was written to it, in its own folder; None where that was not noted.

    Raises:
        OSError: the file cannot be read.
    """
    found = _checksum(path)  # before what is noted is read: another process may replace the file in between
    known = [] if _is_of_other_rows(path) else _read_checksums(path)
    return None if known is None else found in known


def is_damaged(path: Path) -> bool:
    """Tell whether a file holds something else than was noted of it; it is read once while it stays.

    Raises:
        OSError: the file cannot be read.
    """
    return _is_damaged(path, *file_version(path))


@lru_cache(maxsize=4096)
def _is_damaged(path: Path, *_version: int) -> bool:
    return is_as_written(path) is False


def _is_of_other_rows(path: Path) -> bool:
    with suppress(OSError, ValueError):
        identity = load(RowsIdentity, path.with_name("identity.json").read_bytes())
        return identity.digest != path.parent.name
    return False


def file_version(path: Path) -> tuple[int, int, int]:
    """Return what differs once another file lies at a path, so that one is read once while it stays.

    Raises:
        OSError: there is none.
    """
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size


def _read_checksums(path: Path) -> list[str] | None:
    with suppress(OSError, ValueError):
        return load(list[str], _file(path).read_bytes())
    return None


def _file(path: Path) -> Path:
    return path.with_name("checksums.json")


def _checksum(path: Path) -> str:
    value = 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            value = zlib.crc32(piece, value)
    return f"{value:08x}"
