"""Grade books: the grades that one judge gave by one rubric, each on the disk before it is used.

Invariant: a grade is appended and never written over. A line that a kill cut short is no grade, and the
next one begins a line of its own; of two grades of one answer the first counts.

    runs/grades/<book>/identity.json     judge, rubric and versions of our code
    runs/grades/<book>/grades.jsonl      a grade a line, in the order in which they came
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.records import Grade, canonical_json, load, parse_json
from harness.store.layout import AGAIN, Store, clear_errors, write_record


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
    lines = "".join(canonical_json(asdict(grade)) + "\n" for grade in grades).encode()
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
    for line in path.read_bytes().split(b"\n"):
        with suppress(ValueError):
            grade = load(Grade, line)
            grades.setdefault(grade.key, grade)
    return grades


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


def _grades_file(store: Store, book: str) -> Path:
    return store.folder / "grades" / book / "grades.jsonl"
