"""A row with the place where it is written, as errors name it."""

from pathlib import Path
from typing import Any, NamedTuple

from harness.errors import Problem
from harness.spec import HUB

ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
SHOWN = 10


class Row(NamedTuple):
    """One row: `file:line`, and its fields."""

    where: str
    fields: dict[str, Any]


class Rows(NamedTuple):
    """The rows of a file; `stem` begins the ids of rows that have none."""

    shown: str
    stem: str
    rows: list[Row]


def display_path(path: str) -> str:
    """Shorten a path below the working directory; a hub id stays."""
    file = Path(path)
    below = not path.startswith(HUB) and file.is_relative_to(Path.cwd())
    return str(file.relative_to(Path.cwd())) if below else path


def kind_of(file: Path) -> str:
    """Return what the name of a file of rows ends with, without `.gz`; empty of another."""
    name = file.name.lower().removesuffix(".gz")
    return next((ending for ending in ENDINGS if name.endswith(ending)), "")


def cap_problems(problems: list[Problem], where: str, what: str) -> list[Problem]:
    """Keep the first ten problems and say how many there are."""
    if len(problems) <= SHOWN:
        return problems
    found = f"{len(problems):,} {what}, of which the first {SHOWN} are shown"
    return [*problems[:SHOWN], Problem(where, found, "none", "mend these; the next call names the others")]
