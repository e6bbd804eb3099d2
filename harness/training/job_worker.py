"""Worker process of a training job: `python -m harness.training.job_worker JOB`.

Invariant: standard output has one JSON array per line, `["advance", done, total, note]` for progress and
`["error", …]` on failure; everything else is printed to standard error.
"""

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness import errors
from harness.errors import CandidateFailed, HarnessError, Problem, UserError, one_line
from harness.progress import Advance, quiet_environment
from harness.training.job import LOG, run_job
from harness.training.parallel import LAUNCH, is_first
from harness.training.trainer import MEMORY_KNOBS

COMMAND = (sys.executable, "-P", "-m", "harness.training.job_worker")
_INTERRUPTED = 130
_PR_SET_PDEATHSIG = 1  # of prctl(2)


def main() -> None:
    """Run the job in the folder given on the command line."""
    quiet_environment()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)  # ends even if the command is killed
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as lines:
        os.dup2(2, 1)  # what libraries print is not part of the protocol

        def say(*message: Any) -> None:
            lines.write(f"{json.dumps(message)}\n")
            lines.flush()

        def advance(done: float, total: float, note: str = "") -> None:
            if is_first():  # only one of several processes reports
                say("advance", done, total, note)

        arguments = sys.argv[1:]
        try:
            if len(arguments) != 1:
                raise UserError("worker", f"{len(arguments)} arguments", "one folder of a job", "name it")
            run_job(Path(arguments[0]), advance)
        except KeyboardInterrupt:
            sys.exit(_INTERRUPTED)
        except BrokenPipeError:  # the calling process was killed
            sys.exit(1)
        except HarnessError as error:
            sys.stderr.write(f"error: {error}\n")
            say("error", *encode_error(error))
            sys.exit(error.exit_code)
        except Exception as error:  # noqa: BLE001  (the calling process gets it)
            traceback.print_exc()
            say("error", *encode_error(error))
            sys.exit(1)


def launch(folder: Path, advance: Advance, command: Sequence[str] = ()) -> None:
    """Run a folder's job in new processes, which end with this call; raise what `run_job` raised."""
    path = os.pathsep.join(map(os.path.abspath, sys.path))  # a user's file imports what it imports here
    if not command and (folder / LAUNCH).exists():  # several processes share the job
        launcher = (sys.executable, "-P", "-m", "accelerate.commands.launch", "--config_file")
        command = *launcher, str(folder / LAUNCH), "-m", COMMAND[-1]
    with (
        (folder / LOG).open("wb") as log,
        subprocess.Popen(
            [*(command or COMMAND), str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            encoding="utf-8",
            env=os.environ | {"PYTHONPATH": path},
        ) as worker,
    ):
        assert worker.stdout is not None
        error: Exception | None = None
        try:
            for line in worker.stdout:
                message = None
                with suppress(ValueError):
                    message = json.loads(line)
                # Any other line is a launcher's, such as DeepSpeed's.
                kind, *content = message if isinstance(message, list) and message else [None]
                if kind == "error":
                    error = error or decode_error(*content)  # with several processes, the first error counts
                elif kind == "advance":
                    advance(*content)
                else:
                    log.write(line.encode())
                    log.flush()
        except BaseException:
            worker.terminate()
            raise
    # torch's launcher reports the signal that ended the first of several processes.
    log_text = (folder / LOG).read_text("utf-8", "replace")
    first = re.search(r"^Root Cause .*?exitcode\s*: (-?\d+) \(pid", log_text, re.DOTALL | re.MULTILINE)
    if first and int(first[1]) < 0 and isinstance(error, RuntimeError | None):
        raise _describe_end(int(first[1]), folder / LOG)
    if error:
        raise error
    if worker.returncode in (_INTERRUPTED, -signal.SIGINT):
        raise KeyboardInterrupt
    if worker.returncode:
        raise _describe_end(worker.returncode, folder / LOG)


def _describe_end(code: int, log: Path) -> CandidateFailed:
    """Describe the end of a worker without an error: the system kills processes that take too much memory."""
    number = -code if code < 0 else code - 128
    if number == signal.SIGKILL:
        found = "the training process was killed (SIGKILL), as the system does when memory runs out"
        return CandidateFailed(found, MEMORY_KNOBS)
    last = (log.read_text("utf-8", "replace").strip().splitlines() or [""])[-1]
    name = signal.Signals(number).name if 0 < number < signal.NSIG else f"exit code {code}"
    found = f"the training process ended with {name}{': ' if last else ''}{last}"
    return CandidateFailed(found, "the same command again, which goes on from the last checkpoint")


def encode_error(error: Exception) -> tuple[str, list[Any]]:
    """Encode an error's kind and content as plain values."""
    if isinstance(error, CandidateFailed):
        return type(error).__name__, [error.reason, error.knob]
    if isinstance(error, UserError):
        return "UserError", [[p.where, p.found, p.expected, p.next_step] for p in error.problems]
    if isinstance(error, HarnessError):
        return "HarnessError", [str(error)]
    if isinstance(error, OSError) and error.errno:
        return "OSError", [error.errno, error.strerror, error.filename and str(error.filename)]
    return "RuntimeError", [one_line(error), "".join(traceback.format_exception(error))]


def decode_error(kind: str, content: Sequence[Any]) -> Exception:
    """Decode an error from `encode_error`; a library's error becomes a RuntimeError with its traceback."""
    if kind == "UserError":
        return UserError([Problem(*problem) for problem in content])
    if kind == "RuntimeError":
        error = RuntimeError(content[0])
        error.add_note(content[1])
        return error
    decoded: Exception = (OSError if kind == "OSError" else getattr(errors, kind))(*content)
    return decoded


if __name__ == "__main__":
    main()
