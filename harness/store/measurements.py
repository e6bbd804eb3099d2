"""Small records stored with the rows: origins, control arm, noise, ratings, labels, grades, feedback.

Invariant: a record is written once, atomically, before the index is updated. The newest measurement of a
precision counts, the latest rating of one rater, pair and item, and the latest label of one rater and answer.
Feedback is one Parquet file for each file that was added, with masked texts, in a folder that only its owner
can read.
"""

import json
import re
import secrets
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

from harness.cache import make_private_folder
from harness.errors import HarnessError, UserError, as_argument
from harness.records import (
    Anchor,
    AnchorCheck,
    Control,
    ControlBlock,
    FeedbackRow,
    Grade,
    LabelSet,
    Noise,
    Origin,
    Rating,
    RowsIdentity,
    SampleResult,
    digest,
    load,
    load_files,
    parse_json,
)
from harness.store import index, layout
from harness.store.layout import Store, write_whole
from harness.store.parquet_files import FEEDBACK_COLUMNS, file_version, whole_feedback_files, write_checked

_Record = TypeVar("_Record")


def keep_origin(store: Store, rows_digest: str, index: int, origin: Origin) -> None:
    """Record the origin of a block, before or after it is written."""
    fields_by_block = {block: list(fields) for block, fields in origins(store, rows_digest).items()}
    fields_by_block[index] = list(origin)
    content = {f"{block:05d}": fields for block, fields in sorted(fields_by_block.items())}
    write_whole(store, store.rows(rows_digest) / "origins.json", json.dumps(content) + "\n")


def origins(store: Store, rows_digest: str) -> dict[int, Origin]:
    """Map the blocks of a row set to their origins; blocks without a note are absent."""
    with suppress(OSError, ValueError):
        return load(dict[int, Origin], (store.rows(rows_digest) / "origins.json").read_bytes())
    return {}


def keep_environment(store: Store, environment: Mapping[str, str]) -> str:
    """Store the content of an environment; return its digest."""
    key = digest(dict(environment))
    path = store.place("environments", f"{key}.json")
    if not path.exists():
        layout.write_record(store, path, dict(environment))
    return key


def read_environment(store: Store, key: str) -> dict[str, str]:
    """Read the content of an environment; empty if it is not stored."""
    with suppress(OSError, ValueError):
        return load(dict[str, str], store.place("environments", f"{key}.json").read_bytes())
    return {}


def save_control(
    store: Store, control: Control, rows: Iterable[tuple[ControlBlock, Sequence[SampleResult]]]
) -> None:
    """Write a control measurement with its rows."""
    file = control_file(store, control.id)
    for block, block_rows in rows:
        layout.write_records(store, file.with_name(f"{block.rows}.{block.index:05d}.jsonl"), block_rows)
    layout.write_record(store, file, control)


def control_file(store: Store, control_id: str) -> Path:
    """Return the last file that is written for a control measurement."""
    return store.place("control", control_id, "control.json")


def controls(store: Store) -> list[Control]:
    """List the control measurements, oldest first; unreadable ones are left out."""
    control_list = load_files(Control, (store.folder / "control").glob("*/control.json"))
    return sorted(control_list, key=lambda control: (control.created, control.id))


def read_measured(path: Path) -> list[SampleResult] | None:
    """Read the rows of a repeated measurement; None if they are missing or damaged."""
    with suppress(OSError, ValueError):
        return [load(SampleResult, line) for line in layout.read_lines(path) if line]
    return None


_LEAST = 0.5  # flips: none among n items shows a small rate, not a rate of 0


def save_noise(store: Store, noise: Noise) -> None:
    """Write a noise measurement."""
    layout.write_record(store, store.place("noise", f"{noise.id}.json"), noise)


def noises(store: Store) -> list[Noise]:
    """List the noise measurements, oldest first; unreadable ones are left out."""
    return load_files(Noise, sorted((store.folder / "noise").glob("*.json")))


