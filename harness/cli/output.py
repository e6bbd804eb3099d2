"""What verbs share: opening an experiment, results on stdout, everything else on stderr.

Invariant: stdout holds the result and nothing else.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.comparison import Estimate
    from harness.config import Loaded
    from harness.evaluation.session import Session
    from harness.formatting import Unit
    from harness.report import ExperimentReport

    Scores = Mapping[str, Mapping[str, Estimate]]  # by task and metric


def open_session(
    config: Path,
    overrides: list[str] | None = None,
    candidate: str | None = None,
    *,
    dry_run: bool = False,
) -> "tuple[Session, Loaded]":
    """Open the experiment of a file with its data and model; return it and the file as it was read."""
    from harness import config as configuration
    from harness.cli.progress_bar import TerminalProgress
    from harness.experiment import Scope, prepare_session

    loaded = configuration.load(config, overrides or [], [] if candidate is None else [candidate])
    return prepare_session(loaded, Scope(dry_run=dry_run), TerminalProgress()), loaded


def write_utf8() -> None:
    """Write UTF-8 whatever the locale: results hold signs such as − and →, and JSON is UTF-8.

    Half a pair of surrogates, which a model's text may hold, is written as its escape.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def say(line: str) -> None:
    """Print a line beside the result, on stderr."""
    print(line, file=sys.stderr)


def print_json(value: Any) -> None:
    """Print plain types as JSON."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_value(value: Any, as_json: bool) -> None:
    """Print a mapping as JSON or as indented lines."""
    if as_json:
        print_json(value)
        return
    for line in _lines(value, ""):
        print(line)


def _lines(value: Any, indent: str) -> Iterator[str]:
    for key, inner in value.items():
        if isinstance(inner, dict):
            yield f"{indent}{key}"
            yield from _lines(inner, indent + "  ")
        elif isinstance(inner, list | tuple):
            yield f"{indent}{key}: {_listed(inner)}"
        else:
            yield f"{indent}{key}: {inner}" if inner != "" else f"{indent}{key}"


def _listed(values: Sequence[Any]) -> str:
    """Write names and numbers one after the other, and of what holds more, such as a curve, how many."""
    if any(isinstance(value, dict | list | tuple) for value in values):
        return f"a list of {len(values)}, which --json shows"
    return ", ".join(map(str, values)) or "none"


def scored(unit: "Unit", value: float, low: float, high: float, n: float) -> str:
    """Write a score with its interval and the number of items."""
    from harness.formatting import count, score

    return f"{score(unit, value, low, high)}, n = {count(n)}"


def print_scores(found: "Mapping[str, Scores]", as_json: bool) -> None:
    """Print every run's scores by task and metric: as JSON unrounded, else as far as the interval reaches."""
    from harness.report import to_plain

    def shown(e: "Estimate") -> object:
        return to_plain(e) if as_json else scored(e.unit, *e[:4])

    named = {
        run: {task: {m: shown(e) for m, e in of.items()} for task, of in scores.items()}
        for run, scores in found.items()
    }
    print_value(named, as_json)


def print_report(found: "ExperimentReport", as_json: bool) -> None:
    """Print a report as JSON or as the table and the reasons."""
    from harness import report
    from harness.cli.progress_bar import console

    if as_json:
        print_json(report.to_json(found))
    else:
        report.terminal(found, console(100))
