"""Command that checks rows before anything is trained on them: data check.

Invariant: no file of the user's is changed; findings alone end with exit code 0 unless --fail-on says
otherwise.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from harness.cli.app import data_app, print_result, say
from harness.cli.options import CONFIG, Argument, Config, Json, Option, config_option, verb
from harness.errors import UserError
from harness.formatting import pluralize

if TYPE_CHECKING:
    from harness.spec import Experiment

_Columns = "the column, or a template over columns, where the guess is wrong."


@verb(
    data_app,
    "harness data check tickets.csv",
    "harness data check train.jsonl --test test.jsonl --html check.html",
    name="check",
)
def data_check(
    files: Annotated[list[str], Argument("Rows: files, or hub:owner/name.", "FILE...")],
    test: Annotated[
        list[str] | None, Option("Rows to test on: contamination, and how training matches them.")
    ] = None,
    base: Annotated[
        str | None, Option("Count tokens by this model; without it by harness.yaml's `base_model`.")
    ] = None,
    prompt: Annotated[str | None, Option(f"The prompt: {_Columns}")] = None,
    reference: Annotated[str | None, Option(f"The answer: {_Columns}")] = None,
    source: Annotated[str | None, Option("The column that says where a row comes from.")] = None,
    date: Annotated[str | None, Option("The column of a row's date, for freshness.")] = None,
    date_format: Annotated[str | None, Option("The form of the dates, such as %d.%m.%Y.")] = None,
    embeddings: Annotated[
        str | None, Option("Look for duplicates and contamination by this sentence-transformers model too.")
    ] = None,
    html: Annotated[Path | None, Option("Write the page as one file of HTML.")] = None,
    fail_on: Annotated[
        Literal["error", "warning"] | None,
        Option("End with exit code 1 where there is such a finding, or a worse one."),
    ] = None,
    config: Config = CONFIG,
    as_json: Json = False,
) -> None:
    """Find duplicates, contamination, wrong labels, damage.

    The worst stands first, each with the command that fixes it. Nothing is changed.
    """
    from harness.cli.progress_bar import TerminalProgress
    from harness.experiment.check_rows import RowCheck, examine_rows
    from harness.report.findings import data_document, data_html, data_json, refuse_page

    if html:
        refuse_page(html)
    experiment = _experiment(config, is_needed=base is None)
    train = experiment.target.data.source("train") if experiment else None
    options = RowCheck(
        files,
        tuple(test or ()),
        base or (experiment.base_model if experiment else None),
        prompt,
        reference,
        source,
        date,
        embeddings=embeddings,
        date_format=date_format,
        pages={train: config_option(config)} if train else {},
    )
    table, findings = examine_rows(options, TerminalProgress())
    title = f"Data check of {', '.join(table.files)}: {pluralize(table.n, 'row')}"
    if html:
        html.write_text(data_html(findings, title), encoding="utf-8")
        say(f"wrote {html}")
    print_result(data_json(findings, table.files, table.n), data_document(findings, title), as_json)
    alarming = {"error": ("error",), "warning": ("error", "warning"), None: ()}[fail_on]
    raise typer.Exit(1 if any(f.severity in alarming for f in findings) else 0)


def _experiment(config: Path, *, is_needed: bool) -> "Experiment | None":
    """Read the experiment, where there is one or one is named; one of neither that is broken is said."""
    if config == CONFIG and not config.is_file():
        return None
    from harness import config as configuration

    try:
        return configuration.load(config).experiment
    except UserError as error:
        if is_needed or config != CONFIG:
            raise
        problems = pluralize(len(error.problems), "problem")
        say(f"warning: {config} has {problems} and is left aside; harness doctor says more")
        return None