def noise_rates(store: Store) -> dict[tuple[str, str], tuple[float, float]]:
    """Map precisions with devices to the flips (half a flip for none) and items last measured there."""
    measured = [noise for noise in noises(store) if noise.n]
    return {(m.precision, m.device): (max(float(m.flips), _LEAST), float(m.n)) for m in measured}


def flip_rates(store: Store, base_digest: str, rows: RowsIdentity) -> dict[str, float]:
    """Map each task to the share of its items that flipped in a base's newest noise on the device of `rows`.

    Precision and layout are those of `rows`, too: two cards can have the same layout.
    """
    key = (base_digest, rows.precision, rows.layout_digest)
    alike = [m for m in noises(store) if (m.base_digest, m.precision, m.layout_digest) == key]
    environments = {origin.environment for origin in origins(store, rows.digest).values()} if alike else ()
    devices = {read_environment(store, name).get("device", "") for name in environments}
    matching = [m for m in alike if m.device in devices]
    return {task.task: task.rate for noise in matching for task in noise.tasks}


_SAVING = threading.Lock()  # queues the raters of one dashboard before the lock between processes


def save_ratings(store: Store, ratings: Sequence[Rating]) -> None:
    """Write ratings, all of them or none, and update an existing index once."""
    paths = [store.place("ratings", f"{rating.rating_id}.json") for rating in ratings]
    with _SAVING:
        try:
            for path, rating in zip(paths, ratings, strict=True):
                layout.write_record(store, path, rating)
        except HarnessError:
            for path in paths:
                path.unlink(missing_ok=True)
            raise
        if store.index.exists():
            index.update(store)


def list_ratings(store: Store, task: str | None = None) -> list[Rating]:
    """List the ratings, oldest first, optionally of one task. Does not wait for writers."""
    ratings = load_files(Rating, (store.folder / "ratings").glob("*.json"))
    task_ratings = (rating for rating in ratings if task in (None, rating.task))
    return sorted(task_ratings, key=lambda rating: (rating.created, rating.rating_id))


def save_labels(store: Store, labels: LabelSet) -> None:
    """Write a set of labels, all of them or none."""
    layout.write_record(store, store.place("labels", f"{labels.id}.json"), labels)


def list_labels(store: Store, task: str | None = None) -> list[LabelSet]:
    """List the sets of labels, oldest first, optionally of one task."""
    label_sets = load_files(LabelSet, (store.folder / "labels").glob("*.json"))
    task_labels = (labels for labels in label_sets if task in (None, labels.task))
    return sorted(task_labels, key=lambda labels: (labels.created, labels.id))


def read_grades(store: Store, book: str, attempts: int = 1) -> Mapping[str, Grade]:
    """Map the keys of graded answers to the grades of a book; empty without a book.

    For each answer this is the first readable one of its first `attempts` grades, else the last of them;
    answers with fewer attempts are left out.
    """
    grades_by_key: dict[str, list[Grade]] = {}
    for grade in list_grades(store, book):
        grades_by_key.setdefault(grade.key, []).append(grade)
    grade_by_key = {}
    for key, grades in grades_by_key.items():
        readable = next((grade for grade in grades[:attempts] if grade.value is not None), None)
        if readable or len(grades) >= attempts:
            grade_by_key[key] = readable or grades[attempts - 1]
    return grade_by_key


def list_grades(store: Store, book: str) -> Sequence[Grade]:
    """List every grade of a book, in order of arrival."""
    path = _grades_file(store, book)
    with suppress(OSError):
        return _grades_in(path, *file_version(path))
    return ()


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
        layout.write_record(store, path.with_name("identity.json"), dict(identity))
    layout.append_records(store, path, grades)


_RECHECKS: dict[Any, str] = {Anchor: "anchors.jsonl", Grade: "asked_again.jsonl", AnchorCheck: "checks.jsonl"}


def read_rechecks(store: Store, book: str, kind: type[_Record]) -> list[_Record]:
    """Read the anchors of a book, each repeated grade of them, or the finished checks, oldest first."""
    return list(layout.read_records(kind, _grades_file(store, book).with_name(_RECHECKS[kind])))


