"""The page of a benchmark: one row per measurement, written as JSON and as Markdown.

Invariant: a row without a goal is informative, neither met nor missed. `HARNESS_BENCH_FOLDER` replaces the
folder `reports/benchmarks`, so that a trial run does not overwrite the stored pages.
"""

import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from harness import provenance
from harness.models.hardware import Machine

_FOLDER = Path(__file__).parents[2] / "reports" / "benchmarks"


class Row(NamedTuple):
    """One measurement; `goal` is an upper bound, or a lower bound with `at_least`, both in `unit`."""

    name: str
    measured: float
    unit: str
    goal: float | None
    bounded_by: str
    at_least: bool = False

    @property
    def is_met(self) -> bool | None:
        """Whether the goal is met; None without a goal."""
        if self.goal is None:
            return None
        return self.measured >= self.goal if self.at_least else self.measured < self.goal


class Table(NamedTuple):
    """A table below the rows: a sentence, the columns, the cells of each line."""

    sentence: str
    columns: tuple[str, ...]
    lines: tuple[tuple[object, ...], ...]


def stem(name: str) -> Path:
    """Return the path of a page, without its suffix."""
    return Path(os.environ.get("HARNESS_BENCH_FOLDER", _FOLDER)) / name


def write(
    title: str,
    rows: Sequence[Row],
    machine: Machine,
    stem: Path,
    tables: Sequence[Table] = (),
    command: str = "make bench",
) -> None:
    """Write `<stem>.json` and `<stem>.md`, with the place, environment and command of the measurement."""
    content = {**make_record(title, rows, machine, tables), "command": command}
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    stem.with_suffix(".md").write_text(_markdown(content), encoding="utf-8")


def make_record(
    title: str, rows: Sequence[Row], machine: Machine, tables: Sequence[Table] = ()
) -> dict[str, Any]:
    """Return rows and tables in plain types, with the place and environment of the measurement."""
    return {
        "title": title,
        "date": datetime.now(UTC).date().isoformat(),
        "probed": machine._asdict(),
        **provenance.collect(machine.name if machine.device == "cuda" else None),
        "rows": [{**r._asdict(), "met": r.is_met} for r in rows],
        "tables": [t._asdict() for t in tables],
    }


def _markdown(content: dict[str, Any]) -> str:
    title, *lines = section(content)
    again = f"`{content['command']}` measures all of it and writes this page again."
    return "\n".join([f"# {title}", *lines, again]) + "\n"


def section(content: dict[str, Any]) -> list[str]:
    """Return the title, then the lines on place, environment, measurements with goals, and the tables."""
    probed = content["probed"]
    packages = ", ".join(f"{name} {version}" for name, version in content["packages"].items() if version)
    commit = (content["git_sha"] or "unknown")[:12] + (" with changes" if content["git_dirty"] else "")
    where = (
        f"Measured on {content['date']} on {content['device']} ({content['threads']} threads, "
        f"{probed['precision']}, {probed['gflops']:,.0f} GFLOP/s in a large matrix product), "
        f"with Python {content['python']}, {packages}; harness {content['harness']}, commit {commit}."
    )
    head = ["| what | measured | goal | met | what bounds it |", "|---|---|---|---|---|"]
    lines = [content["title"], "", where, "", *head, *map(_line, content["rows"]), ""]
    for table in content["tables"]:
        lines += [table["sentence"], "", *table_lines(table), ""]
    return lines


def table_lines(table: dict[str, Any]) -> list[str]:
    cells = [table["columns"], ["---"] * len(table["columns"]), *table["lines"]]
    return [f"| {' | '.join(map(str, line))} |" for line in cells]


def _line(row: dict[str, Any]) -> str:
    unit, direction = row["unit"], "at least" if row["at_least"] else "below"
    goal = "–" if row["goal"] is None else f"{direction} {row['goal']:,g} {unit}"
    return f"| {row['name']} | {_format_value(row['measured'])} {unit} | {goal} | {_describe_goal(row)} | {row['bounded_by']} |"


def _describe_goal(row: dict[str, Any]) -> str:
    if row["met"] is None:
        return "–"
    return "yes" if row["met"] else f"no, by {_format_value(abs(row['measured'] - row['goal']))}"


def _format_value(measured: float) -> str:
    return f"{measured:,.0f}" if measured >= 100 else f"{measured:.2g}"
