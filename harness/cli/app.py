"""The application that verbs are added to, and the options that several of them share.

Invariant: importing this loads nothing heavy.
"""

from pathlib import Path
from typing import Annotated

import typer

from harness import __version__

app = typer.Typer(
    help="Know, with evidence, whether to fine-tune.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
runs_app = typer.Typer(
    help="List, show, compare or remove stored runs.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(runs_app, name="runs")
regressions_app = typer.Typer(
    help="Pin items that must never be lost again.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(regressions_app, name="regressions")

Config = Annotated[
    Path, typer.Option("--config", "-c", envvar="HARNESS_CONFIG", help="The experiment's file.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="a.b=value", help="Overrides of the file's keys.")
]
Json = Annotated[bool, typer.Option("--json", envvar="HARNESS_JSON", help="Print JSON instead of text.")]
Candidates = Annotated[
    list[str] | None,
    typer.Option("--candidates", envvar="HARNESS_CANDIDATES", help="Only these, by name: a,b."),
]
RunsFolder = Annotated[Path, typer.Option("--runs", envvar="HARNESS_RUNS", help="The folder of stored runs.")]
Precision = Annotated[
    str | None,
    typer.Option("--precision", help="bf16, fp16 or fp32, in place of the experiment's `precision`."),
]


def _print_version(asked: bool) -> None:
    if asked:
        print(f"harness-evals {__version__}")
        raise typer.Exit


@app.callback()
def before_verb(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Take the options that stand before a verb; each does its work itself."""


def with_precision(overrides: list[str] | None, precision: str | None) -> list[str]:
    """Write --precision as the override that it stands for."""
    return [*(overrides or []), *([f"precision={precision}"] if precision else [])]
