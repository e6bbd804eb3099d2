"""Origins of runs, what their numbers depend on, and of changes: quantised base, first run, training."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from harness import formatting
from harness.formatting import UNKNOWN
from harness.records import Run
from harness.report.document import Section
from harness.report.escape import clean
from harness.report.experiment_report import AttributionStep
from harness.report.wording import change_text

Origins = Mapping[str, Mapping[str, str]]
_OWN_ORIGINS = ("run", "made", "weights", "base", "recipe")
_HIDDEN_ORIGINS = ("packages", "platform")
Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]


def origin(run: Run) -> dict[str, str]:
    """Say of one run what its numbers depend on, each as text."""
    recipe = {k: v for k, v in run.recipe.items() if v}
    own = (run.run_id, run.created, run.weights_digest, run.base_digest, recipe)
    named = {**dict(zip(_OWN_ORIGINS, own, strict=True)), **_flat(run.provenance)}
    return {name: _origin_text(value) for name, value in named.items()}


def provenance_tables(origins: Origins) -> Iterator[Table]:
    """Make two tables: what the runs share, and what is each one's own."""
    shared = list(dict.fromkeys(name for of in origins.values() for name in of if name not in _OWN_ORIGINS))
    rows = [(name.replace("_", " "), _find_shared_value(origins, name)) for name in shared]
    yield "Provenance", ("what", "value"), rows
    own = [(label, *(of.get(name, UNKNOWN) for name in _OWN_ORIGINS)) for label, of in origins.items()]
    yield "Runs", ("candidate", *_OWN_ORIGINS), own


def _flat(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Lift the packages out, each under its own name; the kernel's build is nothing that a reader needs."""
    packages = {name: v for name, v in (provenance.get("packages") or {}).items() if v is not None}
    return {**{name: v for name, v in provenance.items() if name not in _HIDDEN_ORIGINS}, **packages}


def _find_shared_value(origins: Origins, name: str) -> str:
    by_value: dict[str, list[str]] = {}
    for label, of in origins.items():
        by_value.setdefault(of.get(name, UNKNOWN), []).append(label)
    if len(by_value) == 1:
        return next(iter(by_value))
    return "; ".join(f"{value} ({', '.join(labels)})" for value, labels in by_value.items())


def _origin_text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_print_nested(v)}" if v != {} else str(k) for k, v in value.items())
    return UNKNOWN if value is None else str(value)


def _print_nested(value: Any) -> str:
    return f"({_origin_text(value)})" if isinstance(value, Mapping) else _origin_text(value)


def attribution_sentence(label: str, steps: Sequence[AttributionStep]) -> str:
    """Say where a candidate's change comes from; empty where there is nothing to split."""
    parts = [f"{formatting.points(*s.macro[:3])} by {s.what}" for s in steps if s.macro and s.target is None]
    said = [f"capability suite {' and '.join(parts)}, in points"] if len(parts) > 1 else []
    for s in (s for s in steps if s.target is not None):
        assert s.target is not None
        c = s.target
        general = f", capability suite {formatting.points(*s.macro[:3])} points" if s.macro else ""
        said.append(f"against {s.base}, which it starts from, {c.metric} {change_text(c)}{general}")
    return f"{label}: {'; '.join(said)}" if said else ""


def steps_section(label: str, steps: Sequence[AttributionStep]) -> Section:
    """Lay out the change of each task from one step to the next: a row a task, a column a step."""
    columns = ["task", *(clean(f"{s.what}: {s.new} − {s.base}") for s in steps)]
    changes = [{c.task: c for c in reversed(s.tasks)} for s in steps]
    tasks = dict.fromkeys(c.task for s in steps for c in s.tasks)
    rows = [[task, *(change_text(of.get(task)) for of in changes)] for task in tasks]
    if any(s.target for s in steps):
        rows.insert(0, ["target", *(change_text(s.target) for s in steps)])
    if any(s.macro for s in steps):
        shown = [formatting.points(*s.macro[:3]) if s.macro else formatting.UNKNOWN for s in steps]
        rows.append(["mean of the tasks that count", *shown])
    return Section("steps", f"Where the change of {label} comes from", columns, rows, label=label)
