"""Memo of values read from row sets' files; each value is kept until its file changes.

Invariant: a replaced file is read again; one that cannot be read together with others is read alone.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Generic, TypeVar

from harness.store.layout import Store
from harness.store.rows.checksums import file_version

_Value = TypeVar("_Value")
_MOST = 1024  # files; beyond these the oldest is dropped


class FileMemo(Generic[_Value]):
    """Values of files; opening one file takes milliseconds, a hundred at once not many more.

    `read` reads one file; `read_all` reads those of row sets, by their digests, in one query.
    """

    def __init__(
        self,
        read: Callable[[Path], _Value],
        read_all: Callable[[Mapping[str, Path]], Mapping[str, _Value]],
    ) -> None:
        self._read, self._read_all = read, read_all
        self._known: dict[tuple[Path, tuple[int, int, int]], _Value] = {}

    def get(self, path: Path) -> _Value:
        """Return the value of a file in its current state.

        Raises:
            OSError: the file is missing.
        """
        file = path, file_version(path)
        if file not in self._known:
            self._keep(file, self._read(path))
        return self._known[file]

    def prepare(self, store: Store, rows_digests: Iterable[str]) -> None:
        """Read those files of row sets that will be needed and are not known yet."""
        files = {}
        for rows_digest in set(rows_digests):
            with suppress(OSError):
                path = store.parquet(rows_digest)
                files[rows_digest] = path, file_version(path)
        unread = {rows_digest: file for rows_digest, file in files.items() if file not in self._known}
        if unread:
            values = self._read_all({rows_digest: path for rows_digest, (path, _) in unread.items()})
            for rows_digest, value in values.items():
                self._keep(unread[rows_digest], value)

    def _keep(self, file: tuple[Path, tuple[int, int, int]], value: _Value) -> None:
        if len(self._known) >= _MOST:
            del self._known[next(iter(self._known))]
        self._known[file] = value
