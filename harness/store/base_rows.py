"""Cache of base models' rows on capability suites, kept once per machine for all experiments.

Invariant: a file's name holds the digest of everything that its rows depend on, including environment,
threads and kernels, and the checksum of its content. So a damaged file counts as absent, and concurrent
writers do not conflict. The size is bounded; the least recently used files are deleted first.

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
    """Return the folder of all cached rows."""
    return cache_dir() / "base_rows"


def base_rows_use() -> Leftover:
    """Return that folder with its size; nothing else refers to its content."""
    return Leftover(base_rows_folder(), size(base_rows_folder()))


def find_base_rows(
    store: Store,
    identity: RowsIdentity,
    ids: Sequence[str],
    environment: Mapping[str, str],
    kernels: Mapping[str, str],
) -> bool:
    """Copy cached rows of these examples and this environment into a store; tell whether there were any.

    `kernels` describes the kernels in use here. The store does not record them with its rows.
    """
    candidates = (
        (path, _read(path))
        for path in _find_kept(_key(identity, environment, kernels))
        if is_stored_as(path, ids)
    )
    cached, content = next((c for c in candidates if c[1] is not None), (None, None))
    if cached is None or content is None:
        return False
    origin, path = Origin(keep_environment(store, environment)), store.parquet(identity.digest)
    write_record(store, path.with_name("identity.json"), identity)
    for index in range(-(-len(ids) // BLOCK)):
        keep_origin(store, identity.digest, index, origin)

    def write(part: Path) -> None:
        part.write_bytes(content)
        note_checksum(store, path, part)

    with clear_errors(store, str(path), AGAIN):
        rename_when_whole(store, path, write)
    with suppress(OSError):
        os.utime(cached)
    return True


def keep_base_rows(
    store: Store,
    identity: RowsIdentity,
    environment: Mapping[str, str],
    kernels: Mapping[str, str],
    bound_bytes: int = BOUND_BYTES,
) -> None:
    """Cache a complete row set, replacing an older copy, if all of it was computed in this environment.

    A cache that cannot be written only costs time.
    """
    environments = {origin.environment for origin in origins(store, identity.digest).values()}
    if environments != {digest(dict(environment))}:
        return
    key = _key(identity, environment, kernels)
    with suppress(OSError):
        content = store.parquet(identity.digest).read_bytes()
        make_private_folder(base_rows_folder())
        path = base_rows_folder() / f"{key}.{zlib.crc32(content):08x}.parquet"
        older_copies = _find_kept(key)
        fill_cache_file(path, lambda scratch: scratch.write_bytes(content))
        for other in older_copies:
            if other != path:
                other.unlink(missing_ok=True)
        _drop_least_recent(bound_bytes)


def _key(identity: RowsIdentity, environment: Mapping[str, str], kernels: Mapping[str, str]) -> str:
    return digest([identity.digest, dict(environment), dict(kernels)])


def _find_kept(key: str) -> list[Path]:
    return sorted(base_rows_folder().glob(f"{key}.*.parquet"))


def _read(path: Path) -> bytes | None:
    """Read a cached file; None if it is gone or damaged."""
    with suppress(OSError):
        content = path.read_bytes()
        if f"{zlib.crc32(content):08x}" == path.stem.partition(".")[2]:
            return content
    return None


def _drop_least_recent(bound_bytes: int) -> None:
    files = [(path, path.stat()) for path in base_rows_folder().iterdir()]
    files.sort(key=lambda file: file[1].st_mtime_ns)
    total = sum(stat.st_size for _, stat in files)
    for path, stat in files:
        if total <= bound_bytes:
            return
        path.unlink(missing_ok=True)
        total -= stat.st_size
