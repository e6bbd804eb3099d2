"""Checksums of files, noted before a file gets its name, to tell damaged files from whole ones.

Invariant: none is deleted, so a whole file is never taken for a damaged one.
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
    """Note the checksum of a finished file before it gets its final name."""
    known = {*(_read_checksums(path) or ()), _checksum(written)}
    write_whole(store, _file(path), json.dumps(sorted(known)) + "\n")


def is_as_written(path: Path) -> bool | None:
    """Tell whether a file has the content that was written, in its own folder; None without a checksum.

    Raises:
        OSError: the file cannot be read.
    """
    actual = _checksum(path)  # before the noted ones are read: the file may be replaced in between
    known = [] if _is_of_other_rows(path) else _read_checksums(path)
    return None if known is None else actual in known


def is_damaged(path: Path) -> bool:
    """Tell whether a file differs from its noted checksums; a file is read once until it changes.

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
    """Return inode, time and size of a file, which change when the file is replaced.

    Raises:
        OSError: the file is missing.
    """
    file_stat = path.stat()
    return file_stat.st_ino, file_stat.st_mtime_ns, file_stat.st_size


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
