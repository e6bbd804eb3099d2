"""Verdicts of the gate and decisions, as a runs folder keeps them."""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, field
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
    """A verdict with its numbers and its inputs: row sets, baseline, policy, version of harness.

    `macro` is the change on the admitted capability tasks as score, low, high and n; `policy` holds the
    gate's settings as written, with those of `decide` that define a gain. `tasks` maps each judged task to
    its settings (chance, margin, metric, direction, bounds, kind, role).
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
    """Inputs of a decision: the facts about each run of an experiment, its metric, and the recommendation."""

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
    """Write a verdict unless it is the newest of its run already; skipped if the folder is read-only."""
    content = {name: value for name, value in asdict(verdict).items() if name != "created"}
    path = store.place("verdicts", verdict.run_id, f"{digest(content)}.json")
    created = {file: str(read_object(file).get("created", "")) for file in path.parent.glob("*.json")}
    if not created.get(path) or created[path] != max(created.values()):
        with suppress(PermissionError):
            write_record(store, path, verdict)


def newest_verdict(store: Store, run_id: str, baseline_digest: str) -> VerdictRecord | None:
    """Return the newest stored verdict on a run against a baseline; None if none can be read."""
    paths = sorted(store.place("verdicts", run_id).glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    verdicts = [v for v in load_files(VerdictRecord, paths) if v.baseline_digest == baseline_digest]
    return max(reversed(verdicts), key=lambda verdict: verdict.created, default=None)


def save_decision(store: Store, decision: DecisionRecord) -> None:
    """Write an experiment's decision, replacing the last one; skipped if the folder is read-only."""
    path = store.place("decisions", f"{decision.experiment}.json")
    # Compared as JSON: a file has lists where a record has tuples.
    new = json.loads(json.dumps(asdict(decision))) | {"created": ""}
    if read_object(path) | {"created": ""} != new:
        with suppress(PermissionError):
            write_record(store, path, decision)
