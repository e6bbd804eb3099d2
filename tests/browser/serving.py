"""The dashboard of a project, served for a while on a free port.

Invariant: the server ends with the block that it was opened for.
"""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.cli.dashboard import command, environment

ROOT = Path(__file__).parents[2]
# Streamlit first looks for its own addresses below the page's; these two answers are not there.
PROBES = ("/_stcore/health", "/_stcore/host-config")


@contextmanager
def serving(project: Path) -> Iterator[str]:
    """Serve the pages of a project; yields their address."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    given = environment(project / "harness.yaml")
    given["PYTHONPATH"] = os.pathsep.join([str(ROOT), *sys.path])
    server = subprocess.Popen(
        command("localhost", port), env=given, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _wait(f"http://localhost:{port}/_stcore/health")
        yield f"http://localhost:{port}"
    finally:
        server.terminate()
        server.wait(10)


def _wait(address: str) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(address, timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise TimeoutError(address)
