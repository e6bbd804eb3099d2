"""Grade books: the grades that one judge gave by one rubric, each on the disk before it is used.

Invariant: a grade is appended and never written over. A line that a kill cut short is no grade, and the
next one begins a line of its own; of several grades of one answer the first counts that can be read, of as
many as who reads them allows.

    runs/grades/<book>/identity.json     judge, rubric and versions of our code
    runs/grades/<book>/grades.jsonl      a grade a line, in the order in which they came
    runs/grades/<book>/anchors.jsonl     answers that a judge behind an address is asked about again
    runs/grades/<book>/asked_again.jsonl each grade of an anchor that was asked about again, as it came
    runs/grades/<book>/checks.jsonl      the judge's grades of them at each check that was finished
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.records import Anchor, AnchorCheck, Grade, parse_json
from harness.store.layout import Store, append_records, read_records, write_record, write_records


def read_grades(store: Store, book: str, attempts: int = 1) -> Mapping[str, Grade]:
    """Map the keys of what was graded to the grades of a book; empty where there is none.

    Of each answer that is the first of so many `attempts` that can be read; without one the last, and what
    was asked about less often is left out.
    """
    path = _grades_file(store, book)
    return _count_grades(path, attempts, *_state(path))


def list_grades(store: Store, book: str) -> Sequence[Grade]:
    """List every grade of a book, in the order in which they came."""
    path = _grades_file(store, book)
    return _grades_in(path, *_state(path))


def read_identities(store: Store) -> dict[str, dict[str, Any]]:
    """Map the books of a store to what their grades depend on."""
    found = {}
    for file in sorted((store.folder / "grades").glob("*/identity.json")):
        with suppress(OSError, ValueError):
            found[file.parent.name] = parse_json(file.read_bytes())
    return found


def keep_grades(store: Store, book: str, identity: Mapping[str, Any], grades: Sequence[Grade]) -> None:
    """Append grades to a book, which is begun where it is not there."""
    path = _grades_file(store, book)
    if not path.exists():
        write_record(store, path.with_name("identity.json"), dict(identity))
    append_records(store, path, grades)


def read_anchors(store: Store, book: str) -> list[Anchor]:
    """Read the answers that a judge is asked about again before it grades others."""
    return list(read_records(Anchor, _grades_file(store, book).with_name("anchors.jsonl")))


def keep_anchors(store: Store, book: str, anchors: Sequence[Anchor]) -> None:
    """Keep the anchors of a book, all of them or none."""
    write_records(store, _grades_file(store, book).with_name("anchors.jsonl"), anchors)


def read_checks(store: Store, book: str) -> list[AnchorCheck]:
    """Read the checks of a judge by its anchors, the oldest first."""
    return list(read_records(AnchorCheck, _grades_file(store, book).with_name("checks.jsonl")))


def keep_check(store: Store, book: str, check: AnchorCheck) -> None:
    """Append a check of a judge."""
    append_records(store, _grades_file(store, book).with_name("checks.jsonl"), [check])


def read_asked_again(store: Store, book: str) -> list[Grade]:
    """List every grade that a judge gave to anchors which it was asked about again.

    Those of a check that something ended are among them. A book that was begun before they had a file of
    their own has those of its finished checks.
    """
    path = _grades_file(store, book).with_name("asked_again.jsonl")
    if path.exists():
        return list(read_records(Grade, path))
    return [grade for check in read_checks(store, book) for grade in check.grades]


def keep_asked_again(store: Store, book: str, grade: Grade) -> None:
    """Append the grade of an anchor that a judge was asked about again."""
    path = _grades_file(store, book).with_name("asked_again.jsonl")
    if not path.exists():
        write_records(store, path, read_asked_again(store, book))
    append_records(store, path, [grade])


def find_grades(
    store: Store, task: str, example_id: str, output_digest: str
) -> Iterator[tuple[dict[str, Any], Grade]]:
    """Yield the grades of one answer to one item in all books, each with the identity of its book."""
    wanted = (task, example_id, output_digest)
    for file in sorted((store.folder / "grades").glob("*/identity.json")):
        for grade in list_grades(store, file.parent.name):
            if (grade.task, grade.example_id, grade.output_digest) == wanted:
                with suppress(OSError, ValueError):
                    yield parse_json(file.read_bytes()), grade


def _state(path: Path) -> tuple[int, ...]:
    """Return what tells a file from what it was before; nothing of one that is not there."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size


@lru_cache(maxsize=32)
def _grades_in(path: Path, *_version: int) -> Sequence[Grade]:
    return tuple(read_records(Grade, path))


@lru_cache(maxsize=32)
def _count_grades(path: Path, attempts: int, *_version: int) -> Mapping[str, Grade]:
    given: dict[str, list[Grade]] = {}
    for grade in _grades_in(path, *_version):
        given.setdefault(grade.key, []).append(grade)
    counted = {key: _choose_grade(grades[:attempts]) for key, grades in given.items()}
    return {
        key: grade for key, grade in counted.items() if grade.value is not None or len(given[key]) >= attempts
    }


def _choose_grade(grades: Sequence[Grade]) -> Grade:
    """Return the first grade that can be read, else the last."""
    return next((grade for grade in grades if grade.value is not None), grades[-1])


def _grades_file(store: Store, book: str) -> Path:
    return store.place("grades", book, "grades.jsonl")
