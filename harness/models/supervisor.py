"""Supervisor process of a command: `python supervisor.py FOLDER LOG CHANNEL COMMAND …`.

Invariant: the command and its process group end when the process at the other end of standard input ends, in
any way. The last line of standard output is `[exit code, peak memory in bytes]`; signals have negative codes.
The peak is the command's own: a process starts with its parent's peak, and this one needs almost no memory.
Source: wait4(2), getrusage(2) and prctl(2)
"""

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

_GRACE_S = 10  # between SIGTERM and SIGKILL
_NOT_STARTED = 127  # exit code of shells in this case
_PR_SET_PDEATHSIG = 1
_MAXRSS_BYTES = 1024


def main() -> None:
    """Run the command of the command line in a folder, its output going to the log."""
    folder, log, channel, *command = sys.argv[1:]
    with Path(log).open("ab") as output:
        try:
            child = subprocess.Popen(
                command,
                cwd=folder,
                stdin=int(channel) if channel else subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # The child ends with its parent; the setting survives `exec`.
                preexec_fn=lambda: ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM),
            )
        except OSError as error:
            output.write(f"{error}\n".encode())
            _say(_NOT_STARTED)
            return
    if channel:
        os.close(int(channel))  # so that its other end sees when the command has ended
    threading.Thread(target=_end_with_input, args=(child,), daemon=True).start()
    code = child.wait()
    _signal(child.pid, signal.SIGKILL)  # remaining processes of its group
    _say(code)


def _end_with_input(child: "subprocess.Popen[bytes]") -> None:
    while os.read(0, 1024):  # returns nothing once the other end is closed
        pass
    _signal(child.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        child.wait(_GRACE_S)
    _signal(child.pid, signal.SIGKILL)


def _signal(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _say(code: int) -> None:
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * _MAXRSS_BYTES
    with suppress(BrokenPipeError):  # the process that would read it was killed
        os.write(sys.stdout.fileno(), f"{json.dumps([code, peak])}\n".encode())


if __name__ == "__main__":
    main()
