"""Cache folder of reproducible files, each written completely or not at all; and syncing files to disk."""

import json
import os
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

Publish = Callable[[Path, Path], object]  # gives a finished file (first) its name (second)


def cache_dir() -> Path:
    """Return the cache folder: `HARNESS_CACHE`, else `XDG_CACHE_HOME`/harness, else ~/.cache/harness."""
    if folder := os.environ.get("HARNESS_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "harness"


def make_private_folder(folder: Path) -> None:
    """Create a folder that other users cannot read, if missing: it will hold prompts and answers."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


def memo(kind: str, key: str, compute: Callable[[], Any]) -> Any:
    """Return the cached JSON value of a kind and key, or compute it (once for all processes)."""
    memory = cache_dir() / kind / f"{key}.json"
    with suppress(OSError, ValueError):
        return recall(memory)
    value = compute()
    if value is not None:
        with suppress(OSError, ValueError):
            remember(memory, value, _publish_first)
            return recall(memory)
    return json.loads(json.dumps(value))


def remember(memory: Path, value: Any, publish: Publish = Path.replace) -> None:
    """Write a value to the cache as JSON so that it appears completely or not at all."""
    text = json.dumps(value)
    written = f"{_checksum(text)} {text}"
    fill_cache_file(memory, lambda scratch: scratch.write_text(written, encoding="utf-8"), publish)


def recall(memory: Path) -> Any:
    """Read a cached value; OSError without a file, ValueError for a damaged one."""
    checksum, _, text = memory.read_text("utf-8").partition(" ")
    if checksum != _checksum(text):
        raise ValueError(f"{memory} is damaged")
    return json.loads(text)


def _checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


def fill_cache_file(memory: Path, write: Callable[[Path], object], publish: Publish = Path.replace) -> None:
    """Let `write` fill a temporary file of the cache, then give it its name with `publish`."""
    memory.parent.mkdir(parents=True, exist_ok=True)
    scratch = memory.with_name(f"{memory.name}.{os.getpid()}")
    try:
        write(scratch)
        publish(scratch, memory)
    finally:
        scratch.unlink(missing_ok=True)


def _publish_first(scratch: Path, memory: Path) -> None:
    """Put a file into the cache unless a readable one is there."""
    try:
        os.link(scratch, memory)  # fails if the file exists
    except OSError:
        with suppress(OSError, ValueError):
            recall(memory)
            return
        scratch.replace(memory)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
