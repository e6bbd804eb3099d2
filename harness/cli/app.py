"""Typer application of all commands, the layout of its help, and printing.

Invariant: stdout holds the result and nothing else; importing this loads nothing heavy.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from harness import __version__
from harness.cli.options import CONFIG, ExperimentFile, examples
from harness.errors import UserError
from harness.formatting import Unit, count, score

if TYPE_CHECKING:
    from harness.analysis.estimators import Estimate
    from harness.evaluation.session import Session
    from harness.report import ExperimentReport, ResultDocument

    Scores = Mapping[str, Mapping[str, Estimate]]  # by task and metric


EXPERIMENT = "Run an experiment"
RELEASE = "Release and watch a model"
ROWS = "Rows and people's labels"
STORED = "Stored results"
NAMES = "Names and keys"
_OTHERS = "Commands"
BY_A_MODEL = "Commands that ask a model"
_HEADINGS = (EXPERIMENT, RELEASE, ROWS, STORED, NAMES, _OTHERS, BY_A_MODEL)
_SPACING = 6  # columns of a line for the indentation and the gap between name and purpose


class HeadedGroup(TyperGroup):
    """Group whose help lists each command under the heading that its `rich_help_panel` names."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a section for each heading, with all names in one column."""
        width = max(map(len, self.commands))
        rows_by_heading: dict[str, list[tuple[str, str]]] = {heading: [] for heading in _HEADINGS}
        for name, command in self.commands.items():
            purpose = command.get_short_help_str(formatter.width - _SPACING - width)
            heading = getattr(command, "rich_help_panel", None) or _OTHERS
            rows_by_heading.setdefault(heading, []).append((name.ljust(width), purpose))
        for heading, rows in rows_by_heading.items():
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)


_START = ("init tickets --data tickets.csv", "compare -c tickets/harness.yaml", "VERB --help")

