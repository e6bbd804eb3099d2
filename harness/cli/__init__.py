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
from harness.cli import setup, compare, evaluate, gate, release, nightly
from harness.cli import people, runs, data, synthetic_rows

# isort: on
from harness.cli.app import app, say
from harness.errors import HarnessError, Problem, one_line
from harness.progress import quiet_environment

__all__ = ["app", "main"]

# Between collections until a base is loaded or trained; by Python's 700 they take a tenth of a command, and
# imports, rows and statistics form hardly any cycles.
_ALLOCATIONS = 5_000_000
_INTERRUPTED = 130  # how typer ends on Ctrl-C
_LOOP = "Symlink loop from"  # how a path that is resolved tells it, before Python 3.13
_KINDS = {  # what a path was found to be, and what was expected there
    errno.EISDIR: ("a folder", "a file"),
    errno.ENOTDIR: ("a file", "a folder"),
    errno.EEXIST: ("a file", "a folder"),
    errno.ENOENT: ("no such file or folder", "one that is there"),
}


def main() -> None:
    """Run the command line; every error that a user can fix ends without a traceback."""
    quiet_environment()
    # UTF-8 whatever the locale: results hold signs such as − and →, and JSON is UTF-8. Half a pair of
    # surrogates, which a model's text may hold, is written as its escape.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    gc.set_threshold(_ALLOCATIONS)
    argv = [
        a if not a.startswith("--") else a.replace("_", "-", a.partition("=")[0].count("_"))
        for a in sys.argv[1:]
    ]
    try:
        app(args=argv, standalone_mode=True)
    except HarnessError as error:
        say(f"error: {error.complete(str(error))}")
        sys.exit(error.exit_code)
    except OSError as error:
        said = (error.strerror or one_line(error)).lower()
        otherwise = said, "free disk space, and whole files that may be read and written"
        found, expected = _KINDS.get(error.errno or 0, otherwise)
        step = "correct the path" if error.errno in _KINDS else "fix that and run again"
        problem = Problem(error.filename or "disk", found, expected, step)
        say(f"error: {problem}")
        sys.exit(2)
    except RuntimeError as error:
        if not str(error).startswith(_LOOP):
            raise
        where = str(error).removeprefix(_LOOP).strip("' ")
        say(f"error: {Problem(where, 'a link that leads to itself', 'a file or folder', 'correct the link')}")
        sys.exit(2)
    except SystemExit as ended:
        if ended.code == _INTERRUPTED:
            print("interrupted: what is finished is kept; run the same command to go on", file=sys.stderr)
        raise
