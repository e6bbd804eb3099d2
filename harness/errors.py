"""Every error that a user can see, each as found, expected and next step.

Invariant: a `UserError` carries all problems of its source at once, so one run of the command shows
everything to fix. A function `refuse_…` raises a `UserError` unless its docstring names another error.

    HarnessError            exit 1   something failed while working
    ├── UserError           exit 2   input that cannot be used
    ├── IncompatibleRuns    exit 5   a baseline is missing, or two runs must not be compared
    ├── Unscored            exit 1   a metric cannot score one answer; it counts as failed
    └── CandidateFailed     exit 1   one candidate failed; the others go on
        ├── Diverged        exit 1   its loss became NaN or infinite, and would again
        └── SharedFailure   exit 1   a cause shared by all trials of its search, such as a judge
"""

import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, overload

from harness.masking import mask_secrets

# Errors of Python, pydantic, Arrow and zlib for a file that is not what its name says.
_UNREADABLE = (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError)
_MOST_NAMES = 40  # known names listed in an error
_MOST_SAID = 1_000  # characters of an error's message on one line


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
    """Something failed while working: a text, or the four texts of a problem.

    `complete` adds required options to the command in its text.
    """

    exit_code = 1
    complete: Callable[[str], str] = staticmethod(str)

    def __init__(self, *texts: str) -> None:
        super().__init__(str(Problem(*texts)) if len(texts) > 1 else texts[0])


class UserError(HarnessError):
    """Input that cannot be used; holds every problem at once: one as its four texts, or several."""

    exit_code = 2

    @overload
    def __init__(self, where: str, found: str, expected: str, next_step: str, /) -> None: ...
    @overload
    def __init__(self, problems: Problem | Iterable[Problem], /) -> None: ...
    def __init__(self, problems: Any, *texts: str) -> None:
        if isinstance(problems, str):
            problems = Problem(problems, *texts)
        self.problems: Sequence[Problem] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))

    def __reduce__(self) -> tuple[type["UserError"], tuple[Sequence[Problem]]]:
        """Pickle the problems, so that another process rebuilds the same error."""
        return type(self), (self.problems,)


def refuse(problems: Problem | Iterable[Problem] | None) -> None:
    """Raise all distinct problems at once; do nothing without any."""
    if unique := (problems,) if isinstance(problems, Problem) else tuple(dict.fromkeys(problems or ())):
        raise UserError(unique)


@contextmanager
def gather(problems: list[Problem]) -> Iterator[None]:
    """Collect the problems of a `UserError` that ends the block, and continue after it."""
    try:
        yield
    except UserError as error:
        problems += error.problems


@contextmanager
def refuse_unreadable(where: object, expected: str, next_step: str) -> Iterator[None]:
    """Turn any library's error of reading a file into a UserError; our own errors pass."""
    try:
        yield
    except HarnessError:
        raise
    except Exception as error:
        # tokenizers raises plain Exception; Arrow and zlib have their own errors.
        is_known = isinstance(error, _UNREADABLE) or type(error) is Exception
        library = type(error).__module__.partition(".")[0]
        if not is_known and library not in ("huggingface_hub", "pyarrow", "zipfile", "zlib"):
            raise
        found = f"a file that cannot be read ({one_line(error)})"
        raise UserError(str(where), found, expected, next_step) from error


class IncompatibleRuns(HarnessError):
    """A baseline is missing, or two runs differ in something that forbids comparing them."""

    exit_code = 5


class NotStored(HarnessError):
    """Something is not stored, and the session that asks for it only reads."""

    exit_code = 5


class Unscored(HarnessError):
    """A metric could not score an answer that was given."""


class CandidateFailed(HarnessError):
    """One candidate could not be made or evaluated; `knob` is the setting to change."""

    def __init__(self, reason: str, knob: str = "") -> None:
        self.reason, self.knob = reason, knob
        super().__init__(f"{reason}; try: {knob}" if knob else reason)

    def __reduce__(self) -> tuple[type["CandidateFailed"], tuple[str, str]]:
        """Pickle reason and knob, so that another process rebuilds the same error."""
        return type(self), (self.reason, self.knob)


class Diverged(CandidateFailed):
    """The training loss became NaN or infinite; repeating the training would give the same."""


class SharedFailure(CandidateFailed):
    """A candidate failed for a shared cause, such as a judge, so that others would fail too."""


def one_line(error: BaseException) -> str:
    """Describe an error on one line, without secrets, with its type unless it is our own."""
    text = " ".join(mask_secrets(str(error)).split())
    if not (text and isinstance(error, HarnessError)):
        text = ": ".join(filter(None, (type(error).__name__, text)))
    return text if len(text) <= _MOST_SAID else f"{text[:_MOST_SAID]} …"


def as_argument(file: str) -> str:
    """Quote a file name for a shell, in a form that a command does not take for an option."""
    return shlex.quote(as_operand(file))


def as_operand(file: str) -> str:
    """Write a file name so that a command does not take it for an option: `-a` as `./-a`."""
    return f"./{file}" if file.startswith("-") else file


def did_you_mean(name: str, known_names: Iterable[str]) -> str:
    """Phrase the nearest known name as a next step, or list the known names."""
    known_names = sorted(known_names)
    if not known_names:
        return "there is none yet"
    close = get_close_matches(name, known_names, n=1, cutoff=0.5)
    more = f" and {len(known_names) - _MOST_NAMES} more" if len(known_names) > _MOST_NAMES else ""
    return f"did you mean {close[0]!r}?" if close else f"one of: {', '.join(known_names[:_MOST_NAMES])}{more}"
