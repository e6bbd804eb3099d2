"""Declaration of verbs and their options, and the options that verbs share.

Invariant: an option is declared once, at the parameter that receives it. A verb that takes a tuple of options
gets them as one value.
"""

import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, wraps
from inspect import Parameter, Signature, signature
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeVar

import typer

from harness.errors import HarnessError, UserError

if TYPE_CHECKING:
    from harness.config import CommandLine, LoadedExperiment
    from harness.evaluation.session import Session

_Verb = TypeVar("_Verb", bound=Callable[..., None])
_BEFORE = ("\b", "Examples:")  # below a line of \b, lines are not joined
CONFIG, RUNS = Path("harness.yaml"), Path("runs")


class Option(NamedTuple):
    """An option: its help, its name if it is not the parameter's, and a short name.

    With `env` the variable HARNESS_NAME sets it too.
    """

    help: str
    name: str = ""
    short: str = ""
    env: bool = False
    min: float | None = None
    max: float | None = None
    metavar: str | None = None
    formats: tuple[str, ...] = ()

    def declare(self, parameter: str) -> Any:
        """Declare the option to typer; a switch has no form with `--no-`."""
        name = self.name or f"--{parameter.replace('_', '-')}"
        variable = name.partition("/")[0].strip("-").replace("-", "_").upper()
        lowest, highest = self.min or 0.0, inf if self.max is None else self.max

        def refuse_outside(value: Any) -> Any:
            if value is not None and not lowest <= value <= highest:
                nearest = highest if value > highest else lowest
                raise UserError(name, str(value), self.range, f"such as {name} {nearest:g}")
            return value

        return typer.Option(
            *(name, *filter(None, [self.short])),
            help=f"{self.help} [{self.range}]" if self.range else self.help,
            envvar=f"HARNESS_{variable}" if self.env else None,
            callback=refuse_outside if self.range else None,
            metavar=self.metavar,
            formats=list(self.formats) or None,
        )

    @property
    def range(self) -> str:
        """The accepted numbers, in words; empty if all are, or the option is not a number."""
        if self.min is None:
            return ""
        return f"{self.min:g} or more" if self.max is None else f"{self.min:g} to {self.max:g}"


class Argument(NamedTuple):
    """An argument: its help, and its placeholder there if that is not the parameter's name."""

    help: str
    metavar: str | None = None

    def declare(self, _: str) -> Any:
        """Declare the argument to typer."""
        return typer.Argument(help=self.help, metavar=self.metavar)


def verb(
    group: typer.Typer, *arguments: str, name: str | None = None, heading: str | None = None
) -> Callable[[_Verb], _Verb]:
    """Add a function as a verb of a group, with examples of its arguments at the end of its help.

    By default the verb has the function's name, without that of the group before it.
    """
    of_group = f"{group.info.name} " if isinstance(group.info.name, str) else ""

    def add(function: _Verb) -> _Verb:
        # Every field of a tuple of options becomes a parameter; the function receives the tuples.
        kinds = {name: kind for name, kind in function.__annotations__.items() if name != "return"}
        tuples = {name: kind for name, kind in kinds.items() if hasattr(kind, "_fields")}

        @wraps(function)
        def call(**options: Any) -> None:
            tuple_values = {name: kind(*map(options.pop, kind._fields)) for name, kind in tuples.items()}
            try:
                function(**options, **tuple_values)
            except HarnessError as error:
                experiment_files = [ExperimentFile(config=options["config"])] if "config" in options else []
                for at in (*tuple_values.values(), *experiment_files):
                    if isinstance(at, ExperimentFile | StoredRuns):
                        error.complete = at.command_line().complete
                raise

        defaults = {name: parameter.default for name, parameter in signature(function).parameters.items()}
        parameters = list(_parameters(kinds, defaults))
        vars(call)["__signature__"] = Signature(parameters)
        call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        verb_name = name or function.__name__.removeprefix(of_group.replace(" ", "_")).replace("_", "-")
        commands = (f"{of_group}{verb_name} {example}".rstrip() for example in arguments)
        group.command(verb_name, rich_help_panel=heading, epilog=examples(*commands))(call)
        return function

    return add


def examples(*commands: str) -> str:
    """Format commands, written without `harness`, for the end of a verb's help, one per line."""
    return "\n".join((*_BEFORE, *(f"  harness {command}" for command in commands)))


def example_commands(command: Any) -> list[str]:
    """Return the example commands of a verb's help."""
    return [line.strip() for line in (command.epilog or "").splitlines()[len(_BEFORE) :]]


def _parameters(kinds: dict[str, Any], defaults: dict[str, Any]) -> Iterator[Parameter]:
    for name, kind in kinds.items():
        if hasattr(kind, "_fields"):
            yield from _parameters(kind.__annotations__, kind._field_defaults)
        else:
            default = defaults.get(name, Parameter.empty)
            yield Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=_declare(name, kind))


@cache
def _declare(name: str, kind: Any) -> Any:
    if not hasattr(kind, "__metadata__"):
        return kind
    (declared,) = kind.__metadata__
    return Annotated[kind.__origin__, declared.declare(name) if hasattr(declared, "declare") else declared]


