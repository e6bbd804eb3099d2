"""Typer application of all commands, the form of its help, and how they print.

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
_SPACING = 6  # columns of a line that indentation and the gap between name and purpose take


class HeadedGroup(TyperGroup):
    """Group whose help lists each command under the heading that its `rich_help_panel` names."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a section for each heading, with all names in one column."""
        width = max(map(len, self.commands))
        headed: dict[str, list[tuple[str, str]]] = {heading: [] for heading in _HEADINGS}
        for name, command in self.commands.items():
            purpose = command.get_short_help_str(formatter.width - _SPACING - width)
            heading = getattr(command, "rich_help_panel", None) or _OTHERS
            headed.setdefault(heading, []).append((name.ljust(width), purpose))
        for heading, rows in headed.items():
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)


_START = (
    "harness init tickets --data tickets.csv",
    "harness compare -c tickets/harness.yaml",
    "harness VERB --help",
)

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
    verbs = typer.Typer(cls=cls, help=purpose, no_args_is_help=True, rich_markup_mode=None)
    app.add_typer(verbs, name=name, rich_help_panel=panel)
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


def say(line: str) -> None:
    """Print a line on stderr, without control characters."""
    from harness.report.escape import clean_lines

    print(clean_lines(line), file=sys.stderr)


def print_json(value: Any) -> None:
    """Print plain types as JSON."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_document(document: "ResultDocument") -> None:
    """Print a document, each line whole."""
    from harness import report
    from harness.cli.progress_bar import console

    report.print_document(document, console())


def print_result(plain: Any, shown: "ResultDocument | Iterable[str]", as_json: bool) -> None:
    """Print a result as JSON, or as the document or the lines of it."""
    if as_json:
        print_json(plain)
    elif isinstance(shown, Iterable):
        for line in shown:
            print(line)
    else:
        print_document(shown)


def print_value(value: Any, as_json: bool) -> None:
    """Print a mapping as JSON or as indented lines."""
    print_result(value, _lines(value, ""), as_json)


def _lines(value: Any, indent: str) -> Iterator[str]:
    for key, inner in value.items():
        if isinstance(inner, dict):
            yield f"{indent}{key}"
            yield from _lines(inner, indent + "  ")
        elif isinstance(inner, list | tuple):
            # Of what holds more than names and numbers, such as a curve, how many.
            is_nested = any(isinstance(part, dict | list | tuple) for part in inner)
            listed = ", ".join(map(str, inner)) or "none"
            yield f"{indent}{key}: {f'a list of {len(inner)}, which --json shows' if is_nested else listed}"
        else:
            yield f"{indent}{key}: {inner}" if inner != "" else f"{indent}{key}"


def format_score(unit: "Unit", value: float, low: float, high: float, n: float) -> str:
    """Write a score with its interval and the number of items."""
    return f"{score(unit, value, low, high)}, n = {count(n)}"


def print_scores(found: "Mapping[str, Scores]", as_json: bool) -> None:
    """Print every run's scores by task and metric: as JSON unrounded, else as far as the interval reaches."""
    from harness.report import to_plain

    named = {
        run: {
            task: {m: to_plain(e) if as_json else format_score(e.unit, *e[:4]) for m, e in metrics.items()}
            for task, metrics in scores.items()
        }
        for run, scores in found.items()
    }
    print_value(named, as_json)


def write_report(
    found: "ExperimentReport",
    at: ExperimentFile,
    candidates: Sequence[str] = (),
    session: "Session | None" = None,
) -> "ExperimentReport":
    """Write a report into its project; return it with next commands as they are typed in this folder.

    With a `session` it shows prompts of items, and its runs are sent to the trackers first.
    """
    from harness import report

    if session and (report_to := session.experiment.report_to):
        from harness.report import trackers

        sent = trackers.send(found, report_to, at.reports, session.store.weights)
        found = replace(found, notes=(*found.notes, *sent))
    own = at._replace(config=Path(at.config.name)).command_line(candidates)
    named = replace(found, typed=own)
    earlier = None
    with suppress(UserError):
        earlier = report.read(at.reports / f"{named.file_name}.json")
    if earlier and earlier.typed.config != own.config:
        say(
            f"{at.reports / named.file_name}.* was the report of {earlier.typed.config or CONFIG}, an "
            "experiment of the same name, and is replaced; next: rename one of them (name:), then harness "
            "report for each"
        )
    elif earlier and "wall_s" in earlier.header and "wall_s" not in found.header:  # nothing ran this time
        found = replace(found, header={**found.header, "wall_s": earlier.header["wall_s"]})
    if session:
        from harness.experiment import add_prompts

        found = add_prompts(session, found, earlier)
    report.write(replace(found, typed=own), at.reports)
    return replace(found, typed=at.command_line(candidates))


def print_report(found: "ExperimentReport", as_json: bool, verbose: bool = False) -> None:
    """Print a report as JSON or as the table, the decision and what matters most, or all where `verbose`."""
    from harness import report
    from harness.cli.progress_bar import console

    if as_json:
        print_json(report.to_json(found))
    else:
        report.terminal(found, console(100), verbose=verbose)
