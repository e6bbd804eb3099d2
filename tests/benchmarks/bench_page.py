"""The page of a benchmark: one row a measurement, written as JSON and as Markdown.

Invariant: a row without a goal is a figure to know, and is neither met nor missed.
"""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from harness import provenance
from harness.machine import Machine

_WORDS = {None: "–", True: "yes", False: "no"}


class Row(NamedTuple):
    """One measurement; `goal` is what it should stay below, both in `unit`."""

    name: str
    measured: float
    unit: str
    goal: float | None
    bounded_by: str


def write(title: str, rows: Sequence[Row], machine: Machine, stem: Path) -> None:
    """Write `<stem>.json` and `<stem>.md`; both say where and with what the rows were measured."""
    content = {
        "title": title,
        "date": datetime.now(UTC).date().isoformat(),
        "probed": machine._asdict(),
        **provenance.collect(),
        "rows": [{**r._asdict(), "met": None if r.goal is None else r.measured < r.goal} for r in rows],
    }
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    stem.with_suffix(".md").write_text(_markdown(content), encoding="utf-8")


def _markdown(content: dict[str, Any]) -> str:
    probed = content["probed"]
    packages = ", ".join(f"{name} {version}" for name, version in content["packages"].items() if version)
    commit = (content["git_sha"] or "unknown")[:12] + (" with changes" if content["git_dirty"] else "")
    where = (
        f"Measured on {content['date']} on {content['device']} ({content['threads']} threads, "
        f"{probed['precision']}, {probed['gflops']:,.0f} GFLOP/s in a large matrix product), "
        f"with Python {content['python']}, {packages}; harness {content['harness']}, commit {commit}."
    )
    head = ["| what | measured | goal | met | what bounds it |", "|---|---|---|---|---|"]
    again = "`make bench` measures all of it and writes this page again."
    lines = [f"# {content['title']}", "", where, "", *head, *map(_line, content["rows"]), "", again]
    return "\n".join(lines) + "\n"


def _line(row: dict[str, Any]) -> str:
    goal = "–" if row["goal"] is None else f"below {row['goal']:g} {row['unit']}"
    shown = f"{row['measured']:,.0f}" if row["measured"] >= 100 else f"{row['measured']:.2g}"
    return f"| {row['name']} | {shown} {row['unit']} | {goal} | {_WORDS[row['met']]} | {row['bounded_by']} |"
