"""Cache folder: files that can be made again, each written whole or not at all; and what is on the disk."""

import json
import os
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
        return json.loads(memory.read_text("utf-8"))
    text = json.dumps(make())
    if text != "null":
        with suppress(OSError, ValueError):
            remember(memory, text, _publish_first)
            return json.loads(memory.read_text("utf-8"))
    return json.loads(text)


def remember(memory: Path, text: str, publish: Publish = Path.replace) -> None:
    """Write a text to the cache so that it appears whole or not at all."""
    fill_cache_file(memory, lambda scratch: scratch.write_text(text, encoding="utf-8"), publish)


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
            json.loads(memory.read_text("utf-8"))
            return
        scratch.replace(memory)


def sync(path: Path) -> None:
    """Wait until a file or the names in a folder are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
