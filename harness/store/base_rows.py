"""Rows of base models on capability suites, kept once per machine for the experiments of every folder.

Invariant: a file's name holds the digest of all that its rows depend on, environment, threads and kernels
included, and the checksum of its content; so a damaged file is as if absent, and writers at the same time
do each other no harm. What they take is bounded, and the least recently used go first.

    <cache>/base_rows/<key>.<CRC-32>.parquet   a copy of a complete `rows.parquet`
"""

import os
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from harness.cache import cache_dir, fill_cache_file, make_private_folder
from harness.records import BLOCK, Origin, RowsIdentity, digest
from harness.store.garbage import Leftover, size
from harness.store.layout import AGAIN, Store, clear_errors, rename_when_whole, write_record
from harness.store.measurements import keep_environment, keep_origin, origins
from harness.store.rows import is_stored_as
from harness.store.rows.checksums import note_checksum

BOUND_BYTES = 10**9


def base_rows_folder() -> Path:
    """Return the folder of all kept rows."""
    return cache_dir() / "base_rows"


def base_rows_use() -> Leftover:
    """Return that folder with its bytes; nothing in it is referred to from elsewhere."""
    return Leftover(base_rows_folder(), size(base_rows_folder()))


def find_base_rows(
    store: Store,
    identity: RowsIdentity,
    ids: Sequence[str],
    environment: Mapping[str, str],
    kernels: Mapping[str, str],
) -> bool:
    """Copy kept rows of these examples, computed in this environment, into a store; tell whether there were.

    `kernels` describe those that compute here. They are no part of what a store notes of its rows.
    """
    read = (
        (path, _read(path))
        for path in _find_kept(_key(identity, environment, kernels))
        if is_stored_as(path, ids)
    )
    kept, content = next((one for one in read if one[1] is not None), (None, None))
    if kept is None or content is None:
        return False
    came_from, path = Origin(keep_environment(store, environment)), store.parquet(identity.digest)
    write_record(store, path.with_name("identity.json"), identity)
    for index in range(-(-len(ids) // BLOCK)):
        keep_origin(store, identity.digest, index, came_from)

    def write(part: Path) -> None:
        part.write_bytes(content)
        note_checksum(store, path, part)

    with clear_errors(store, str(path), AGAIN):
        rename_when_whole(store, path, write)
    with suppress(OSError):
        os.utime(kept)
    return True


def keep_base_rows(
    store: Store,
    identity: RowsIdentity,
    environment: Mapping[str, str],
    kernels: Mapping[str, str],
    bound_bytes: int = BOUND_BYTES,
) -> None:
    """Keep a complete set, in place of what was kept of it, if all of it comes from this environment.

    A cache that cannot be written costs time alone.
    """
    came_from = origins(store, identity.digest).values()
    if {one.environment for one in came_from} != {digest(dict(environment))}:
        return
    key = _key(identity, environment, kernels)
    with suppress(OSError):
        content = store.parquet(identity.digest).read_bytes()
        make_private_folder(base_rows_folder())
        path = base_rows_folder() / f"{key}.{zlib.crc32(content):08x}.parquet"
        before = _find_kept(key)
        fill_cache_file(path, lambda scratch: scratch.write_bytes(content))
        for other in before:
            if other != path:
                other.unlink(missing_ok=True)
        _drop_least_recent(bound_bytes)


def _key(identity: RowsIdentity, environment: Mapping[str, str], kernels: Mapping[str, str]) -> str:
    return digest([identity.digest, dict(environment), dict(kernels)])


def _find_kept(key: str) -> list[Path]:
    return sorted(base_rows_folder().glob(f"{key}.*.parquet"))


def _read(kept: Path) -> bytes | None:
    """Read a kept file; None where it is gone by now or damaged."""
    with suppress(OSError):
        content = kept.read_bytes()
        if f"{zlib.crc32(content):08x}" == kept.stem.partition(".")[2]:
            return content
    return None


def _drop_least_recent(bound_bytes: int) -> None:
    found = [(path, path.stat()) for path in base_rows_folder().iterdir()]
    found.sort(key=lambda one: one[1].st_mtime_ns)
    total = sum(stat.st_size for _, stat in found)
    for path, stat in found:
        if total <= bound_bytes:
            return
        path.unlink(missing_ok=True)
        total -= stat.st_size
