"""Check of rows before anything is trained on them: findings, the worst first.

Invariant: nothing is changed and nothing is trained that is kept; the same files, columns and tokenizer give
the same findings. A file of this package is a check, and its name is the check's: it exports `check(table,
given)`, which yields findings, and its docstring states how often clean rows raise an alarm. What an alarm
tests against chance is tested at `ALPHA` for the whole file of rows, by Bonferroni over all that the check
looks at.
"""

import re
import shlex
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from harness.data.edit.row_files import row_suffix
from harness.data.readers import file_of
from harness.errors import as_argument
from harness.spec import HUB

if TYPE_CHECKING:
    from harness.data.check._table import Reading, Table
    from harness.data.overlap import Encode

__all__ = [
    "ALPHA",
    "DECIDE",
    "MOST_MODELLED",
    "Finding",
    "Given",
    "Severity",
    "Tokenizer",
    "check_rows",
    "names",
]

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
ALPHA = 0.001  # chance that a check which tests against chance raises an alarm on clean rows
DECIDE = "harness dashboard  # its Data page, then: harness data clean FILE --out OUT --decisions DECISIONS"
MOST_MODELLED = 20_000  # rows that a classifier or a language guesser sees, drawn by class


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to know of the rows: what was found, where, what it means, and the command that mends it.

    An `error` makes results wrong, a `warning` is likely to harm a training, a `note` is a figure and no
    alarm. `count` of `of` rows show it; `rows` are their places, `file:line`, all of them. `labels` are the
    labels that are proposed for `rows`, and `beside` says what each repeats or is like, where there is such.
    """

    check: str
    severity: Severity
    title: str
    meaning: str
    count: int = 0
    of: int = 0
    rows: tuple[str, ...] = ()
    example: str = ""
    command: str = ""
    labels: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()

    @property
    def share(self) -> float | None:
        """Share of the rows that show it, in [0, 1]; None where it is not of rows."""
        return self.count / self.of if self.of else None


class Tokenizer(NamedTuple):
    """Tokens by a model's tokenizer: its name, its context (None: unknown), and the lengths of texts."""

    name: str
    context: int | None
    lengths: Callable[[Sequence[str]], list[int]]


@dataclass(frozen=True, slots=True)
class Given:
    """Beside the rows: those that are tested on, a tokenizer, and the least difference that n items show.

    `most` rows are judged by classifiers and language guesses, drawn by class.
    `detectable(n, d)` is in [0, 1], for the share d of items that two models answer differently.
    `encode` gives texts' embeddings, by which duplicates and leaks are looked for as well.
    """

    test: "Table | None" = None
    tokenizer: Tokenizer | None = None
    detectable: Callable[[int, float], float] | None = None
    most: int = MOST_MODELLED
    encode: "Encode | None" = None


def names() -> list[str]:
    """List the checks, by name."""
    return sorted(file.stem for file in Path(__file__).parent.glob("*.py") if not file.stem.startswith("_"))


def check_rows(table: "Table", given: Given, only: Iterable[str] | None = None) -> list[Finding]:
    """Run the checks, all or those that are named, and return their findings, the worst first."""
    chosen = names() if only is None else list(only)
    found = [f for name in chosen for f in import_module(f"{__name__}.{name}").check(table, given)]
    found = [_mask_and_fill(f, table.files, table.reading.named, table.reading, table.columns) for f in found]
    return sorted(found, key=lambda f: (SEVERITIES.index(f.severity), -(f.share or 0), f.check))


def _mask_and_fill(
    finding: Finding,
    files: Sequence[str],
    named: Sequence[str] = (),
    reading: "Reading | None" = None,
    columns: Container[str] = (),
) -> Finding:
    """Mask personal data, and put files and the columns that were named into the command."""
    from harness.data.check.personal_data import mask_text

    places = set(map(file_of, finding.rows))
    of = [f for f in files if f in places] or [files[0]]
    command, comment = (*finding.command.split("  # ", 1), "")[:2]
    if len(files) > 1 and _lies_in_two_files(finding):
        mixed, free = _new_name(files[0], "mixed"), ("source", "file", "from_file", "mixed_from")
        column = next(name for name in free if name not in columns)
        joining = f"harness data mix {' '.join(map(as_argument, files))} --column {column}"
        command = _fill_command(command, mixed, reading.columns if reading else named)
        command = f"{joining} --out {as_argument(mixed)} && {command}"
    elif "DECISIONS" in finding.command:
        command, comment = _fill_command(finding.command, of[0], named), ""
    else:
        command = " && ".join(dict.fromkeys(_fill_command(command, file, named) for file in of))
    command = f"{command}  # {comment}" if comment else command
    title, example = mask_text(finding.title), mask_text(finding.example)
    beside = tuple(map(mask_text, finding.beside))
    return replace(finding, command=command, title=title, example=example, beside=beside)


def _lies_in_two_files(finding: Finding) -> bool:
    """Tell whether `data dedup` of one file cannot mend it, for what a row repeats stands in another."""
    if "dedup FILE" not in finding.command or "--against" in finding.command:
        return False
    pairs = zip(finding.rows, finding.beside, strict=False)
    heads = ((file_of(row), other) for row, other in pairs)
    return any(not other.startswith((f"{file}:", f"{file} ")) for file, other in heads)


def _fill_command(command: str, file: str, named: Sequence[str]) -> str:
    """Put a file, the options that name its columns, and what is written into a command."""
    verb = re.search(r"harness data (\w+)", command)
    names = {
        "FILE": " ".join(filter(None, (as_argument(file), shlex.join(named)))),
        "OUT": as_argument(_new_name(file, verb[1] if verb else "new")),
        "DECISIONS": as_argument(f"{file}.decisions.json"),
    }
    # A file that stands in the command already may have such a name.
    return re.sub(rf"(?<!\S)(?:{'|'.join(names)})(?!\S)", lambda word: names[word[0]], command)


def _new_name(file: str, verb: str) -> str:
    """Name what a verb writes, beside what it reads: a file of the same kind, or the folder of a split."""
    suffix = row_suffix(file)
    # A data set of the hub has no folder here.
    stem = (
        file.rpartition("/")[2].replace(":", "-") if file.startswith(HUB) else file[: len(file) - len(suffix)]
    )
    return f"{stem}.{verb}{'' if verb == 'split' else suffix or '.jsonl'}"
