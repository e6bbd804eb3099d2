"""Small records beside the rows: origins, environments, the control arm, noise, ratings and labels.

Invariant: nothing here changes or replaces a stored row; a record is written once, whole, before the index
hears of it. The newest measurement of a precision counts, and of one rater, pair and item the latest rating,
of one rater and answer the latest label.

    runs/rows/<digest>/origins.json            each block's environment and control arm
    runs/control/<id>/control.json             one measurement of the control arm
    runs/control/<id>/<digest>.00000.jsonl     the rows of a block that it evaluated again
    runs/environments/<digest>.json            what an environment's digest stands for
    runs/noise/<id>.json                       one measurement of A/A noise
    runs/ratings/<rating id>.json              one rating
    runs/labels/<id>.json                      labels of answers that came together
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
    """Note where a block comes from, before or after it is written."""
    known = {at: list(one) for at, one in origins(store, rows_digest).items()}
    known[index] = list(origin)
    content = {f"{at:05d}": one for at, one in sorted(known.items())}
    write_whole(store, _origins_file(store, rows_digest), json.dumps(content) + "\n")


def origins(store: Store, rows_digest: str) -> dict[int, Origin]:
    """Map the blocks of a row set to where they come from; blocks of which nothing was noted are absent."""
    with suppress(OSError, ValueError):
        return load(dict[int, Origin], _origins_file(store, rows_digest).read_bytes())
    return {}


def keep_environment(store: Store, environment: Mapping[str, str]) -> str:
    """Keep what an environment consists of; returns its digest."""
    key = digest(dict(environment))
    path = _environment_file(store, key)
    if not path.exists():
        write_record(store, path, dict(environment))
    return key


def read_environment(store: Store, key: str) -> dict[str, str]:
    """Read what an environment consists of; empty where it was not kept."""
    with suppress(OSError, ValueError):
        return load(dict[str, str], _environment_file(store, key).read_bytes())
    return {}


def save_control(
    store: Store, control: Control, rows: Iterable[tuple[ControlBlock, Sequence[SampleResult]]]
) -> None:
    """Write a measurement with the rows that it is made of."""
    file = control_file(store, control.id)
    for block, block_rows in rows:
        write_records(store, file.with_name(f"{block.rows}.{block.index:05d}.jsonl"), block_rows)
    write_record(store, file, control)


def control_file(store: Store, control_id: str) -> Path:
    """Return the file that is written last of a measurement of a control arm."""
    return store.place("control", control_id, "control.json")


def controls(store: Store) -> list[Control]:
    """List the measurements, oldest first; one whose file cannot be read is left out."""
    found = load_files(Control, (store.folder / "control").glob("*/control.json"))
    return sorted(found, key=lambda one: (one.created, one.id))


def read_measured(path: Path) -> list[SampleResult] | None:
    """Read rows that stand beside the stored ones; None where they are not there, or damaged."""
    with suppress(OSError, ValueError):
        return [load(SampleResult, line) for line in read_lines(path) if line]
    return None


def _origins_file(store: Store, rows_digest: str) -> Path:
    return store.rows(rows_digest) / "origins.json"


def _environment_file(store: Store, key: str) -> Path:
    return store.place("environments", f"{key}.json")


_LEAST = 0.5  # flips: none among n items shows a small rate, and not a rate of 0


def save_noise(store: Store, noise: Noise) -> None:
    """Write a measurement."""
    write_record(store, store.place("noise", f"{noise.id}.json"), noise)


def noises(store: Store) -> list[Noise]:
    """List the measurements, oldest first; files that cannot be read are left out."""
    return load_files(Noise, sorted((store.folder / "noise").glob("*.json")))


def noise_rates(store: Store) -> dict[str, tuple[float, float]]:
    """Map each precision to the flips, and the items they are of, of its newest measurement.

    No flip at all counts as half a one.
    """
    return {one.precision: (max(float(one.flips), _LEAST), float(one.n)) for one in noises(store) if one.n}


def flip_rates(store: Store, base_digest: str, precision: str) -> dict[str, float]:
    """Map each task to the share of its items that flipped, as last measured of a base in a precision."""
    same = [one for one in noises(store) if (one.base_digest, one.precision) == (base_digest, precision)]
    return {task.task: task.rate for one in same for task in one.tasks}


_SAVING = threading.Lock()  # the raters of one dashboard queue here, before the lock of all processes


def save_rating(store: Store, rating: Rating) -> None:
    """Write a rating and let the index hear of it, unless somebody holds that open.

    Where there is no index none is made: whoever asks for it next builds it of all that is stored.

    Raises:
        UserError: its id cannot name a file.
        HarnessError: the disk is full.
    """
    with _SAVING:
        write_record(store, store.place("ratings", f"{rating.rating_id}.json"), rating)
        if store.index.exists():
            index.update(store)


def save_ratings(store: Store, ratings: Sequence[Rating]) -> None:
    """Write ratings that came together, all of them or none, and let the index hear of them once."""
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
    """List the ratings, oldest first; those of one task where it is given. Waits for nobody who writes."""
    found = load_files(Rating, (store.folder / "ratings").glob("*.json"))
    of_task = (rating for rating in found if task in (None, rating.task))
    return sorted(of_task, key=lambda rating: (rating.created, rating.rating_id))


def save_labels(store: Store, labels: LabelSet) -> None:
    """Write labels that came together: all of them, or none."""
    write_record(store, store.place("labels", f"{labels.id}.json"), labels)


def list_labels(store: Store, task: str | None = None) -> list[LabelSet]:
    """List sets of labels, oldest first; those of one task where it is given."""
    found = load_files(LabelSet, (store.folder / "labels").glob("*.json"))
    of_task = (labels for labels in found if task in (None, labels.task))
    return sorted(of_task, key=lambda labels: (labels.created, labels.id))
