"""The command line in processes that start at once: forked from one that has imported everything.

Invariant: what runs is the command line itself; nothing of it is replaced.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]

_DRIVER = """
import json, os, resource, sys, traceback
import peft, torch, transformers, trl, harness.experiment, harness.report
from harness.cli import main

def child(folder, words, most_bytes):
    os.chdir(folder)
    said = os.open("said.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    if most_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    sys.argv = ["harness", *words]
    main()

torch.set_num_threads(1)
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            child(**json.loads(line))
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


class Forked:
    """A process that forks one command at a time."""

    def __init__(self) -> None:
        self._driver = subprocess.Popen(
            [sys.executable, "-c", _DRIVER],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self,
        folder: Path,
        *words: str,
        most_bytes: int = 0,
        ends: tuple[Callable[[], bool], signal.Signals] | None = None,
    ) -> int:
        """Run a command in a folder, what it says in `said.txt` there; returns its exit code.

        No file may grow beyond `most_bytes`. `ends` is when to send which signal.
        """
        asked = {"folder": str(folder), "words": words, "most_bytes": most_bytes}
        self._driver.stdin.write(json.dumps(asked) + "\n")
        self._driver.stdin.flush()
        pid = int(self._driver.stdout.readline())
        if ends is not None:
            when, sent = ends
            while not when() and Path(f"/proc/{pid}/exe").exists():
                time.sleep(0.002)
            if Path(f"/proc/{pid}/exe").exists():
                os.kill(pid, sent)
        return int(self._driver.stdout.readline())

    def close(self) -> None:
        """End the process."""
        self._driver.stdin.close()
        self._driver.wait(60)
