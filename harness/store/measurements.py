"""Small records besides the rows: origins, environments, the control arm, noise, ratings and labels.

Invariant: nothing here changes a stored row; a record is written once, atomically, before the index is
updated. The newest measurement of a precision counts, the latest rating of one rater, pair and item, and the
latest label of one rater and answer.

    runs/rows/<digest>/origins.json            each block's environment and control arm
    runs/control/<id>/control.json             one measurement of the control arm
    runs/control/<id>/<digest>.00000.jsonl     the rows of a block that it evaluated again
    runs/environments/<digest>.json            the content of an environment
    runs/noise/<id>.json                       one measurement of A/A noise
    runs/ratings/<rating id>.json              one rating
    runs/labels/<id>.json                      labels of answers, given in one session
"""

import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from harness.errors import HarnessError
from harness.records import (
    Control,
    ControlBlock,
    LabelSet,
    Noise,
    Origin,
    Rating,
    SampleResult,
    digest,
    load,
    load_files,
)
from harness.store import index
from harness.store.layout import Store, read_lines, write_record, write_records, write_whole


def keep_origin(store: Store, rows_digest: str, index: int, origin: Origin) -> None:
    """Note the origin of a block, before or after it is written."""
    by_block = {block: list(known) for block, known in origins(store, rows_digest).items()}
    by_block[index] = list(origin)
    content = {f"{block:05d}": known for block, known in sorted(by_block.items())}
    write_whole(store, _origins_file(store, rows_digest), json.dumps(content) + "\n")


def origins(store: Store, rows_digest: str) -> dict[int, Origin]:
    """Map the blocks of a row set to their origins; blocks without a note are absent."""
    with suppress(OSError, ValueError):
        return load(dict[int, Origin], _origins_file(store, rows_digest).read_bytes())
    return {}


def keep_environment(store: Store, environment: Mapping[str, str]) -> str:
    """Store the content of an environment; return its digest."""
    key = digest(dict(environment))
    path = _environment_file(store, key)
    if not path.exists():
        write_record(store, path, dict(environment))
    return key


def read_environment(store: Store, key: str) -> dict[str, str]:
    """Read the content of an environment; empty if it is not stored."""
    with suppress(OSError, ValueError):
        return load(dict[str, str], _environment_file(store, key).read_bytes())
    return {}


def save_control(
    store: Store, control: Control, rows: Iterable[tuple[ControlBlock, Sequence[SampleResult]]]
) -> None:
    """Write a control measurement with its rows."""
    file = control_file(store, control.id)
    for block, block_rows in rows:
        write_records(store, file.with_name(f"{block.rows}.{block.index:05d}.jsonl"), block_rows)
    write_record(store, file, control)


def control_file(store: Store, control_id: str) -> Path:
    """Return the last file that is written for a control measurement."""
    return store.place("control", control_id, "control.json")


def controls(store: Store) -> list[Control]:
    """List the control measurements, oldest first; unreadable ones are left out."""
    measured = load_files(Control, (store.folder / "control").glob("*/control.json"))
    return sorted(measured, key=lambda control: (control.created, control.id))


def read_measured(path: Path) -> list[SampleResult] | None:
    """Read the rows of a repeated measurement; None if they are missing or damaged."""
    with suppress(OSError, ValueError):
        return [load(SampleResult, line) for line in read_lines(path) if line]
    return None


def _origins_file(store: Store, rows_digest: str) -> Path:
    return store.rows(rows_digest) / "origins.json"


def _environment_file(store: Store, key: str) -> Path:
    return store.place("environments", f"{key}.json")


_LEAST = 0.5  # flips: none among n items shows a small rate, not a rate of 0


def save_noise(store: Store, noise: Noise) -> None:
    """Write a noise measurement."""
    write_record(store, store.place("noise", f"{noise.id}.json"), noise)


def noises(store: Store) -> list[Noise]:
    """List the noise measurements, oldest first; unreadable ones are left out."""
    return load_files(Noise, sorted((store.folder / "noise").glob("*.json")))


def noise_rates(store: Store) -> dict[str, tuple[float, float]]:
    """Map each precision to the flips and the number of items of its newest measurement.

    No flip at all counts as half a flip.
    """
    return {m.precision: (max(float(m.flips), _LEAST), float(m.n)) for m in noises(store) if m.n}


def flip_rates(store: Store, base_digest: str, precision: str) -> dict[str, float]:
    """Map each task to the share of its items that flipped in a base's newest measurement in a precision."""
    key = (base_digest, precision)
    same = [noise for noise in noises(store) if (noise.base_digest, noise.precision) == key]
    return {task.task: task.rate for noise in same for task in noise.tasks}


_SAVING = threading.Lock()  # queues the raters of one dashboard before the lock of all processes


def save_rating(store: Store, rating: Rating) -> None:
    """Write a rating and update the index, unless another process holds it.

    A missing index is not created: the next reader builds it from all stored records.

    Raises:
        UserError: its id is not a valid file name.
        HarnessError: the disk is full.
    """
    with _SAVING:
        write_record(store, store.place("ratings", f"{rating.rating_id}.json"), rating)
        if store.index.exists():
            index.update(store)


def save_ratings(store: Store, ratings: Sequence[Rating]) -> None:
    """Write several ratings, all of them or none, and update the index once."""
    paths = [store.place("ratings", f"{rating.rating_id}.json") for rating in ratings]
    with _SAVING:
        try:
            for path, rating in zip(paths, ratings, strict=True):
                write_record(store, path, rating)
        except HarnessError:
            for path in paths:
                path.unlink(missing_ok=True)
            raise
        if store.index.exists():
            index.update(store)


def list_ratings(store: Store, task: str | None = None) -> list[Rating]:
    """List the ratings, oldest first, optionally of one task. Does not wait for writers."""
    ratings = load_files(Rating, (store.folder / "ratings").glob("*.json"))
    of_task = (rating for rating in ratings if task in (None, rating.task))
    return sorted(of_task, key=lambda rating: (rating.created, rating.rating_id))


def save_labels(store: Store, labels: LabelSet) -> None:
    """Write a set of labels, all of them or none."""
    write_record(store, store.place("labels", f"{labels.id}.json"), labels)


def list_labels(store: Store, task: str | None = None) -> list[LabelSet]:
    """List the sets of labels, oldest first, optionally of one task."""
    label_sets = load_files(LabelSet, (store.folder / "labels").glob("*.json"))
    of_task = (labels for labels in label_sets if task in (None, labels.task))
    return sorted(of_task, key=lambda labels: (labels.created, labels.id))