Config = Annotated[Path, Option("The experiment file.", short="-c", env=True)]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="a.b=value", help="Keys of harness.yaml to override.")
]
Json = Annotated[bool, Option("Print JSON instead of text.", "--json", env=True)]
Verbose = Annotated[bool, Option("Print all notes and tables.")]
Candidates = Annotated[list[str] | None, Option("Only these candidates: a,b.", env=True)]
RunsFolder = Annotated[Path, Option("The folder of stored runs.", env=True)]
Precision = Annotated[
    Literal["auto", "bf16", "fp16", "fp32"] | None, Option("Precision of the weights; overrides `precision`.")
]
Seed = Annotated[int, Option("Seed of the random draw.")]
DryRun = Annotated[bool, Option("Print what would change, and write nothing.")]
DryRequests = Annotated[bool, Option("Print the requests and their highest cost, and stop.", "--dry-run")]
Temperature = Annotated[float, Option("Sampling temperature; 0 is greedy.", min=0, max=2)]
TopP = Annotated[float, Option("Probability of the likeliest tokens to sample from.", min=0.01, max=1)]
AnswerTokens = Annotated[int | None, Option("Tokens of an answer, at most.", "--max-new-tokens", min=1)]
MaxCost = Annotated[float | None, Option("Budget in USD; no request is sent that could exceed it.", min=0)]


class ExperimentFile(NamedTuple):
    """An experiment's file, and overrides of its keys."""

    overrides: Overrides = None
    config: Config = CONFIG

    @property
    def settings(self) -> list[str]:
        """The overrides, each as a.b=value."""
        return self.overrides or []

    @property
    def reports(self) -> Path:
        """The folder of reports next to the file."""
        return self.config.parent / "reports"

    def override(self, values: Mapping[str, object]) -> "ExperimentFile":
        """Override further keys, except those whose value is None."""
        written = [f"{key}={value}" for key, value in values.items() if value is not None]
        return self._replace(overrides=[*self.settings, *written])

    def command_line(self, candidates: Sequence[str] = ()) -> "CommandLine":
        """Keep the typed options that the next commands need."""
        from harness.config import CommandLine

        return CommandLine.from_options(self.config, self.settings, candidates)

    def load(self, candidates: Sequence[str] | None = ()) -> "LoadedExperiment":
        """Read the file, for some candidates, all, or with None for its tasks alone."""
        from harness import config

        return config.load(self.config, self.settings, candidates)

    def open_session(self, *candidates: str, dry_run: bool = False) -> "tuple[Session, LoadedExperiment]":
        """Open a session with data and model, for some candidates or all; return it and the experiment."""
        from harness.cli.progress_bar import TerminalProgress
        from harness.experiment import Scope, prepare_session

        loaded = self.load(candidates)
        return prepare_session(loaded, Scope(dry_run=dry_run), TerminalProgress()), loaded

    def open_candidate(
        self, name: str, where: str, *, dry_run: bool = False
    ) -> "tuple[Session, LoadedExperiment]":
        """Open a session for one candidate, and return it and the experiment; refuse the name of a grid."""
        session, loaded = self.open_session(name, dry_run=dry_run)
        if name not in session.candidates:
            found = f"{name}, a grid of {len(loaded.selected)} candidates"
            raise UserError(where, found, "one candidate", f"one of: {', '.join(loaded.selected)}")
        return session, loaded


class StoredRuns(NamedTuple):
    """A folder of stored runs: next to an experiment's file, or given by its name."""

    config: Config = CONFIG
    runs: Annotated[Path | None, Option("Stored runs; by default runs next to the file.", env=True)] = None

    @property
    def folder(self) -> Path:
        """The folder, by default next to the experiment's file."""
        return self.config.parent / RUNS if self.runs is None else self.runs

    def command_line(self) -> "CommandLine":
        """Keep the typed file and folder for the next commands."""
        typed = ExperimentFile(config=self.config).command_line()
        return typed if self.runs is None else typed._replace(runs=str(self.runs))


class RowColumns(NamedTuple):
    """Columns of prompts and answers, or templates over several, if they are not recognised."""

    prompt: Annotated[str | None, Option("The question's column, or a template, if not recognised.")] = None
    reference: Annotated[str | None, Option("The answer's column, or a template, if not recognised.")] = None


def name_beside(config: Path, file: Path) -> str:
    """Write a file's path as an experiment's file names it: relative to its folder."""
    return str(file) if file.is_absolute() else os.path.relpath(file, config.parent)


def config_option(config: Path) -> str:
    """Write the option that names a file, quoted for a shell; empty for the default."""
    return "" if config == CONFIG else f" -c {shlex.quote(str(config))}"


def require_out(out: Path | None, inputs: list[str], *, dry_run: bool = False, folder: bool = False) -> Path:
    """Return the file or folder to write, if it can be written; a dry run needs none."""
    from harness.data.edit.save import refuse_output

    if out is not None:
        refuse_output(out, inputs, folder=folder)
    elif not dry_run:
        kind = "folder" if folder else "file"
        raise UserError("--out", "no --out", f"a new {kind}", f"name it: --out {kind.upper()}")
    return out or Path("dry-run")
