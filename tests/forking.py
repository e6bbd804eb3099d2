"""The command line, or another main function, in processes forked from one that has imported everything.

Invariant: the command line itself runs; no part of it is replaced.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]

_DRIVER = """
import json, os, resource, sys, traceback
sys.path.append(os.path.abspath("tests"))
import peft, torch, transformers, trl, harness.experiment, harness.report
import killed_operation
from pkgutil import resolve_name
from harness.cli import main

def child(folder, words, most_bytes, main, killed):
    os.chdir(folder)
    said = os.open("said.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    if most_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    sys.argv = ["harness", *words]
    if killed:
        sys.addaudithook(killed_operation.Killer(**killed))
    resolve_name(main)()

torch.set_num_threads(1)
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            child(**json.loads(line))
            code = 0
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@contextmanager
def terminal_signals() -> Iterator[None]:
    """Handle signals as in a terminal, also in started processes; in the background some are ignored."""
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class ForkDriver:
    """A process that forks one command at a time."""

    def __init__(self) -> None:
        with terminal_signals():
            self._driver = subprocess.Popen(
                [sys.executable, "-c", _DRIVER], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip

    def run(
        self,
        folder: Path,
        *words: str,
        most_bytes: int = 0,
        main: str = "harness.cli:main",
        killed: dict[str, object] | None = None,
        ends: tuple[Callable[[], bool], signal.Signals] | None = None,
    ) -> int:
        """Run a command in a folder, with its output in `said.txt`; return its exit code."""
        # No file may grow beyond `most_bytes`. `killed` holds arguments of `killed_operation.Killer`. `ends`
        # is a condition and the signal to send once it holds.
        request = {
            "folder": str(folder), "words": words, "most_bytes": most_bytes, "main": main, "killed": killed,
        }  # fmt: skip
        self._driver.stdin.write(json.dumps(request) + "\n")
        self._driver.stdin.flush()
        pid = int(self._driver.stdout.readline())
        if ends is not None:
            is_due, signum = ends
            while not is_due() and Path(f"/proc/{pid}/exe").exists():
                time.sleep(0.002)
            if Path(f"/proc/{pid}/exe").exists():
                os.kill(pid, signum)
        return int(self._driver.stdout.readline())

    def close(self) -> None:
        self._driver.stdin.close()
        self._driver.wait(60)


def is_alive(number):
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def children_of(number):
    children, descendants = {}, []
    for at in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((at / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(at.name))
    waiting = [number]
    while waiting:
        direct = children.get(waiting.pop(), [])
        descendants += direct
        waiting += direct
    return descendants


def wait_for(holds, seconds=30):
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.05)
