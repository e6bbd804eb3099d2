"""Commands that bring production's feedback back: feedback add, rows and pairs.

Invariant: none loads a model; personal data is masked before anything is written.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from harness.cli.app import ROWS, group, print_lines, say
from harness.cli.options import (
    Argument,
    ExperimentFile,
    Json,
    Option,
    name_beside,
    require_out,
    verb,
)
from harness.errors import as_operand

if TYPE_CHECKING:
    from harness.evaluation.session import Session
    from harness.production import FeedbackEdit
    from harness.records import FeedbackRow

feedback_app = group("feedback", ROWS, "Store what users say of answers; make rows and pairs of it.")
Out = Annotated[Path | None, Option("The new file. A manifest is written next to it.")]
PerSender = Annotated[int, Option("Rows of one sender, at most; the newest stay.", min=1)]


@verb(feedback_app, "harness feedback add log.jsonl", "harness feedback add thumbs.csv", name="add")
def feedback_add(
    file: Annotated[Path, Argument("A log: OpenAI's JSON Lines, or a table of requests and answers.")],
    at: ExperimentFile,
    as_json: Json = False,
) -> None:
    """Store the rows of a log, with personal data masked.

    A row that is stored already is not stored again. Names of persons are not found.
    """
    from harness.cli.progress_bar import TerminalProgress
    from harness.production import add_feedback, describe_added
    from harness.store import Store

    loaded = at.load()
    with TerminalProgress().stage(f"masking {file}") as advance:
        added = add_feedback(
            Store(loaded.folder / "runs"), str(file), loaded.experiment.feedback.region, advance
        )
    print_lines(added._asdict(), describe_added(added), as_json)
    made = "rows" if added.corrections else "pairs" if added.preferences else ""
    command = ("feedback", made, "--out", f"{made}.jsonl") if made else ("decide",)
    say(f"next: {at.command_line().command(*command)}")


@verb(
    feedback_app,
    "harness feedback rows --out corrections.jsonl",
    "harness feedback rows --test-items marked.csv --out items.jsonl",
    name="rows",
)
def feedback_rows(
    at: ExperimentFile,
    out: Out = None,
    per_sender: PerSender = 3,
    test_items: Annotated[
        Path | None,
        Option("A CSV file with id and marked_by: rows that a person marked become test items instead."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write corrections as training rows.

    Rows that ask what is evaluated are left out. Test items are made of marked rows alone.
    """
    from harness.production import make_rows, make_test_items

    out = require_out(out, "harness feedback rows", "corrections.jsonl")
    session, stored = _open(at, out)
    if test_items:
        _save(make_test_items(session, stored, str(test_items)), out, as_json)
        say(f"next: more_targets in {at.config}, a task with data: {{test: {name_beside(at.config, out)}}}")
        return
    _save(make_rows(session, stored, per_sender, str(out)), out, as_json)
    check = f"harness data check {as_operand(str(out))}"
    say(f"next: {check}, then train: {name_beside(at.config, out)} on a candidate in {at.config}")


@verb(feedback_app, "harness feedback pairs --out preferences.jsonl", name="pairs")
def feedback_pairs(
    at: ExperimentFile, out: Out = None, per_sender: PerSender = 3, as_json: Json = False
) -> None:
    """Write preferences as pairs of answers.

    Pairs that ask what is evaluated are left out.
    """
    from harness.production import make_pairs

    out = require_out(out, "harness feedback pairs", "preferences.jsonl")
    session, stored = _open(at, out)
    _save(make_pairs(session, stored, per_sender, str(out)), out, as_json)
    say(f"next: train: {name_beside(at.config, out)} on a candidate with method: dpo in {at.config}")


def _open(at: ExperimentFile, out: Path) -> "tuple[Session, list[FeedbackRow]]":
    from harness.data.edit import refuse_output
    from harness.store import read_feedback

    refuse_output(out, [])
    session, _ = at.open_session(dry_run=True)
    return session, read_feedback(session.store)


def _save(made: "FeedbackEdit", out: Path, as_json: bool) -> None:
    from harness.cli.data import print_saved
    from harness.data.edit import save

    print_saved(save(made.edit, made.outcomes, out), as_json)
    for note in made.notes:
        say(note)
