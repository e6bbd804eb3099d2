"""Commands that hand answers to people and take their labels: rate export and rate import.

Invariant: neither loads a model; the file tells nobody whose an answer is.
"""

from pathlib import Path
from typing import Annotated

from harness.cli.app import ROWS, group, print_lines, say
from harness.cli.options import Argument, Candidates, ExperimentFile, Json, Option, verb
from harness.errors import Problem, UserError, as_operand
from harness.formatting import count

rate_app = group("rate", ROWS, "Let people label or compare answers, blind, in CSV files.")
File = Annotated[Path, Argument("The file of answers and labels.", "FILE.csv")]


@verb(rate_app, "harness rate export labels.csv", "harness rate export pairs.csv --pairs", name="export")
def rate_export(
    file: File,
    at: ExperimentFile,
    items: Annotated[int, Option("How many items to draw.", short="-n", min=1)] = 100,
    metric: Annotated[str, Option("The metric that the labels check; by default the one that decides.")] = "",
    candidates: Candidates = None,
    pairs: Annotated[bool, Option("Write two answers side by side, for a win rate.")] = False,
    as_json: Json = False,
) -> None:
    """Write answers to a CSV file, for people to label.

    Test items are drawn at random, and nothing in the file says whose an answer is.
    """
    from harness.release import label_file, pair_file

    names = [name for given in candidates or [] for name in given.split(",")]
    if pairs:
        if metric:
            raise UserError(Problem("--pairs", "--metric", "one of them", "leave --metric out"))
        paired = pair_file.export_pairs(at.config, file, at.settings, n_items=items, candidates=names)
        line = (
            f"{file}: {count(paired.n_pairs)} pairs of answers, of {' and '.join(paired.runs)}, sides drawn"
        )
        print_lines(paired._asdict(), [line], as_json)
        say(_remainder_text(paired.n_left, "pairs without ratings"))
        if paired.waiting:
            waiting = ", ".join(paired.waiting)
            say(f"pairs of {waiting} lack ratings too; a later export draws those with the fewest")
        say(f"next: write left, right or tie into the column better, then {_import_command(file, at)}")
        return
    found = label_file.export_answers(
        at.config, file, at.settings, n_items=items, metric=metric, candidates=names
    )
    answers = f"{count(found.n_answers)} different answers to {count(found.n_items)} items"
    line = f"{file}: {answers}, for {found.metric}; of {' and '.join(found.runs)}"
    print_lines(found._asdict(), [line], as_json)
    if found.criteria:
        say(f"what the judge goes by, from {found.scale.replace(',', ' to ')}: {found.criteria}")
    say(_remainder_text(found.n_left, "items without labels"))
    if found.waiting:
        waiting = ", ".join(found.waiting)
        say(f"answers of {waiting} lack labels too; a later export draws those with the fewest")
    scale = f" (0 to 1, or with --scale {found.scale})" if found.scale[:1].isdigit() else " (0 to 1)"
    say(f"next: fill in the column label{scale}, then {_import_command(file, at)}")


def _remainder_text(n: int, what: str) -> str:
    return (
        f"{count(n)} {what} are left; a later export goes on with these" if n else f"this file has all {what}"
    )


def _import_command(file: Path, at: ExperimentFile) -> str:
    return at.command_line().command("rate", "import", as_operand(str(file)), "--rater", "NAME")


@verb(
    rate_app,
    "harness rate import labels.csv --rater ann",
    "harness rate import labels.csv --rater ann --scale 1,5",
    name="import",
)
def rate_import(
    file: File,
    at: ExperimentFile,
    rater: Annotated[str, Option("Who labelled; a later import of this name replaces labels.")] = "people",
    scale: Annotated[
        str, Option("The lowest and the highest label, such as 1,5; else 0,1.", metavar="LOW,HIGH")
    ] = "",
    as_json: Json = False,
) -> None:
    """Store people's labels or preferences.

    All problems of the file are listed, and nothing is stored then.
    """
    from harness.release import label_file, pair_file

    rater = rater.strip()
    if not rater:
        raise UserError(Problem("--rater", "no name", "who labelled", "--rater ann"))
    if label_file.has_column(file, pair_file.BETTER):
        if scale:
            given = f"{scale}, and a file of pairs"
            raise UserError(Problem("--scale", given, "left, right or tie", "leave --scale out"))
        rated = pair_file.import_pairs(at.config, file, at.settings, rater=rater)
        line = f"{file}: {count(rated.n_ratings)} preferences by {rater}{_blank(rated.n_blank)}"
        by_pair = rated.by_pair.items()
        of_pairs = [f"  {runs}: {count(n)} pairs of their answers have a rating" for runs, n in by_pair]
        print_lines(rated._asdict(), [line, *of_pairs], as_json)
        for runs, n in rated.counted.items():
            if n < rated.by_pair[runs]:
                say(
                    f"warning: {runs}: {count(n)} of {count(rated.by_pair[runs])} rated pairs are a random"
                    " part, those up to where 95 % in the order of drawing have a rating; rating chosen pairs"
                    " skews the win rate; next: rate the rows left blank, from the first one"
                )
        say(f"next: {at.command_line().command('report')}")
        return
    found = label_file.import_labels(
        at.config, file, at.settings, rater=rater, scale=_scale(scale) if scale else None
    )
    line = f"{file}: {count(found.n_labels)} labels for {found.metric} by {rater}{_blank(found.n_blank)}"
    of_runs = [f"  {run}: {count(n)} of its answers have a label" for run, n in found.by_run.items()]
    print_lines(found._asdict(), [line, *of_runs], as_json)
    say(f"next: {at.command_line().command('report')}")


def _blank(n: int) -> str:
    return f", {count(n)} rows left blank" if n else ""


def _scale(written: str) -> tuple[float, float]:
    try:
        low, high = map(float, written.split(","))
    except ValueError:
        raise UserError(Problem("--scale", repr(written), "two numbers", "--scale 1,5")) from None
    return low, high
