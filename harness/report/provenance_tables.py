"""Where the numbers of a report come from: code, packages, machine, and each run's own digests.

Invariant: what all runs share is said once; where runs differ, each value names the runs that have it.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from harness.formatting import UNKNOWN
from harness.records import Run

Origins = Mapping[str, Mapping[str, str]]
_OWN = ("run", "made", "weights", "base", "recipe")
_NOT_SHOWN = ("packages", "platform")
Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]


def origin(run: Run) -> dict[str, str]:
    """Say of one run what its numbers depend on, each as text."""
    recipe = {k: v for k, v in run.recipe.items() if v}
    own = (run.run_id, run.created, run.weights_digest, run.base_digest, recipe)
    named = {**dict(zip(_OWN, own, strict=True)), **_flat(run.provenance)}
    return {name: _text(value) for name, value in named.items()}


def tables(origins: Origins) -> Iterator[Table]:
    """Make two tables: what the runs share, and what is each one's own."""
    shared = list(dict.fromkeys(name for of in origins.values() for name in of if name not in _OWN))
    rows = [(name.replace("_", " "), _values(origins, name)) for name in shared]
    yield "Provenance", ("what", "value"), rows
    own = [(label, *(of.get(name, UNKNOWN) for name in _OWN)) for label, of in origins.items()]
    yield "Runs", ("candidate", *_OWN), own


def _flat(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Lift the packages out, each under its own name; the kernel's build is nothing that a reader needs."""
    packages = {name: v for name, v in (provenance.get("packages") or {}).items() if v is not None}
    return {**{name: v for name, v in provenance.items() if name not in _NOT_SHOWN}, **packages}


def _values(origins: Origins, name: str) -> str:
    by_value: dict[str, list[str]] = {}
    for label, of in origins.items():
        by_value.setdefault(of.get(name, UNKNOWN), []).append(label)
    if len(by_value) == 1:
        return next(iter(by_value))
    return "; ".join(f"{value} ({', '.join(labels)})" for value, labels in by_value.items())


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_nested(v)}" if v != {} else str(k) for k, v in value.items())
    return UNKNOWN if value is None else str(value)


def _nested(value: Any) -> str:
    return f"({_text(value)})" if isinstance(value, Mapping) else _text(value)