app = typer.Typer(
    cls=HeadedGroup,
    help="Know, with evidence, whether to fine-tune.",
    epilog=examples(*_START),
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def group(name: str, panel: str, purpose: str, cls: type[TyperGroup] = TyperGroup) -> typer.Typer:
    """Add a verb that has verbs of its own, under a heading of the help."""
    verbs = typer.Typer(name=name, cls=cls, help=purpose, no_args_is_help=True, rich_markup_mode=None)
    app.add_typer(verbs, rich_help_panel=panel)
    return verbs


runs_app = group("runs", STORED, "List, show, compare or remove stored runs.")
champions_app = group("champions", RELEASE, "List the champions of a target, go back to one, retire one.")
regressions_app = group("regressions", RELEASE, "Pin lost items that must never be lost again.")
data_app = group("data", ROWS, "Check, clean, split and rewrite rows of data.", HeadedGroup)
nightly_app = group("nightly", RELEASE, "Evaluate the champion again every night.")
rate_app = group("rate", ROWS, "Let people label or compare answers, blind, in CSV files.")
pairs_app = group("pairs", ROWS, "Make preference pairs, such as DPO trains on.")
feedback_app = group("feedback", ROWS, "Store what users say of answers; make rows and pairs of it.")

EXIT_CODES = {
    0: "all is computed, whatever the verdicts; `gate`, `compare --gate`: pass; `rescue`: a trial passes",
    1: "something failed, for example one candidate; the others are finished; `data check --fail-on`: found",
    2: "a file, an option or a value cannot be used, or the disk is full",
    3: "`gate`, `compare --gate`: fail; `rescue`: no trial passes; `nightly run`: regression",
    4: "`gate`, `compare --gate`: UNDECIDED, DRIFT, or nothing is recommended; `rescue`: no trial "
    "passes, and some are UNDECIDED; `nightly run`: suspect or harness-drift",
    5: "no stored run to report or gate, no baseline, or rows that must not be compared",
    130: "interrupted; what is finished is kept, and the same command goes on",
}


def _print_version(requested: bool) -> None:
    if requested:
        print(f"harness-evals {__version__}")
        raise typer.Exit


@app.callback()
def take_global_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Take the options before a verb."""


def say(*lines: str) -> None:
    """Print lines on stderr, without control characters."""
    from harness.report.escape import clean_lines

    for line in lines:
        print(clean_lines(line), file=sys.stderr)


def print_json(value: Any) -> None:
    """Print plain types as JSON."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_document(document: "ResultDocument") -> None:
    """Print a document, each line whole."""
    from harness import report
    from harness.cli.progress_bar import console

    report.print_document(document, console())


def print_result(plain: Any, content: "ResultDocument | Iterable[str]", as_json: bool) -> None:
    """Print a result as JSON, or as a document or lines."""
    if as_json:
        print_json(plain)
    elif isinstance(content, Iterable):
        for line in content:
            print(line)
    else:
        print_document(content)


def print_value(value: Any, as_json: bool) -> None:
    """Print a mapping as JSON or as indented lines."""
    print_result(value, _lines(value, ""), as_json)


def _lines(value: Any, indent: str) -> Iterator[str]:
    for key, inner in value.items():
        if isinstance(inner, dict):
            yield f"{indent}{key}"
            yield from _lines(inner, indent + "  ")
        elif isinstance(inner, list | tuple):
            # Of a nested value, such as a curve, only the number of its entries is shown.
            is_nested = any(isinstance(entry, dict | list | tuple) for entry in inner)
            listed = ", ".join(map(str, inner)) or "none"
            yield f"{indent}{key}: {f'a list of {len(inner)}, which --json shows' if is_nested else listed}"
        else:
            yield f"{indent}{key}: {inner}" if inner != "" else f"{indent}{key}"


def format_score(unit: "Unit", value: float, low: float, high: float, n: float) -> str:
    """Write a score with its interval and the number of items."""
    return f"{score(unit, value, low, high)}, n = {count(n)}"


def print_scores(scores_by_run: "Mapping[str, Scores]", as_json: bool) -> None:
    """Print every run's scores by task and metric: unrounded as JSON, else rounded by their intervals."""
    from harness.report import to_plain

    plain_scores = {
        run: {
            task: {m: to_plain(e) if as_json else format_score(e.unit, *e[:4]) for m, e in metrics.items()}
            for task, metrics in scores.items()
        }
        for run, scores in scores_by_run.items()
    }
    print_value(plain_scores, as_json)


def write_report(
    result: "ExperimentReport",
    at: ExperimentFile,
    candidates: Sequence[str] = (),
    session: "Session | None" = None,
) -> "ExperimentReport":
    """Write a report into its project; return it with the next commands for the current folder.

    With a `session` the report shows prompts of items, and its runs are sent to the trackers first.
    """
    from harness import report

    if session and (report_to := session.experiment.report_to):
        from harness.report import trackers

        tracker_notes = trackers.send(result, report_to, at.reports, session.store.weights)
        result = replace(result, notes=(*result.notes, *tracker_notes))
    local_command = at._replace(config=Path(at.config.name)).command_line(candidates)
    local_report = replace(result, typed=local_command)
    earlier = None
    with suppress(UserError):
        earlier = report.read(at.reports / f"{local_report.file_name}.json")
    if earlier and earlier.typed.config != local_command.config:
        say(
            f"{at.reports / local_report.file_name}.* was the report of {earlier.typed.config or CONFIG}, an "
            "experiment of the same name, and is replaced; next: rename one of them (name:), then harness "
            "report for each"
        )
    elif earlier and "wall_s" in earlier.header and "wall_s" not in result.header:  # nothing ran this time
        result = replace(result, header={**result.header, "wall_s": earlier.header["wall_s"]})
    if session:
        from harness.experiment import add_prompts

        result = add_prompts(session, result, earlier)
    report.write(replace(result, typed=local_command), at.reports)
    return replace(result, typed=at.command_line(candidates))


def print_report(result: "ExperimentReport", as_json: bool, verbose: bool = False) -> None:
    """Print a report as JSON, or its table, decision and main notes; all of it if `verbose`."""
    from harness import report
    from harness.cli.progress_bar import console

    if as_json:
        print_json(report.to_json(result))
    else:
        report.terminal(result, console(100), verbose=verbose)
