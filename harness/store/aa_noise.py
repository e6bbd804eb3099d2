"""Measurements of A/A noise: how often one model answers otherwise when only the layout differs.

Invariant: a measurement is written once and never changed; the newest of a precision counts.

    runs/noise/<id>.json      one measurement
"""

import json
from contextlib import suppress
from dataclasses import asdict

from harness.records import Noise, TaskNoise
from harness.store.layout import Store, write_whole

_LEAST = 0.5  # flips: none among n items shows a small rate, and not a rate of 0


def save_noise(store: Store, noise: Noise) -> None:
    """Write a measurement.

    Raises:
        HarnessError: the disk is full.
    """
    text = json.dumps(asdict(noise), indent=2, allow_nan=False) + "\n"
    write_whole(store, store.folder / "noise" / f"{noise.id}.json", text)


def noises(store: Store) -> list[Noise]:
    """List the measurements, oldest first; files that cannot be read are left out."""
    found = []
    for path in sorted((store.folder / "noise").glob("*.json")):
        with suppress(OSError, ValueError, TypeError, KeyError):
            raw = json.loads(path.read_text("utf-8"))
            found.append(Noise(**{**raw, "tasks": tuple(TaskNoise(**task) for task in raw["tasks"])}))
    return found


def noise_rates(store: Store) -> dict[str, tuple[float, float]]:
    """Map each precision to the flips, and the items they are of, of its newest measurement.

    No flip at all counts as half a one.
    """
    return {one.precision: (max(float(one.flips), _LEAST), float(one.n)) for one in noises(store) if one.n}


def flip_rates(store: Store, base_digest: str, precision: str) -> dict[str, float]:
    """Map each task to the share of its items that flipped, as last measured of a base in a precision."""
    same = [one for one in noises(store) if (one.base_digest, one.precision) == (base_digest, precision)]
    return {task.task: task.rate for one in same for task in one.tasks}
