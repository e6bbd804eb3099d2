"""Command line: the entry point, and errors as exit codes.

Invariant: stdout holds the result, stderr the progress; errors a user can fix are printed
without a traceback and end with exit code 2, and heavy modules load only inside a verb.
"""

import errno
import gc
import sys
from io import TextIOWrapper

# In the order in which help lists the commands.
# isort: off
# ruff: noqa: F401
from harness.cli import setup, compare, runs, release, people, data, synthetic_rows

# isort: on
from harness.cli.app import app, say
from harness.errors import HarnessError, Problem, one_line
from harness.progress import quiet_environment

__all__ = ["app", "main"]

_ALLOCATIONS = 5_000_000  # between collections; at Python's 700 they take a tenth of a command
_INTERRUPTED = 130  # how typer ends on Ctrl-C
_LOOP = "Symlink loop from"  # the error of resolving a path, before Python 3.13
_KINDS = {  # what was found at a path, and what was expected
    errno.EISDIR: ("a folder", "a file"),
    errno.ENOTDIR: ("a file", "a folder"),
    errno.EEXIST: ("a file", "a folder"),
    errno.ENOENT: ("no such file or folder", "one that is there"),
}


def main() -> None:
    """Run the command line; every error that a user can fix ends without a traceback."""
    quiet_environment()
    # UTF-8 in any locale; lone surrogates, which a model's text may hold, are written as escapes.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    gc.set_threshold(_ALLOCATIONS)
    try:
        app(standalone_mode=True)
    except HarnessError as error:
        say(f"error: {error.complete(str(error))}")
        sys.exit(error.exit_code)
    except OSError as error:
        reason = (error.strerror or one_line(error)).lower()
        default = reason, "free disk space, and whole files that may be read and written"
        found, expected = _KINDS.get(error.errno or 0, default)
        say(f"error: {Problem(error.filename or 'disk', found, expected, 'fix that and run again')}")
        sys.exit(2)
    except RuntimeError as error:
        if not str(error).startswith(_LOOP):
            raise
        where = str(error).removeprefix(_LOOP).strip("' ")
        say(f"error: {Problem(where, 'a link that leads to itself', 'a file or folder', 'correct the link')}")
        sys.exit(2)
    except SystemExit as exit_request:
        if exit_request.code == _INTERRUPTED:
            print("interrupted: what is finished is kept; run the same command to go on", file=sys.stderr)
        raise
