"""Command that writes an experiment for rows of data: init.

Invariant: nothing is trained or evaluated.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from harness.cli.app import EXPERIMENT, app, print_lines, say
from harness.cli.options import Argument, Json, Option, config_option, verb
from harness.errors import UserError

if TYPE_CHECKING:
    from harness.experiment.scaffold import Request
    from harness.progress import Progress


@verb(
    app,
    "harness init tickets --data tickets.csv",
    "harness init faq --data faq.jsonl --documents manual.jsonl",
    "harness init chat --data hub:owner/name --base-model Qwen/Qwen2.5-0.5B-Instruct",
    heading=EXPERIMENT,
)
def init(
    folder: Annotated[Path, Argument("Where to write; a file is taken for --data.", "DIR")] = Path(),
    data: Annotated[
        str | None,
        Option("Your rows: a file, or hub:owner/name. Without it an example to edit is written.", env=True),
    ] = None,
    task: Annotated[
        str | None,
        Option("The kind of task, if guessed wrong: labels, choice, question, preference or text."),
    ] = None,
    base_model: Annotated[
        str, Option("The base model: a hub id, a folder, or the embedded one.", env=True)
    ] = "smollm2-135m",
    pairs: Annotated[str | None, Option("A file of preference pairs.", env=True)] = None,
    documents: Annotated[str | None, Option("A file of documents to retrieve from.", env=True)] = None,
    prompt: Annotated[
        str | None, Option("The question's column, or a template over several, if guessed wrong.")
    ] = None,
    reference: Annotated[str | None, Option("The answer's column, or a template, if guessed wrong.")] = None,
    instruction: Annotated[
        str | None, Option("The system text to ask with, instead of the draft that is made from your rows.")
    ] = None,
    minutes: Annotated[
        float,
        Option(
            "Longest estimated time of compare on this machine; rows and sweep are cut to it.",
            env=True,
            min=0.1,
        ),
    ] = 20.0,
    as_json: Json = False,
) -> None:
    """Write an experiment for your rows that runs as it is.

    Without --data it writes a small example to edit. It never overwrites a file.
    """
    from harness.cli.progress_bar import TerminalProgress
    from harness.experiment import scaffold

    if folder.is_file() and data is None:  # rows are meant
        folder, data = Path(), str(folder)
    kind = scaffold.parse_kind(task)
    rows = data or str(scaffold.write_example(folder))
    request = scaffold.Request(
        folder, rows, base_model, pairs, documents, prompt, reference, kind, minutes, instruction
    )
    progress = TerminalProgress()
    with progress.stage(f"reading {rows}"):
        proposal = scaffold.propose(request)
    for line in _check(request, progress) if data else ():
        say(f"data: {line}")
    written = [*([] if data else [rows]), *map(str, scaffold.write(proposal))]
    for line in proposal.warnings:
        say(line)
    plain = {
        "task": proposal.kind,
        "metrics": proposal.task.metrics,
        "candidates": list(proposal.candidates),
        "said": proposal.said,
        "files": written,
    }
    command = f"harness compare{config_option(folder / 'harness.yaml')}"
    step = f"next: {command} --dry-run estimates tokens and time; {command} runs it"
    print_lines(plain, [*proposal.said, f"wrote {' and '.join(written)}", step], as_json)


def _check(request: "Request", progress: "Progress") -> tuple[str, ...]:
    """Check the rows before anything is made of them, or say what keeps them from being read."""
    from harness.experiment.check_rows import RowCheck, check_briefly

    options = RowCheck([request.data], prompt=request.prompt, reference=request.reference)
    try:
        found = check_briefly(options, progress)
        return (*found.lines, f"the whole page: {found.command}")
    except UserError as error:
        return tuple(map(str, error.problems))
