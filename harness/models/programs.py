"""Supervised programs and model servers: log, progress by the last line, readiness, exit and peak memory.

Invariant: a program never outlives this process; processes that it starts in another session may.
"""

import json
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

from harness.errors import CandidateFailed
from harness.masking import mask_secrets
from harness.progress import Advance

OPENER = build_opener(ProxyHandler({}))  # requests to this machine itself must not use a proxy
_ANSWER_S = 10  # timeout of a request without computation
_END_S = 60
_SUPERVISOR = Path(__file__).with_name("supervisor.py")
_EVERY_S = 0.2
_SHORT_S = 60  # timeout of a command that only prints its version
_TAIL = 4096  # bytes of the log that are read for its last lines
_LINES = re.compile(r"[\r\n]+")  # bars of progress end their lines by a carriage return
_STEPS = re.compile(r"\b(\d+)/(\d+)\b")


class CommandResult(NamedTuple):
    """End of a command: exit code (negative of a signal), peak memory, seconds, and whether time ran out."""

    code: int
    peak_bytes: int
    wall_s: float
    timed_out: bool


def start(
    command: Sequence[str],
    folder: Path,
    log: Path,
    environment: Mapping[str, str] | None = None,
    channel: int | None = None,
) -> "subprocess.Popen[bytes]":
    """Start a command that ends when the returned process's standard input closes; `channel` is its own."""
    channel_number = "" if channel is None else str(channel)
    return subprocess.Popen(
        [sys.executable, "-I", "-S", str(_SUPERVISOR), str(folder), str(log), channel_number, *command],
        pass_fds=() if channel is None else (channel,),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        start_new_session=True,  # this process passes on interrupts from the terminal
    )


def run(
    command: Sequence[str],
    folder: Path,
    log: Path,
    timeout_s: float | None,
    advance: Advance,
    environment: Mapping[str, str] | None = None,
) -> CommandResult:
    """Run a command in a folder until it ends or times out."""
    start_s, last_line, timed_out = time.perf_counter(), "", False
    with start(command, folder, log, environment) as supervisor:
        assert supervisor.stdin is not None
        assert supervisor.stdout is not None
        try:
            while supervisor.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    supervisor.wait(_EVERY_S)
                    break
                if (line := (read_last_lines(log, 1) or [""])[-1]) != last_line:
                    last_line = line
                    advance(*steps(line), note=line[:60])
                if timeout_s is not None and time.perf_counter() - start_s > timeout_s:
                    timed_out = True
                    break
        finally:
            supervisor.stdin.close()
        report = supervisor.stdout.read()
    wall_s = time.perf_counter() - start_s
    code, peak = json.loads(report) if report else (supervisor.returncode, 0)
    return CommandResult(code, peak, wall_s, timed_out)


def read_last_lines(log: Path, n: int) -> list[str]:
    """Return the last non-empty lines of a log, at most `n`, with secrets masked."""
    if not log.exists():
        return []
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL))
        text = mask_secrets(file.read().decode("utf-8", "replace"))
    return [line.strip() for line in _LINES.split(text) if line.strip()][-n:]


def last_words(log: Path) -> str:
    """Quote the last three lines of a log."""
    return f"its last lines: {' / '.join(read_last_lines(log, 3)) or 'it wrote nothing'}"


def end(supervisor: "subprocess.Popen[bytes]", timeout_s: float) -> int | None:
    """End a command started by `start`; return its exit code, None if unknown or already read."""
    assert supervisor.stdin is not None
    assert supervisor.stdout is not None
    with suppress(OSError):
        supervisor.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        supervisor.wait(timeout_s)
    report = b"" if supervisor.stdout.closed else supervisor.stdout.read()
    supervisor.stdout.close()
    return int(json.loads(report)[0]) if report else None


def steps(line: str) -> tuple[float, float]:
    """Parse done and total from a line such as `40%|████ | 12/30 [00:10<00:15]`."""
    counts = [(int(n), int(total)) for n, total in _STEPS.findall(line)]
    return next(((n, total) for n, total in counts if 0 <= n <= total and total > 0), (0, 1))


def read_lines(
    command: Sequence[str],
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    timeout_s: float = _SHORT_S,
) -> list[str]:
    """Return the output lines of a short command, or its error lines if there are none; empty on failure."""
    try:
        process = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout_s,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in (process.stdout.strip() or process.stderr.strip()).splitlines()]


class ServerProcess(NamedTuple):
    """A server that was started: its name, its supervisor, its address and its log."""

    name: str
    supervisor: "subprocess.Popen[bytes]"
    address: str
    log: Path
    codes: list[int]  # exit code, known once the server has ended

    def is_well(self) -> bool:
        """Tell whether the server runs and answers."""
        return self.supervisor.poll() is None and self.answers()

    def answers(self) -> bool:
        """Tell whether the server reports that it is ready."""
        try:
            with OPENER.open(f"{self.address}/health", timeout=_ANSWER_S) as response:
                return bool(response.status == 200)
        except (OSError, URLError):
            return False

    def is_started(self, timeout_s: float, timeout_key: str, advance: Advance) -> bool:
        """Wait until the server answers; False if it ended, CandidateFailed after `timeout_s`."""
        start_s = time.monotonic()
        while self.supervisor.poll() is None:
            waited, line = time.monotonic() - start_s, (read_last_lines(self.log, 1) or [""])[-1]
            if waited > timeout_s:
                reason = f"{self.name} was not ready after {waited:.0f} s; its last line: {line}"
                raise CandidateFailed(f"{reason}; its log: {self.log}", f"a longer {timeout_key}")
            if self.answers() and self.supervisor.poll() is None:
                return True
            advance(waited, timeout_s, note=line[:60])
            time.sleep(_EVERY_S)
        return False

    def describe_end(self) -> str:
        """Describe the exit code and the last lines of the server."""
        self.stop()
        how = f"with exit code {self.codes[0]}" if self.codes else "with its supervisor"
        return f"{self.name} ended {how}; {self.last_words()}"

    def last_words(self) -> str:
        """Return the last lines of the server's log, and its path."""
        return f"{last_words(self.log)}; its log: {self.log}"

    def stop(self) -> None:
        """End the server and all processes that it started, wait for them, and store its exit code."""
        if (code := end(self.supervisor, _END_S)) is not None:
            self.codes.append(code)
