"""Disk use of a store, garbage collection, and the machine's cache of base models' rows on capability suites.

Invariant: what a run, a champion or a night refers to is never garbage, nor are the rows that a stored run is
compared with, confirmed by or selected with. A cached file is <cache>/base_rows/<key>.<CRC-32>.parquet, its
key the digest of everything that its rows depend on; the least recently used files are deleted first.
"""

import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from harness.cache import cache_dir, fill_cache_file, make_private_folder
from harness.records import BLOCK, Origin, RowsIdentity, Run, digest, is_bare_name, read_object
from harness.store.layout import Store, write_record
from harness.store.measurements import keep_environment, keep_origin, origins
from harness.store.parquet_files import write_checked
from harness.store.rows import identities, is_stored_as


class Leftover(NamedTuple):
    """A folder or file without references, with its size in bytes."""

    path: Path
    n_bytes: int


def run_references(runs: Iterable[Run]) -> set[str]:
    """Collect what runs refer to: digests of row sets and weights, keys of weight folders, their own ids."""
    names = {""}
    for run in runs:
        dependencies = weights_behind(run)
        names |= {run.run_id, *run.rows.values(), *dependencies, *dependencies.values()}
        names |= {run.weights_digest, run.base_digest, run.served_digest}
    return names - {""}


def list_unreferenced(store: Store, used_names: set[str]) -> list[Leftover]:
    """List rows, finished weights and exports that are neither referenced nor compared with such ones."""
    stored_rows = identities(store)
    questions = {question(rows) for rows in stored_rows if rows.digest in used_names}
    weights = used_names | set(points_of(store, used_names))
    related = {r.digest for r in stored_rows if r.weights_digest in weights and question(r) in questions}
    unneeded_paths = [path for path in _folders(store, "rows") if (path / "rows.parquet").exists()]
    unneeded_paths = [path for path in unneeded_paths if path.name not in related | used_names]
    unneeded_paths += [path for path in _folders(store, "exports") if path.name not in used_names]
    for path in _folders(store, "weights"):
        is_made = (path / "fit.json").exists() and path.suffix != ".part"
        if is_made and path.name not in used_names:
            weights_digest = read_object(path / "fit.json").get("digest")
            if not isinstance(weights_digest, str) or weights_digest not in used_names:
                unneeded_paths.append(path)
    return _leftovers(unneeded_paths)


def list_unfinished(store: Store) -> list[Leftover]:
    """List incomplete blocks of rows and trainings, and partly written files."""
    rows = [path / "blocks" if (path / "rows.parquet").exists() else path for path in _folders(store, "rows")]
    trainings = [path for path in _folders(store, "weights") if path.suffix == ".part"]
    return _leftovers([*rows, *trainings, store.folder / ".unfinished"])


def points_of(store: Store, fit_keys: Iterable[str]) -> Iterator[str]:
    """Yield the digests of the weights kept along trainings, which a pruner used to stop some of them."""
    for key in filter(is_bare_name, fit_keys):
        for record in store.weights(key).glob("tracked/*/fit.json"):
            if isinstance(digest := read_object(record).get("digest"), str):
                yield digest


def question(rows: RowsIdentity) -> tuple[str, ...]:
    """Return the fields that compared rows share, whatever weights and computation they come from."""
    return (rows.task, rows.task_version, rows.split, rows.prompting_digest, rows.answer, rows.scoring_digest)


def _folders(store: Store, kind: str) -> list[Path]:
    return sorted(path for path in (store.folder / kind).glob("*") if path.is_dir())


def _leftovers(paths: Iterable[Path]) -> list[Leftover]:
    return [Leftover(path, size(path)) for path in paths if path.exists()]


def disk_use(store: Store) -> dict[str, int]:
    """Measure the files of a store by kind, in bytes."""
    rows = {path.name: size(path) for path in (store.folder / "rows").glob("*")}
    blocks = sum(n for name, n in rows.items() if not store.parquet(name).exists())
    parts = sum(map(size, (store.folder / "weights").glob("*.part")))
    bytes_by_kind = {
        "rows": sum(rows.values()) - blocks,
        "weights": size(store.folder / "weights") - parts,
        "index": size(store.index),
        "unfinished": parts + blocks + size(store.folder / ".unfinished"),
        "control arm": size(store.folder / "control"),
        "nights": size(store.folder / "nightly"),
    }
    return bytes_by_kind | {"others": size(store.folder) - sum(bytes_by_kind.values())}


def size(path: Path) -> int:
    """Sum the bytes of a file, or of all files in a folder; 0 if neither exists."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def weights_behind(run: Run) -> dict[str, str]:
    """Map the keys of all weights that a run depends on, including its own and its trials', to digests."""
    own_weights = {run.training.fit_key: run.weights_digest} if run.training.fit_key else {}
    return run.training.stands_on | own_weights


BOUND_BYTES = 10**9
_Texts = Mapping[str, str]


def base_rows_use() -> Leftover:
    """Return the folder of all cached rows with its size; nothing else refers to its content."""
    return Leftover(_base_rows_folder(), size(_base_rows_folder()))


def _base_rows_folder() -> Path:
    return cache_dir() / "base_rows"


def find_base_rows(
    store: Store, identity: RowsIdentity, ids: Sequence[str], environment: _Texts, kernels: _Texts
) -> bool:
    """Copy cached rows of these examples, environment and kernels into a store, if there are any."""
    content = b""
    for cached_file in _find_kept(_key(identity, environment, kernels)):
        with suppress(OSError):
            content = cached_file.read_bytes() if is_stored_as(cached_file, ids) else b""
        if content and f"{zlib.crc32(content):08x}" == cached_file.stem.partition(".")[2]:
            break
    else:
        return False
    origin, path = Origin(keep_environment(store, environment)), store.parquet(identity.digest)
    write_record(store, path.with_name("identity.json"), identity)
    for index in range(-(-len(ids) // BLOCK)):
        keep_origin(store, identity.digest, index, origin)
    with write_checked(store, path) as temp_path:
        temp_path.write_bytes(content)
    with suppress(OSError):
        os.utime(cached_file)
    return True


def keep_base_rows(
    store: Store, identity: RowsIdentity, environment: _Texts, kernels: _Texts, bound_bytes: int = BOUND_BYTES
) -> None:
    """Cache a complete row set, replacing an older copy, if all of it was computed in this environment."""
    environments = {origin.environment for origin in origins(store, identity.digest).values()}
    if environments != {digest(dict(environment))}:
        return
    key = _key(identity, environment, kernels)
    with suppress(OSError):
        content = store.parquet(identity.digest).read_bytes()
        make_private_folder(_base_rows_folder())
        path = _base_rows_folder() / f"{key}.{zlib.crc32(content):08x}.parquet"
        older_copies = _find_kept(key)
        fill_cache_file(path, lambda scratch: scratch.write_bytes(content))
        for older_copy in older_copies:
            if older_copy != path:
                older_copy.unlink(missing_ok=True)
        files = sorted((p.stat().st_mtime_ns, p.stat().st_size, p) for p in _base_rows_folder().iterdir())
        total = sum(n_bytes for _, n_bytes, _ in files)
        for _, n_bytes, least_recent in files:
            if total <= bound_bytes:
                break
            least_recent.unlink(missing_ok=True)
            total -= n_bytes


def _key(identity: RowsIdentity, environment: _Texts, kernels: _Texts) -> str:
    return digest([identity.digest, dict(environment), dict(kernels)])


def _find_kept(key: str) -> list[Path]:
    return sorted(_base_rows_folder().glob(f"{key}.*.parquet"))