def keep_anchors(store: Store, book: str, anchors: Sequence[Anchor]) -> None:
    """Keep the anchors of a book, all of them or none."""
    layout.write_records(store, _grades_file(store, book).with_name(_RECHECKS[Anchor]), anchors)


def keep_recheck(store: Store, book: str, record: Grade | AnchorCheck) -> None:
    """Append a repeated grade of an anchor, or a finished check of a judge."""
    layout.append_records(store, _grades_file(store, book).with_name(_RECHECKS[type(record)]), [record])


def find_grades(
    store: Store, task: str, example_id: str, output_digest: str
) -> Iterator[tuple[dict[str, Any], Grade]]:
    """Yield the grades of one answer to one item in all books, each with its book's identity."""
    answer_key = (task, example_id, output_digest)
    for book, identity in read_identities(store).items():
        for grade in list_grades(store, book):
            if (grade.task, grade.example_id, grade.output_digest) == answer_key:
                yield identity, grade


@lru_cache(maxsize=32)
def _grades_in(path: Path, *_version: int) -> Sequence[Grade]:
    return tuple(layout.read_records(Grade, path))


def _grades_file(store: Store, book: str) -> Path:
    return store.place("grades", book, "grades.jsonl")


_FEEDBACK = "feedback"
_FEEDBACK_BATCH = 10_000
_FEEDBACK_TEXTS = ("messages", "answer", "correction", "preference", "source")


def feedback_key(store: Store) -> str:
    """Return the key for digesting rows and senders of feedback; the first call creates it."""
    folder = store.folder / _FEEDBACK
    make_private_folder(store.folder)
    make_private_folder(folder)
    path = folder / "key"
    with suppress(FileNotFoundError):
        if re.fullmatch(r"[0-9a-f]{32}", key := path.read_text("utf-8", "replace").strip()):
            return key
    if any(folder.glob("*/rows.parquet")):
        step = f"restore it, or remove all feedback and add it again: rm -r {as_argument(str(folder))}"
        raise UserError(str(path), "no whole key, but rows digested with it", "the key", step)
    write_whole(store, path, secrets.token_hex(16) + "\n")
    return path.read_text("utf-8").strip()


def save_feedback(store: Store, file_id: str, rows: Iterable[FeedbackRow]) -> int:
    """Write the rows of one added file, all or none, and return their number; without rows no file."""
    import pyarrow
    import pyarrow.parquet

    n_earlier = len(list((store.folder / _FEEDBACK).glob(f"{file_id}-*")))
    path = store.place(_FEEDBACK, f"{file_id}-{n_earlier}") / "rows.parquet"
    kinds = {"VARCHAR": pyarrow.string(), "BOOLEAN": pyarrow.bool_()}
    schema = pyarrow.schema([(name, kinds[kind]) for name, kind in FEEDBACK_COLUMNS.items()])
    rows = iter(rows)
    batches = iter(lambda: list(islice(rows, _FEEDBACK_BATCH)), [])
    first, n_rows = next(batches, []), 0
    if not first:
        return 0
    with (
        write_checked(store, path) as temp_path,
        pyarrow.parquet.ParquetWriter(temp_path, schema, compression="zstd") as writer,
    ):
        for batch in chain([first], batches):
            writer.write_table(pyarrow.Table.from_pylist(list(map(asdict, batch)), schema))
            n_rows += len(batch)
    if store.index.exists():
        index.update(store)
    return n_rows


def read_feedback(
    store: Store, *, texts: bool = True, added_since: datetime | None = None
) -> list[FeedbackRow]:
    """Read the rows of feedback, or those added since a time, by time; without `texts` these are empty."""
    import pyarrow.parquet

    columns = None if texts else [name for name in FEEDBACK_COLUMNS if name not in _FEEDBACK_TEXTS]
    rows: list[FeedbackRow] = []
    for path in whole_feedback_files(store):
        if added_since and path.stat().st_mtime < added_since.timestamp():
            continue
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=columns):
                rows += (FeedbackRow(**{"messages": "[]", "answer": "", **row}) for row in batch.to_pylist())
    return sorted(rows, key=lambda row: (row.time, row.row_id))
