"""Grade books: the grades that one judge gave by one rubric, each on the disk before it is used.

Invariant: a grade is appended and never written over. A line that a kill cut short is no grade, and the
next one begins a line of its own; of two grades of one answer the first counts.

    runs/grades/<book>/identity.json     judge, rubric and versions of our code
    runs/grades/<book>/grades.jsonl      a grade a line, in the order in which they came
    runs/grades/<book>/anchors.jsonl     answers that a judge behind an address is asked about again
    runs/grades/<book>/checks.jsonl      the judge's grades of them at each check
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from harness.records import Anchor, AnchorCheck, Grade, canonical_json, load, parse_json
from harness.store.layout import AGAIN, Store, clear_errors, write_record, write_whole

_Record = TypeVar("_Record")


def read_grades(store: Store, book: str) -> Mapping[str, Grade]:
    """Map the keys of what was graded to the grades of a book; empty where there is none."""
    path = _grades_file(store, book)
    try:
        found = path.stat()
    except OSError:
        return {}
    return _grades_in(path, found.st_mtime_ns, found.st_size)


def read_identities(store: Store) -> dict[str, dict[str, Any]]:
    """Map the books of a store to what their grades depend on."""
    found = {}
    for file in sorted((store.folder / "grades").glob("*/identity.json")):
        with suppress(OSError, ValueError):
            found[file.parent.name] = parse_json(file.read_bytes())
    return found


def keep_grades(store: Store, book: str, identity: Mapping[str, Any], grades: Sequence[Grade]) -> None:
    """Append grades to a book, which is begun where it is not there.

    Raises:
        HarnessError: the disk is full; what was there stays.
    """
    path = _grades_file(store, book)
    if not path.exists():
        write_record(store, path.with_name("identity.json"), dict(identity))
    _append(store, path, grades)


def read_anchors(store: Store, book: str) -> list[Anchor]:
    """Read the answers that a judge is asked about again before it grades others."""
    return list(_read_lines(Anchor, _grades_file(store, book).with_name("anchors.jsonl")))


def keep_anchors(store: Store, book: str, anchors: Sequence[Anchor]) -> None:
    """Keep the anchors of a book, all of them or none.

    Raises:
        HarnessError: the disk is full.
    """
    lines = "".join(canonical_json(asdict(anchor)) + "\n" for anchor in anchors)
    write_whole(store, _grades_file(store, book).with_name("anchors.jsonl"), lines)


def read_checks(store: Store, book: str) -> list[AnchorCheck]:
    """Read the checks of a judge by its anchors, the oldest first."""
    return list(_read_lines(AnchorCheck, _grades_file(store, book).with_name("checks.jsonl")))


def keep_check(store: Store, book: str, check: AnchorCheck) -> None:
    """Append a check of a judge.

    Raises:
        HarnessError: the disk is full; what was there stays.
    """
    _append(store, _grades_file(store, book).with_name("checks.jsonl"), [check])


def _append(store: Store, path: Path, records: Sequence[Grade | AnchorCheck]) -> None:
    lines = "".join(canonical_json(asdict(record)) + "\n" for record in records).encode()
    with clear_errors(store, str(path), AGAIN), path.open("ab+") as file:
        if file.tell() and not _ends_a_line(path):
            lines = b"\n" + lines
        file.write(lines)
        file.flush()
        os.fsync(file.fileno())


def find_grades(
    store: Store, task: str, example_id: str, output_digest: str
) -> Iterator[tuple[dict[str, Any], Grade]]:
    """Yield the grades of one answer to one item in all books, each with the identity of its book."""
    wanted = (task, example_id, output_digest)
    for file in sorted((store.folder / "grades").glob("*/identity.json")):
        for grade in read_grades(store, file.parent.name).values():
            if (grade.task, grade.example_id, grade.output_digest) == wanted:
                with suppress(OSError, ValueError):
                    yield parse_json(file.read_bytes()), grade


@lru_cache(maxsize=32)
def _grades_in(path: Path, *_version: int) -> Mapping[str, Grade]:
    grades: dict[str, Grade] = {}
    for grade in _read_lines(Grade, path):
        grades.setdefault(grade.key, grade)
    return grades


def _read_lines(record: type[_Record], path: Path) -> Iterator[_Record]:
    """Yield the records of a file, which may not be there; a line that was cut short is none."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        return
    for line in lines:
        with suppress(ValueError):
            yield load(record, line)


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


def _grades_file(store: Store, book: str) -> Path:
    return store.folder / "grades" / book / "grades.jsonl"
