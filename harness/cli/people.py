"""Commands that collect people's judgements: rate export and import; feedback add, rows and pairs.

Invariant: none loads a model. The file for raters does not tell which candidate gave an answer.
"""

from pathlib import Path
from typing import Annotated

from harness.cli.app import feedback_app, print_result, rate_app, say
from harness.cli.data import save_made
from harness.cli.options import (
    Argument,
    Candidates,
    ExperimentFile,
    Json,
    Option,
    name_beside,
    require_out,
    verb,
)
from harness.errors import UserError, as_operand
from harness.formatting import count, pluralize

File = Annotated[Path, Argument("The file of answers and labels.", "FILE.csv")]


@verb(rate_app, "labels.csv", "pairs.csv --pairs")
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

    Test items are drawn at random, and the file does not name the candidate.
    """
    from harness.lifecycle import label_file, pair_file

    names = [name for text in candidates or [] for name in text.split(",")]
    hint, written = "", at.command_line().command("rate", "import", as_operand(str(file)), "--rater", "NAME")
    if pairs:
        if metric:
            raise UserError("--pairs", "--metric", "one of them", "leave --metric out")
        facts = pair_file.export_pairs(at.config, file, at.settings, n_items=items, candidates=names)
        line = f"{count(facts['n_pairs'])} pairs of answers, of {' and '.join(facts['runs'])}, sides drawn"
        kind, answers, labels = "pairs", "pairs", "ratings"
        fill = "write left, right or tie into the column better"
    else:
        facts = label_file.export_answers(
            at.config, file, at.settings, n_items=items, metric=metric, candidates=names
        )
        line = f"{count(facts['n_answers'])} different answers to {count(facts['n_items'])} items"
        line += f", for {facts['metric']}; of {' and '.join(facts['runs'])}"
        kind, answers, labels = "items", "answers", "labels"
        if facts["criteria"]:
            hint = f"what the judge goes by, from {facts['scale'].replace(',', ' to ')}: {facts['criteria']}"
        scale = f"0 to 1, or with --scale {facts['scale']}" if facts["scale"][:1].isdigit() else "0 to 1"
        fill = f"fill in the column label ({scale})"
    print_result(facts, [f"{file}: {line}"], as_json)
    if hint:
        say(hint)
    if facts["n_left"]:
        say(f"{count(facts['n_left'])} {kind} without {labels} are left; a later export goes on with these")
    else:
        say(f"this file has all {kind} without {labels}")
    if facts["waiting"]:
        waiting = ", ".join(facts["waiting"])
        say(f"{answers} of {waiting} lack {labels} too; a later export draws those with the fewest")
    say(f"next: {fill}, then {written}")


@verb(rate_app, "labels.csv --rater ann", "labels.csv --rater ann --scale 1,5")
def rate_import(
    file: File,
    at: ExperimentFile,
    rater: Annotated[str, Option("Who labelled; a later import of this name replaces labels.")] = "people",
    scale: Annotated[str, Option("Lowest and highest label: 1,5; else 0,1.", metavar="LOW,HIGH")] = "",
    as_json: Json = False,
) -> None:
    """Store people's labels or preferences.

    All problems of the file are listed, and nothing is stored then.
    """
    from harness.lifecycle import label_file, pair_file

    rater = rater.strip()
    if not rater:
        raise UserError("--rater", "no name", "who labelled", "--rater ann")
    if label_file.has_column(file, pair_file.BETTER):
        if scale:
            found = f"{scale}, and a file of pairs"
            raise UserError("--scale", found, "left, right or tie", "leave --scale out")
        facts = pair_file.import_pairs(at.config, file, at.settings, rater=rater)
        count_text = f"{count(facts['n_ratings'])} preferences"
        pair_counts = facts["by_pair"].items()
        run_lines = [f"  {runs}: {count(n)} pairs of their answers have a rating" for runs, n in pair_counts]
    else:
        ends: tuple[float, float] | None = None
        if scale:
            try:
                low, high = map(float, scale.split(","))
            except ValueError:
                raise UserError("--scale", repr(scale), "two numbers", "--scale 1,5") from None
            ends = low, high
        facts = label_file.import_labels(at.config, file, at.settings, rater=rater, scale=ends)
        count_text = f"{count(facts['n_labels'])} labels for {facts['metric']}"
        run_lines = [f"  {run}: {count(n)} of its answers have a label" for run, n in facts["by_run"].items()]
    blank = f", {count(facts['n_blank'])} rows left blank" if facts["n_blank"] else ""
    print_result(facts, [f"{file}: {count_text} by {rater}{blank}", *run_lines], as_json)
    for runs, n in facts.get("counted", {}).items():
        if n < (n_rated := facts["by_pair"][runs]):
            say(
                f"warning: {runs}: {count(n)} of {count(n_rated)} rated pairs are a random part, those up to"
                " where 95 % in the order of drawing have a rating; rating chosen pairs skews the win rate;"
                " next: rate the rows left blank, from the first one"
            )
    say(f"next: {at.command_line().command('report')}")


Out = Annotated[Path | None, Option("The new file. A manifest is written next to it.")]
PerSender = Annotated[int, Option("Rows of one sender, at most; the newest stay.", min=1)]
_PLACES_SHOWN = 3  # for each reason of rows left out


@verb(feedback_app, "log.jsonl", "thumbs.csv")
def feedback_add(
    file: Annotated[Path, Argument("A log: OpenAI's JSON Lines, or a table of requests and answers.")],
    at: ExperimentFile,
    as_json: Json = False,
) -> None:
    """Store the rows of a log, with personal data masked.

    A row that is stored already is not stored again. Names of persons are not found.
    """
    from harness.cli.progress_bar import TerminalProgress
    from harness.lifecycle.feedback import add_feedback
    from harness.store import Store

    loaded = at.load()
    with TerminalProgress().stage(f"masking {file}") as advance:
        region = loaded.experiment.feedback.region
        added = add_feedback(Store(loaded.folder / "runs"), str(file), region, advance)
    known_text = f", {count(added.known)} are there already" if added.known else ""
    lines = [f"{added.file}: {pluralize(added.added, 'row')} added{known_text}"]
    if added.added:
        parts = ("thumb", "correction", "preference")
        lines.append("  " + ", ".join(pluralize(getattr(added, f"{name}s"), name) for name in parts))
    if added.masked:
        lines.append("  masked: " + ", ".join(f"{count(n)} {kind}" for kind, n in added.masked.items()))
    if added.without_sender:
        n_rows = pluralize(added.without_sender, "row")
        lines.append(f"  {n_rows} without a sender: no cap per sender holds for them")
    for reason, places in added.left_out.items():
        shown = ", ".join(places[:_PLACES_SHOWN]) + (", …" if len(places) > _PLACES_SHOWN else "")
        lines.append(f"  left out: {pluralize(len(places), 'row')}, {reason} ({shown})")
    if added.unread:
        lines.append(f"  columns that are not read: {', '.join(sorted(added.unread))}")
    print_result(added._asdict(), lines, as_json)
    kind = "rows" if added.corrections else "pairs" if added.preferences else ""
    command = ("feedback", kind, "--out", f"{kind}.jsonl") if kind else ("decide",)
    say(f"next: {at.command_line().command(*command)}")


@verb(feedback_app, "--out corrections.jsonl", "--test-items marked.csv --out items.jsonl")
def feedback_rows(
    at: ExperimentFile,
    out: Out = None,
    per_sender: PerSender = 3,
    test_items: Annotated[Path | None, Option("CSV with id and marked_by: make test items.")] = None,
    as_json: Json = False,
) -> None:
    """Write corrections as training rows.

    Rows that ask what is evaluated are left out. Test items are made of marked rows alone.
    """
    from harness.lifecycle.corrections import make_rows, make_test_items

    out = require_out(out, [])
    session, _ = at.open_session(dry_run=True)
    region = session.experiment.feedback.region
    if test_items:
        items = make_test_items(session.store, session.target, region, str(test_items))
        save_made(items, out, as_json)
        say(f"next: more_targets in {at.config}, a task with data: {{test: {name_beside(at.config, out)}}}")
        return
    save_made(make_rows("rows", session.store, session.tasks, region, per_sender, str(out)), out, as_json)
    check = f"harness data check {as_operand(str(out))}"
    say(f"next: {check}, then train: {name_beside(at.config, out)} on a candidate in {at.config}")


@verb(feedback_app, "--out preferences.jsonl")
def feedback_pairs(
    at: ExperimentFile, out: Out = None, per_sender: PerSender = 3, as_json: Json = False
) -> None:
    """Write preferences as pairs of answers.

    Pairs that ask what is evaluated are left out.
    """
    from harness.lifecycle.corrections import make_rows

    out = require_out(out, [])
    session, _ = at.open_session(dry_run=True)
    region = session.experiment.feedback.region
    save_made(make_rows("pairs", session.store, session.tasks, region, per_sender, str(out)), out, as_json)
    say(f"next: train: {name_beside(at.config, out)} on a candidate with method: dpo in {at.config}")
