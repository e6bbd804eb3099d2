"""Verdicts of the gate and inputs of decisions, each a file that the index reads.

Invariant: a verdict's file is named by what it rests on, so the same verdict said again writes nothing;
of an experiment the last decision is kept.

    runs/verdicts/<run_id>/<digest>.json    one verdict on one run
    runs/decisions/<experiment>.json        the last decision of an experiment
"""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness.records import digest, load_files, read_object
from harness.store.layout import Store, write_record


@dataclass(frozen=True, slots=True)
class RuleRecord:
    """Outcome of one rule of the gate, in words and numbers."""

    name: str
    outcome: str
    sentence: str
    numbers: dict[str, Any]


@dataclass(frozen=True, slots=True)
class VerdictRecord:
    """A verdict with its numbers, and what it rests on: row sets, baseline, policy, version of harness.

    `macro` is the change of the admitted capability tasks as score, low, high and n; `policy` holds the
    gate's settings as written, with those of `decide` that choose what a gain is measured over, and
    `policy_digest` is theirs. `tasks` maps each task that was judged to its settings (chance, margin, metric,
    direction, bounds, kind, role), and is empty in earlier records.
    """

    run_id: str
    experiment: str
    candidate: str
    seed: int
    baseline: str
    baseline_digest: str
    outcome: str
    sentence: str
    macro: dict[str, Any] | None
    lost: int
    gained: int
    items_needed: int | None
    rules: list[RuleRecord]
    policy: dict[str, Any]
    policy_digest: str
    rows: dict[str, str]
    harness: str
    created: str
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DecisionRecord:
    """Inputs of a decision: what it knew of each run of an experiment, and what it recommends.

    `higher_is_better` and `scale` are those of `metric`, None in records of before 0.1.
    """

    experiment: str
    metric: str
    action: str
    sentence: str
    facts: list[dict[str, Any]]
    harness: str
    created: str
    higher_is_better: bool | None = None
    scale: float | None = None


def save_verdict(store: Store, verdict: VerdictRecord) -> None:
    """Write a verdict, unless it is the newest of its run; none where the folder may not be written."""
    said = {name: value for name, value in asdict(verdict).items() if name != "created"}
    path = store.place("verdicts", verdict.run_id, f"{digest(said)}.json")
    if not _is_newest(path):
        with suppress(PermissionError):
            write_record(store, path, verdict)


def newest_verdict(store: Store, run_id: str, baseline_digest: str) -> VerdictRecord | None:
    """Return the newest stored verdict on a run against a baseline; None where there is none to be read."""
    paths = sorted(store.place("verdicts", run_id).glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    own = [one for one in load_files(VerdictRecord, paths) if one.baseline_digest == baseline_digest]
    return max(reversed(own), key=lambda one: one.created, default=None)


def _is_newest(path: Path) -> bool:
    """Tell whether a verdict is stored and no other of its run is newer, such as one under a trial policy."""
    created = {file: str(read_object(file).get("created", "")) for file in path.parent.glob("*.json")}
    return bool(created.get(path)) and created[path] == max(created.values())


def save_decision(store: Store, decision: DecisionRecord) -> None:
    """Write an experiment's decision in place of another; none where the folder may not be written."""
    path = store.place("decisions", f"{decision.experiment}.json")
    # Compared as JSON: what stands in a file has lists where a record has tuples.
    new = json.loads(json.dumps(asdict(decision))) | {"created": ""}
    if read_object(path) | {"created": ""} != new:
        with suppress(PermissionError):
            write_record(store, path, decision)
