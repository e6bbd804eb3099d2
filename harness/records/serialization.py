"""Serialization of records: canonical JSON, digests, and readers of stored files.

Invariant: the digest of a record is the sha256 of its canonical JSON, so equal records have one digest
anywhere.
"""

import gc
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, TypeAdapter

_DEEPEST = 100  # levels of nesting: deeper JSON is not data and would exhaust the stack

_Record = TypeVar("_Record")

LONGEST_NAME = 200  # bytes of a file's name; 255 are allowed, and unfinished files get a suffix
_IN_NO_NAME = re.compile(r"[/\\\x00-\x1f\x7f]")


def is_bare_name(name: str) -> bool:
    """Tell whether a text names one file or folder on every system, and is not a path."""
    n_bytes = len(name.encode("utf-8", "replace"))
    is_path = name in (".", "..") or name.startswith("~") or _IN_NO_NAME.search(name)
    return 0 < n_bytes <= LONGEST_NAME and not is_path


def _check_name(name: str) -> str:
    if not is_bare_name(name):
        raise ValueError("the name of one file or folder, and no path")
    return name


StoredName = Annotated[str, AfterValidator(_check_name)]  # names a file or folder of a store
NameOrNone = Annotated[str, AfterValidator(lambda name: name and _check_name(name))]  # may be empty


def canonical_json(value: Any) -> str:
    """Serialise with sorted keys and without spaces; ValueError for NaN and inf."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """Return the first 16 hex digits of the sha256 of the value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def drop_defaults(record: Any) -> dict[str, Any]:
    """Return the fields that differ from their defaults, so that a field added later changes no digest."""
    values = ((f, getattr(record, f.name)) for f in fields(record))
    return {f.name: value for f, value in values if value != f.default}


def load(record: type[_Record], text: str | bytes) -> _Record:
    """Read a record from JSON, with the tuples and records inside it; ValueError for anything else."""
    loaded: _Record = reader(record).validate_json(text)
    return loaded


_READERS: dict[Any, TypeAdapter[Any]] = {}


def reader(record: Any) -> TypeAdapter[Any]:
    """Return the cached reader of a type; building one takes milliseconds."""
    if record not in _READERS:
        _READERS[record] = TypeAdapter(record)
    return _READERS[record]


def parse_json(text: str | bytes, **options: Any) -> Any:
    """Parse JSON from outside, at most 100 levels deep, with the options of `json.loads` and its errors."""
    plain = text if isinstance(text, str) else text.decode("utf-8", "replace")
    try:
        value = json.loads(text, **options)
    except RecursionError:
        pass
    else:
        depth, level = 0, [value] if plain.count("[") + plain.count("{") > _DEEPEST else []
        while level := [item for item in level if isinstance(item, list | dict)]:
            depth += 1
            level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
        if depth <= _DEEPEST:
            return value
    raise json.JSONDecodeError(f"brackets in one another more than {_DEEPEST} deep", plain, 0)


def read_object(file: Path) -> dict[str, Any]:
    """Read a JSON object from a file that others may have written; empty if it has none."""
    with suppress(OSError, ValueError):
        value = parse_json(file.read_bytes())
        return value if isinstance(value, dict) else {}
    return {}


def load_files(record: type[_Record], files: Iterable[Path]) -> list[_Record]:
    """Read one record from each file; unreadable files are left out."""
    records = []
    for file in files:
        with suppress(OSError, ValueError):
            records.append(load(record, file.read_bytes()))
    return records


@contextmanager
def many_rows() -> Iterator[None]:
    """Pause the garbage collector while many rows are created: it visits each one and finds no cycles."""
    paused = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if paused:
            gc.enable()


def checksum(file: Path) -> str:
    """Return the sha256 of a file's content, in hex."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
