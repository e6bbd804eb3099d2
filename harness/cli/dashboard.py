"""Command that opens the dashboard in the browser.

Invariant: Streamlit takes the place of the command, so what ends the one ends the other; it listens at the
given address and nowhere else, and sends nothing to anybody. Who is not on this machine needs a token.
"""

import os
import secrets
import socket
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from harness.cli.app import EXPERIMENT, app, say
from harness.cli.options import CONFIG, Config, Option, verb
from harness.errors import Problem, UserError

_PACKAGE, _SERVER = Path(__file__).parents[1], Path("parts", "server.py")
_SETTINGS = {
    "browser.gatherUsageStats": "false",
    "client.toolbarMode": "minimal",
    "client.showErrorDetails": "none",
    "server.headless": "true",
    "server.fileWatcherType": "none",
    "server.maxUploadSize": "1",
    "runner.magicEnabled": "false",
    "runner.postScriptGC": "false",  # a full collection every two seconds, in which no page is drawn
    "theme.primaryColor": "#0072b2",
    "theme.dark.primaryColor": "#2a86c7",
}


@verb(app, "harness dashboard", "harness dashboard -c tickets/harness.yaml --port 8502", heading=EXPERIMENT)
def dashboard(
    config: Config = CONFIG,
    host: Annotated[
        str, Option("The address to listen on; the default is this machine alone.", env=True)
    ] = "localhost",
    port: Annotated[int, Option("The port to listen on.", env=True, min=1, max=65535)] = 8501,
) -> None:
    """Open the results in the browser.

    Answers, leaderboard, comparisons, forgetting, training, decision, nights, blind rating; Ctrl-C ends it.
    """
    if find_spec("streamlit") is None or find_spec("plotly") is None:
        step = "pip install 'harness-evals[dashboard]'"
        raise UserError(Problem("harness dashboard", "no streamlit or no plotly", "both", step))
    if not config.is_file():
        step = "name it with -c, or write one: harness init DIR --data FILE"
        raise UserError(Problem(str(config.resolve()), "no such file", "an experiment file", step))
    refuse_address(host, port)
    token = "" if host in ("localhost", "127.0.0.1", "::1") else secrets.token_urlsafe(24)
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{port}{f'/?token={token}' if token else ''}"
    say(f"{address} shows {config.resolve().parent}; Ctrl-C ends it")
    if token:
        say("anyone with this address sees every prompt and answer, and can rate; it is sent unencrypted")
    # A browser opens the pages where a person sits at this machine.
    has_display = bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    has_screen = sys.stderr.isatty() and (sys.platform in ("darwin", "win32") or has_display)
    os.execve(sys.executable, command(host, port), environment(config, token, address if has_screen else ""))


def refuse_address(host: str, port: int) -> None:
    """Refuse an address that no server can listen on here."""
    try:
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # who listened a moment ago is gone
            tried.bind(address)
    except OSError as error:
        found, expected = (error.strerror or str(error)).lower(), "a free port of this machine"
        step = f"--port {port % 65535 + 1}, or --host localhost"
        raise UserError(Problem(f"{host}:{port}", found, expected, step)) from None


def command(host: str, port: int) -> list[str]:
    """Return how Streamlit is started."""
    settings = {**_SETTINGS, "server.address": host, "server.port": str(port)}
    flags = [f"--{name}={value}" for name, value in settings.items()]
    return [sys.executable, "-m", "streamlit", "run", str(app_file()), *flags]


def environment(config: Path, token: str, opens: str = "") -> dict[str, str]:
    """Return the environment of the server: its experiment, the token to ask for, what it opens."""
    own = {"CONFIG": str(config.resolve()), "DASHBOARD_TOKEN": token, "DASHBOARD_OPENS": opens}
    return {**os.environ, **{f"HARNESS_{name}": value for name, value in own.items()}}


def app_file() -> Path:
    """Find the server of the pages: inside the package where it is installed, beside it in a checkout."""
    folders = (_PACKAGE / "dashboards", _PACKAGE.parent / "dashboards")
    return next((folder / _SERVER for folder in folders if folder.is_dir()), folders[0] / _SERVER)
