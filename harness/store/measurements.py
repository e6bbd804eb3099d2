"""Where blocks of rows come from, and the measurements of the control arm, beside the rows that they are of.

Invariant: nothing here changes or replaces a stored row.

    runs/rows/<digest>/origins.json            each block's environment and control arm
    runs/control/<id>/control.json             one measurement of the control arm
    runs/control/<id>/<digest>.00000.jsonl     the rows of a block that it asked again
    runs/environments/<digest>.json            what an environment's digest stands for
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.records import Control, ControlBlock, Origin, SampleResult, canonical_json, digest
from harness.store.layout import Store, write_whole


def keep_origin(store: Store, rows_digest: str, index: int, origin: Origin) -> None:
    """Note where a block comes from, before or after it is written.

    Raises:
        HarnessError: the disk is full.
    """
    known = {at: list(one) for at, one in origins(store, rows_digest).items()}
    known[index] = list(origin)
    content = {f"{at:05d}": one for at, one in sorted(known.items())}
    write_whole(store, _origins_file(store, rows_digest), json.dumps(content) + "\n")


def origins(store: Store, rows_digest: str) -> dict[int, Origin]:
    """Map the blocks of a row set to where they come from; blocks of which nothing was noted are absent."""
    with suppress(OSError, ValueError, TypeError):
        content = json.loads(_origins_file(store, rows_digest).read_text("utf-8"))
        return {int(at): Origin(*one) for at, one in content.items()}
    return {}


def keep_environment(store: Store, environment: Mapping[str, str]) -> str:
    """Keep what an environment consists of; returns its digest."""
    key = digest(dict(environment))
    path = _environment_file(store, key)
    if not path.exists():
        write_whole(store, path, json.dumps(environment, indent=2) + "\n")
    return key


def read_environment(store: Store, key: str) -> dict[str, str]:
    """Read what an environment consists of; empty where it was not kept."""
    with suppress(OSError, ValueError):
        found: dict[str, str] = json.loads(_environment_file(store, key).read_text("utf-8"))
        return found
    return {}


def save_control(
    store: Store, control: Control, rows: Iterable[tuple[ControlBlock, Sequence[SampleResult]]]
) -> None:
    """Write a measurement with the rows that it is made of.

    Raises:
        HarnessError: the disk is full.
    """
    folder = store.folder / "control" / control.id
    for block, anew in rows:
        write_measured(store, folder / f"{block.rows}.{block.index:05d}.jsonl", anew)
    write_whole(store, folder / "control.json", json.dumps(asdict(control), indent=2) + "\n")


def controls(store: Store) -> list[Control]:
    """List the measurements, oldest first; one whose file cannot be read is left out."""
    found = []
    for path in sorted((store.folder / "control").glob("*/control.json")):
        with suppress(OSError, ValueError, TypeError):
            found.append(_parse(path))
    return sorted(found, key=lambda one: (one.created, one.id))


def write_measured(store: Store, path: Path, rows: Sequence[SampleResult]) -> None:
    """Write rows that stand beside the stored ones, as JSON Lines.

    Raises:
        HarnessError: the disk is full.
    """
    write_whole(store, path, "".join(canonical_json(asdict(row)) + "\n" for row in rows))


def read_measured(path: Path) -> list[SampleResult] | None:
    """Read rows that stand beside the stored ones; None where they are not there, or damaged."""
    with suppress(OSError, ValueError, TypeError):
        lines = path.read_bytes().decode().removesuffix("\n").split("\n")  # answers may hold other line ends
        return [_row(json.loads(line)) for line in lines if line]
    return None


def _row(raw: dict[str, Any]) -> SampleResult:
    parts = {name: None if values is None else tuple(values) for name, values in raw["parts"].items()}
    raw = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
    return SampleResult(**{**raw, "parts": parts})


def _parse(path: Path) -> Control:
    content = json.loads(path.read_text("utf-8"))
    named = ("reworded", "differing", "flipped")
    blocks = [{**b, **{name: tuple(b[name]) for name in named}} for b in content.pop("blocks")]
    return Control(**content, blocks=tuple(ControlBlock(**b) for b in blocks))


def _origins_file(store: Store, rows_digest: str) -> Path:
    return store.rows(rows_digest) / "origins.json"


def _environment_file(store: Store, key: str) -> Path:
    return store.folder / "environments" / f"{key}.json"
