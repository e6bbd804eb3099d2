"""A model server that was started on this machine: its readiness, its end and its last lines.

Invariant: the server ends with this process, however that ends (see `supervision`).
"""

import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

from harness.errors import CandidateFailed
from harness.models import supervision
from harness.progress import Advance

OPENER = build_opener(ProxyHandler({}))  # no proxy of the environment reaches this machine's own address
_EVERY_S = 0.2
_ANSWER_S = 10  # of a request that computes nothing
_END_S = 60


class ServerProcess(NamedTuple):
    """A server that was started: its name, its supervisor, its address and its log."""

    name: str
    supervisor: "subprocess.Popen[bytes]"
    address: str
    log: Path
    codes: list[int]  # of its exit, known once it is ended

    def is_well(self) -> bool:
        """Tell whether it runs and answers."""
        return self.supervisor.poll() is None and self.answers()

    def answers(self) -> bool:
        """Tell whether it says that it is ready."""
        try:
            with OPENER.open(f"{self.address}/health", timeout=_ANSWER_S) as said:
                return bool(said.status == 200)
        except (OSError, URLError):
            return False

    def is_started(self, timeout_s: float, timeout_key: str, advance: Advance) -> bool:
        """Wait until the server answers, its last line as progress; False where it ended.

        Raises:
            CandidateFailed: it does not answer in time; `timeout_key` sets that.
        """
        begun = time.monotonic()
        while self.supervisor.poll() is None:
            waited, line = time.monotonic() - begun, (supervision.read_last_lines(self.log, 1) or [""])[-1]
            if waited > timeout_s:
                reason = f"{self.name} was not ready after {waited:.0f} s; its last line: {line}"
                raise CandidateFailed(f"{reason}; its log: {self.log}", f"a longer {timeout_key}")
            if self.answers() and self.supervisor.poll() is None:
                return True
            advance(waited, timeout_s, note=line[:60])
            time.sleep(_EVERY_S)
        return False

    def describe_end(self) -> str:
        """Say with which exit code it ended, and its last lines."""
        self.stop()
        how = f"with exit code {self.codes[0]}" if self.codes else "with its supervisor"
        return f"{self.name} ended {how}; {self.last_words()}"

    def last_words(self) -> str:
        """Return the last lines of its log, and where that lies."""
        return f"{supervision.last_words(self.log)}; its log: {self.log}"

    def stop(self) -> None:
        """End the server with all that it started, wait for that, and keep its exit code."""
        if (code := supervision.end(self.supervisor, _END_S)) is not None:
            self.codes.append(code)


def start_server(
    name: str, command: Sequence[str], address: str, log: Path, environment: Mapping[str, str], folder: Path
) -> ServerProcess:
    """Start a server under a supervisor in a folder; `address` is where it will listen."""
    return ServerProcess(name, supervision.start(command, folder, log, environment), address, log, [])
