"""Commands that rewrite rows of data: clean, dedup, split, mix and sample.

Invariant: each writes new files beside a manifest, never over a file, whole or not at all; stdout says what
became of the rows, stderr how they were read and what to do next.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.app import Json, data_app, print_json, say

if TYPE_CHECKING:
    from harness.data.columns import Roles
    from harness.data.edit import Edit, Outcome, Saved
    from harness.data.readers import Rows

_SEEN = 1_000  # rows by which the columns of a file are recognised

File = Annotated[str, typer.Argument(help="The rows: JSON Lines, JSON, CSV, Parquet, or hub:owner/name.")]
Out = Annotated[
    Path | None,
    typer.Option("--out", help="The new file; its name says the kind. A manifest is beside it."),
]
Prompt = Annotated[str | None, typer.Option("--prompt", help="The column that asks, if not guessed.")]
Reference = Annotated[
    str | None, typer.Option("--reference", help="The column that answers, if not guessed.")
]
License = Annotated[
    list[str] | None, typer.Option("--license", help="The rows' licence, kept in the manifest.")
]
Note = Annotated[
    list[str] | None, typer.Option("--note", help="Kept in the manifest, such as: names are made up.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would change, and write nothing.")]


@data_app.command("clean")
def data_clean(
    file: File,
    out: Out = None,
    decisions: Annotated[
        Path | None,
        typer.Option("--decisions", help="Decisions on rows, as the Data page keeps them."),
    ] = None,
    prompt: Prompt = None,
    reference: Reference = None,
    licenses: License = None,
    notes: Note = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Mend encoding, Unicode forms and trailing spaces; drop rows without a question or an answer."""
    from harness.data import readers
    from harness.data.edit import Edit
    from harness.data.edit.clean import clean
    from harness.data.edit.decisions import read_decisions

    _refuse(out, [file], dry_run=dry_run)
    roles = _roles(_beginning(file), prompt, reference)
    found = read_decisions(decisions, file, roles) if decisions else {}
    used = _digests({"decisions": decisions})
    edit = Edit("clean", {**roles._asdict(), **used}, [file], licenses or (), notes or ())
    outcomes = clean(readers.stream(file, "train"), roles, found)
    _save(edit, outcomes, out, dry_run=dry_run, as_json=as_json)


def _beginning(file: str) -> "Rows":
    """Read the first rows of a file, by which its columns are recognised.

    Raises:
        UserError: there is none.
    """
    from itertools import islice

    from harness.data import readers
    from harness.data.edit.save import Edit, nothing_left

    rows = list(islice(readers.stream(file, "train"), _SEEN))
    if not rows:
        raise nothing_left(Edit("", {}, [file]), 0)
    return readers.Rows(readers.display_path(file), "", rows)


def _roles(content: "Rows", prompt: str | None, reference: str | None) -> "Roles":
    """Find the columns that ask and answer, and say which they are."""
    from harness.data.columns import find_roles

    roles = find_roles(content, prompt, reference)
    asks, answers = (", ".join(map(repr, columns)) or "no column" for columns in roles)
    say(f"{content.shown}: {asks} asks, {answers} answers")
    return roles


def _digests(files: dict[str, Path | None]) -> dict[str, object]:
    """Name the files that an edit takes beside its rows, each with the digest of its content."""
    from harness.data.readers import display_path
    from harness.records import checksum

    return {k: {"file": display_path(str(f)), "sha256": checksum(f)} for k, f in files.items() if f}


def _refuse(out: Path | None, inputs: list[str], *, dry_run: bool = False) -> None:
    """Refuse an output that cannot be used; only a dry run needs none.

    Raises:
        UserError: no output is named, or it cannot be used.
    """
    from harness.data.edit import refuse_output
    from harness.errors import Problem, UserError

    if out is not None:
        refuse_output(out, inputs)
    elif not dry_run:
        raise UserError(Problem("harness data", "no --out", "a new file", "name it: --out FILE"))


def _save(
    edit: "Edit",
    outcomes: "Iterable[Outcome]",
    out: Path | None,
    *,
    dry_run: bool = False,
    as_json: bool = False,
) -> None:
    """Write what became of the rows, and print it; in a dry run each change as well."""
    from harness.data.edit import save

    saved = save(edit, outcomes, out or Path("dry-run"), dry_run=dry_run)
    if dry_run and not as_json:
        for change in saved.changes:
            print(change)
    _print(saved, as_json)
    if dry_run:
        say("nothing is written in a dry run")


def _print(saved: "Saved", as_json: bool) -> None:
    """Print the manifest as JSON, or what became of the rows and why."""
    from harness.formatting import count

    if as_json:
        print_json(saved.manifest)
        return
    counts = saved.manifest["counts"]
    print(", ".join(f"{count(n)} {what}" for what, n in counts.items() if n or what in ("read", "written")))
    for reason, n in saved.manifest["reasons"].items():
        print(f"  {count(n)} {reason}")
    for output in saved.manifest["outputs"]:
        print(f"{output['file']}  sha256 {output['sha256'][:16]}")
