"""Cache folder: files that can be made again, each written whole or not at all; and what is on the disk."""

import json
import os
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

Publish = Callable[[Path, Path], object]  # of a written file, under its name


def cache_dir() -> Path:
    """Return the cache folder: `HARNESS_CACHE`, else `XDG_CACHE_HOME`/harness, else ~/.cache/harness."""
    if own := os.environ.get("HARNESS_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "harness"


def make_private_folder(folder: Path) -> None:
    """Make a folder that others may not read, unless it is there: it will hold prompts and answers."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


def memo(kind: str, key: str, make: Callable[[], Any]) -> Any:
    """Return what is remembered of a kind under a key, as JSON gives it back; else make and remember it.

    Of processes that make it together the first one's holds for all. None is not remembered. A damaged file
    is made again; a folder that may only be read costs time alone.
    """
    memory = cache_dir() / kind / f"{key}.json"
    with suppress(OSError, ValueError):
        return recall(memory)
    value = make()
    if value is not None:
        with suppress(OSError, ValueError):
            remember(memory, value, _publish_first)
            return recall(memory)
    return json.loads(json.dumps(value))


def remember(memory: Path, value: Any, publish: Publish = Path.replace) -> None:
    """Write a value to the cache as JSON so that it appears whole or not at all."""
    text = json.dumps(value)
    written = f"{_checksum(text)} {text}"
    fill_cache_file(memory, lambda scratch: scratch.write_text(written, encoding="utf-8"), publish)


def recall(memory: Path) -> Any:
    """Read what was remembered in a file of the cache.

    Raises:
        OSError: there is no such file.
        ValueError: it is damaged.
    """
    checksum, _, text = memory.read_text("utf-8").partition(" ")
    if checksum != _checksum(text):
        raise ValueError(f"{memory} is damaged")
    return json.loads(text)


def _checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


def fill_cache_file(memory: Path, write: Callable[[Path], object], publish: Publish = Path.replace) -> None:
    """Let `write` fill a file of the cache that then appears whole, by `publish`, or not at all."""
    memory.parent.mkdir(parents=True, exist_ok=True)
    scratch = memory.with_name(f"{memory.name}.{os.getpid()}")
    try:
        write(scratch)
        publish(scratch, memory)
    finally:
        scratch.unlink(missing_ok=True)


def _publish_first(scratch: Path, memory: Path) -> None:
    """Let a file appear in the cache unless there is one that can be read."""
    try:
        os.link(scratch, memory)  # which fails where there is a file
    except OSError:
        with suppress(OSError, ValueError):
            recall(memory)
            return
        scratch.replace(memory)


def sync(path: Path) -> None:
    """Wait until a file or the names in a folder are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
