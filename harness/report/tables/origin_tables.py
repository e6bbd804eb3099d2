"""Origins of runs: what their numbers depend on, what all share beside what is each one's own."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from harness.formatting import UNKNOWN
from harness.records import Run

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
    rows = [(name.replace("_", " "), _shared_value(origins, name)) for name in shared]
    yield "Provenance", ("what", "value"), rows
    own = [(label, *(of.get(name, UNKNOWN) for name in _OWN_ORIGINS)) for label, of in origins.items()]
    yield "Runs", ("candidate", *_OWN_ORIGINS), own


def _flat(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Lift the packages out, each under its own name; the kernel's build is nothing that a reader needs."""
    packages = {name: v for name, v in (provenance.get("packages") or {}).items() if v is not None}
    return {**{name: v for name, v in provenance.items() if name not in _HIDDEN_ORIGINS}, **packages}


def _shared_value(origins: Origins, name: str) -> str:
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
        return ", ".join(f"{k} {_nested_text(v)}" if v != {} else str(k) for k, v in value.items())
    return UNKNOWN if value is None else str(value)


def _nested_text(value: Any) -> str:
    return f"({_origin_text(value)})" if isinstance(value, Mapping) else _origin_text(value)
