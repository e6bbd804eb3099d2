"""Command that writes an experiment for rows of data: init.

Invariant: nothing is trained or evaluated.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.app import (
    Json,
    app,
    config_option,
    print_json,
    say,
)

if TYPE_CHECKING:
    from harness.experiment.scaffold import Request


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write.")] = Path(),
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            envvar="HARNESS_DATA",
            help="Your rows: a file, or hub:owner/name. Without it an example to edit is written.",
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option("--task", help="labels, question, preference or text, where the guess is wrong."),
    ] = None,
    base_model: Annotated[
        str,
        typer.Option(
            "--base-model", envvar="HARNESS_BASE_MODEL", help="A hub id, a folder, or the embedded one."
        ),
    ] = "smollm2-135m",
    pairs: Annotated[
        str | None, typer.Option("--pairs", envvar="HARNESS_PAIRS", help="A file of preference pairs.")
    ] = None,
    documents: Annotated[
        str | None,
        typer.Option("--documents", envvar="HARNESS_DOCUMENTS", help="A file of documents to retrieve from."),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="The column that asks, or a template over columns.")
    ] = None,
    reference: Annotated[
        str | None, typer.Option("--reference", help="The column that answers, or a template.")
    ] = None,
    minutes: Annotated[
        float,
        typer.Option(
            "--minutes",
            envvar="HARNESS_MINUTES",
            min=0.1,
            help="Bound of what compare is estimated to take here; rows and sweep are cut to it.",
        ),
    ] = 20.0,
    as_json: Json = False,
) -> None:
    """Look at your rows and write a folder in which compare runs as it is."""
    from harness.experiment import scaffold

    kind = scaffold.kind_named(task)
    rows = data or str(scaffold.write_example(folder))
    request = scaffold.Request(folder, rows, base_model, pairs, documents, prompt, reference, kind, minutes)
    proposal = scaffold.propose(request)
    for line in _check(request) if data else ():
        say(f"data: {line}")
    written = [*([] if data else [rows]), *map(str, scaffold.write(proposal))]
    for line in proposal.warnings:
        say(line)
    if as_json:
        facts = {
            "task": proposal.kind,
            "metrics": proposal.task.metrics,
            "candidates": list(proposal.candidates),
        }
        print_json({**facts, "said": proposal.said, "files": written})
        return
    for line in proposal.said:
        print(line)
    print(f"wrote {' and '.join(written)}")
    config = config_option(folder / "harness.yaml")
    print(f"next: harness compare{config} --dry-run says what would run; without it, it runs")


def _check(request: "Request") -> tuple[str, ...]:
    """Check the rows before anything is made of them, or say what keeps them from being read."""
    from harness.errors import UserError
    from harness.experiment.check_rows import Asked, check_briefly

    asked = Asked([request.data], prompt=request.prompt, reference=request.reference)
    try:
        found = check_briefly(asked)
        return (*found.lines, f"the whole page: {found.command}")
    except UserError as error:
        return tuple(map(str, error.problems))
