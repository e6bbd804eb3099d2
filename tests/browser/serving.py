"""The dashboard of a project, served temporarily on a free port, and a browser to open it.

Invariant: server and browser end with the blocks that started them. A page counts as open once its script
has ended and all its elements are drawn; nothing here waits for a fixed time.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from harness.cli.runs import server_command, server_environment

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).parents[2]
# Streamlit first looks for its own addresses below the page's; these two responses are missing there.
PROBES = ("/_stcore/health", "/_stcore/host-config")
PATIENCE_S = 120  # for a busy machine; normally a page takes one or two
_DRAWN = """() => {
    const app = document.querySelector("[data-testid=stApp]");
    const pictures = [...document.querySelectorAll("[data-testid=stPlotlyChart]")];
    const tables = [...document.querySelectorAll("[data-testid=stDataFrame]")];
    return app?.dataset.testScriptState === "notRunning"
        && document.querySelector("[data-testid=stMain] h1")
        && !document.querySelector("[data-testid=stSkeleton], [data-stale=true]")
        && pictures.every(one => one.querySelector(".main-svg"))
        && tables.every(one => one.querySelector("canvas"));
}"""


@contextmanager
def serve_pages(project: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    env = server_environment(project / "harness.yaml", "")
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), *sys.path])
    server = subprocess.Popen(
        server_command("localhost", port), env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _wait(f"http://localhost:{port}/_stcore/health")
        yield f"http://localhost:{port}"
    finally:
        server.terminate()
        server.wait(PATIENCE_S)


@contextmanager
def chromium() -> Iterator["Browser"]:
    from playwright import sync_api

    executable = shutil.which("chromium")
    if executable is None:
        raise FileNotFoundError("no chromium; apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        try:
            yield started
        finally:
            started.close()


def load_page(page: "Page", address: str) -> None:
    page.goto(address)
    wait_until_drawn(page)


def wait_until_drawn(page: "Page") -> None:
    """Wait until a page's script has ended and its pictures and tables are drawn."""
    page.wait_for_function(_DRAWN, timeout=1000 * PATIENCE_S)


def _wait(address: str) -> None:
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(address, timeout=2):
                return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(address)
