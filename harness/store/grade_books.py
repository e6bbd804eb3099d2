"""Grade books: the grades that one judge gave by one rubric, each on the disk before it is used.

Invariant: a grade is appended and never overwritten. A line that a kill cut short is ignored, and the next
grade starts a new line. Of several grades of one answer, the first readable one counts, among as many
attempts as the caller allows.

    runs/grades/<book>/identity.json     judge, rubric and versions of our code
    runs/grades/<book>/grades.jsonl      one grade per line, in order of arrival
    runs/grades/<book>/anchors.jsonl     answers that a remote judge grades again
    runs/grades/<book>/asked_again.jsonl each repeated grade of an anchor, in order of arrival
    runs/grades/<book>/checks.jsonl      the judge's grades of the anchors at each finished check
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.records import Anchor, AnchorCheck, Grade, parse_json
from harness.store.layout import Store, append_records, read_records, write_record, write_records


def read_grades(store: Store, book: str, attempts: int = 1) -> Mapping[str, Grade]:
    """Map the keys of graded answers to the grades of a book; empty without a book.

    For each answer this is the first readable one of its first `attempts` grades, else the last of them.
    Answers with fewer attempts and no readable grade are left out.
    """
    path = _grades_file(store, book)
    return _count_grades(path, attempts, *_state(path))


def list_grades(store: Store, book: str) -> Sequence[Grade]:
    """List every grade of a book, in order of arrival."""
    path = _grades_file(store, book)
    return _grades_in(path, *_state(path))


def read_identities(store: Store) -> dict[str, dict[str, Any]]:
    """Map the books of a store to the identities that their grades depend on."""
    identity_by_book = {}
    for file in sorted((store.folder / "grades").glob("*/identity.json")):
        with suppress(OSError, ValueError):
            identity_by_book[file.parent.name] = parse_json(file.read_bytes())
    return identity_by_book


def keep_grades(store: Store, book: str, identity: Mapping[str, Any], grades: Sequence[Grade]) -> None:
    """Append grades to a book, creating it if necessary."""
    path = _grades_file(store, book)
    if not path.exists():
        write_record(store, path.with_name("identity.json"), dict(identity))
    append_records(store, path, grades)


def read_anchors(store: Store, book: str) -> list[Anchor]:
    """Read the answers that a judge grades again before it grades others."""
    return list(read_records(Anchor, _grades_file(store, book).with_name("anchors.jsonl")))


def keep_anchors(store: Store, book: str, anchors: Sequence[Anchor]) -> None:
    """Keep the anchors of a book, all of them or none."""
    write_records(store, _grades_file(store, book).with_name("anchors.jsonl"), anchors)


def read_checks(store: Store, book: str) -> list[AnchorCheck]:
    """Read the checks of a judge by its anchors, oldest first."""
    return list(read_records(AnchorCheck, _grades_file(store, book).with_name("checks.jsonl")))


def keep_check(store: Store, book: str, check: AnchorCheck) -> None:
    """Append a check of a judge."""
    append_records(store, _grades_file(store, book).with_name("checks.jsonl"), [check])


def read_asked_again(store: Store, book: str) -> list[Grade]:
    """List every repeated grade of a judge's anchors, those of interrupted checks included.

    A book that is older than this file has the grades of its finished checks.
    """
    path = _grades_file(store, book).with_name("asked_again.jsonl")
    if path.exists():
        return list(read_records(Grade, path))
    return [grade for check in read_checks(store, book) for grade in check.grades]


def keep_asked_again(store: Store, book: str, grade: Grade) -> None:
    """Append a repeated grade of an anchor."""
    path = _grades_file(store, book).with_name("asked_again.jsonl")
    if not path.exists():
        write_records(store, path, read_asked_again(store, book))
    append_records(store, path, [grade])


def find_grades(
    store: Store, task: str, example_id: str, output_digest: str
) -> Iterator[tuple[dict[str, Any], Grade]]:
    """Yield the grades of one answer to one item in all books, each with its book's identity."""
    wanted = (task, example_id, output_digest)
    for file in sorted((store.folder / "grades").glob("*/identity.json")):
        for grade in list_grades(store, file.parent.name):
            if (grade.task, grade.example_id, grade.output_digest) == wanted:
                with suppress(OSError, ValueError):
                    yield parse_json(file.read_bytes()), grade


def _state(path: Path) -> tuple[int, ...]:
    """Return modification time and size of a file, to detect changes; empty if it is missing."""
    try:
        file_stat = path.stat()
    except OSError:
        return ()
    return file_stat.st_mtime_ns, file_stat.st_size


@lru_cache(maxsize=32)
def _grades_in(path: Path, *_version: int) -> Sequence[Grade]:
    return tuple(read_records(Grade, path))


@lru_cache(maxsize=32)
def _count_grades(path: Path, attempts: int, *_version: int) -> Mapping[str, Grade]:
    grades_by_key: dict[str, list[Grade]] = {}
    for grade in _grades_in(path, *_version):
        grades_by_key.setdefault(grade.key, []).append(grade)
    chosen = {key: _choose_grade(grades[:attempts]) for key, grades in grades_by_key.items()}
    return {
        key: grade
        for key, grade in chosen.items()
        if grade.value is not None or len(grades_by_key[key]) >= attempts
    }


def _choose_grade(grades: Sequence[Grade]) -> Grade:
    """Return the first readable grade, else the last one."""
    return next((grade for grade in grades if grade.value is not None), grades[-1])


def _grades_file(store: Store, book: str) -> Path:
    return store.place("grades", book, "grades.jsonl")
