"""Every error a user can meet, each as found, expected and next step.

Invariant: a `UserError` carries all problems of its source at once, so one run of the command shows
everything that has to be mended. A function `refuse_…` raises one unless its docstring names another error.

    HarnessError            exit 1   something failed while working
    ├── UserError           exit 2   what was written or given cannot be used
    ├── IncompatibleRuns    exit 5   a baseline is missing, or two runs must not be compared
    ├── Unscored            exit 1   a metric cannot score one answer; it counts as failed
    └── CandidateFailed     exit 1   one candidate died; the others go on
        ├── Diverged        exit 1   its loss was no number, and would be again
        └── SharedFailure   exit 1   by what the other trials of its search share, such as a judge
"""

import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches

from harness.masking import mask_secrets

# What reading a file raises that is not what its name says, by Python, pydantic, Arrow and zlib.
_UNREADABLE = (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError)
_MOST_NAMES = 40  # of a list of known names in an error
_MOST_SAID = 1_000  # characters of what went wrong, on one line


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: where it is, what was found, what was expected, what to do."""

    where: str
    found: str
    expected: str
    next_step: str

    def __str__(self) -> str:
        """Render as one line: `where: found X; expected Y; next: Z`."""
        return f"{self.where}: found {self.found}; expected {self.expected}; next: {self.next_step}"


class HarnessError(Exception):
    """Something failed while working; `complete` adds to its text what the next command needs as well."""

    exit_code = 1
    complete: Callable[[str], str] = staticmethod(str)


class UserError(HarnessError):
    """Input that cannot be used; holds every problem at once."""

    exit_code = 2

    def __init__(self, problems: Problem | Iterable[Problem]) -> None:
        self.problems: Sequence[Problem] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))

    def __reduce__(self) -> tuple[type["UserError"], tuple[Sequence[Problem]]]:
        """Say how another process makes the same error; an exception's own way passes its text on alone."""
        return type(self), (self.problems,)


def refuse(problems: Problem | Iterable[Problem] | None) -> None:
    """Raise all problems at once, each once; nothing where there is none."""
    if found := (problems,) if isinstance(problems, Problem) else tuple(dict.fromkeys(problems or ())):
        raise UserError(found)


@contextmanager
def gather(problems: list[Problem]) -> Iterator[None]:
    """Add the problems of the `UserError` that ends the block to others, and go on behind it."""
    try:
        yield
    except UserError as error:
        problems += error.problems


@contextmanager
def refuse_unreadable(where: object, expected: str, next_step: str) -> Iterator[None]:
    """Refuse a file with what reading it raises, whatever library reads it; our own errors pass.

    Raises:
        UserError: the file cannot be read, or does not hold what is expected.
    """
    try:
        yield
    except HarnessError:
        raise
    except Exception as error:
        # tokenizers raises nothing more special than Exception; Arrow and zlib have errors of their own.
        known = isinstance(error, _UNREADABLE) or type(error) is Exception
        if not known and type(error).__module__.partition(".")[0] not in (
            "huggingface_hub",
            "pyarrow",
            "zipfile",
            "zlib",
        ):
            raise
        found = f"a file that cannot be read ({one_line(error)})"
        raise UserError(Problem(str(where), found, expected, next_step)) from error


class IncompatibleRuns(HarnessError):
    """A baseline is missing, or two runs differ in something that forbids comparing them."""

    exit_code = 5


class Unscored(HarnessError):
    """A metric could not score an answer that was given."""


class CandidateFailed(HarnessError):
    """One candidate could not be made or evaluated; `knob` is what to turn."""

    def __init__(self, reason: str, knob: str = "") -> None:
        self.reason, self.knob = reason, knob
        super().__init__(f"{reason}; try: {knob}" if knob else reason)

    def __reduce__(self) -> tuple[type["CandidateFailed"], tuple[str, str]]:
        """Say how another process makes the same error, with its knob apart."""
        return type(self), (self.reason, self.knob)


class Diverged(CandidateFailed):
    """Training came to a loss that is no number; the same training would come to it again."""


class SharedFailure(CandidateFailed):
    """A candidate failed by what is not its own, such as a judge, and so would others."""


def one_line(error: BaseException) -> str:
    """Say on one line what went wrong, without secrets, with the kind of an error that is not our own."""
    said = " ".join(mask_secrets(str(error)).split())
    if not (said and isinstance(error, HarnessError)):
        said = ": ".join(filter(None, (type(error).__name__, said)))
    return said if len(said) <= _MOST_SAID else f"{said[:_MOST_SAID]} …"


def as_argument(file: str) -> str:
    """Write a file's name as an argument of a command: quoted for a shell, and no option."""
    return shlex.quote(as_operand(file))


def as_operand(file: str) -> str:
    """Write a file's name so that a command does not take it for an option: `-a` as `./-a`."""
    return f"./{file}" if file.startswith("-") else file


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Phrase the nearest known name as a next step, or list what is known."""
    known = sorted(known)
    if not known:
        return "there is none yet"
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    more = f" and {len(known) - _MOST_NAMES} more" if len(known) > _MOST_NAMES else ""
    return f"did you mean {close[0]!r}?" if close else f"one of: {', '.join(known[:_MOST_NAMES])}{more}"
