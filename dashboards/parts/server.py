"""The server of the dashboard: Streamlit's, behind a guard of what a browser may ask it.

Invariant: no page of another site reaches it, by whatever name that site calls this machine (DNS rebinding):
Host is this machine, or the request has the token; an Origin is the address that was asked.
"""

import hmac
import os
import re
import socket
import time
import webbrowser
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs, urlsplit

from starlette.middleware import Middleware
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send
from streamlit.starlette import App

_NAMED_LOCAL = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d+)?", re.IGNORECASE)
TOKEN = "HARNESS_DASHBOARD_TOKEN"  # of the environment; without it this machine alone is answered
OPENS = "HARNESS_DASHBOARD_OPENS"  # the address that is to be opened in a browser here; empty: none
_COOKIE = "harness_token"


class Guard:
    """Middleware that refuses foreign hosts and origins, and asks for the token where there is one."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it; of a web socket a refusal is its end before it is accepted."""
        refusal = self._refuse(scope) if scope["type"] in ("http", "websocket") else None
        if refusal is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await refusal(scope, receive, send)

    def _refuse(self, scope: Scope) -> Response | None:
        """Return the answer to what is not served; None to what is."""
        hosts, origins = _headers(scope, b"host"), _headers(scope, b"origin")
        if len(hosts) != 1 or any(origin.partition("://")[2] != hosts[0] for origin in origins):
            return PlainTextResponse("a request from another site", 403)
        if not self._token:
            is_local = _NAMED_LOCAL.fullmatch(hosts[0]) is not None
            return None if is_local else PlainTextResponse("a name that is not this machine's", 403)
        if self._is_token(HTTPConnection(scope).cookies.get(_COOKIE, "")):
            return None
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])
        if scope["type"] == "http" and self._is_token(given[0]):
            # A browser takes what begins with two slashes for an address of another host.
            answer = RedirectResponse(f"/{scope['path'].lstrip('/')}", 303)
            answer.set_cookie(_COOKIE, self._token, httponly=True, samesite="strict")
            return answer
        return PlainTextResponse("open the address with the token that harness dashboard printed", 401)

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._token.encode())


def _headers(scope: Scope, name: bytes) -> Sequence[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def _open_browser(address: str) -> None:
    at = urlsplit(address)
    for _ in range(300):
        with suppress(OSError), socket.create_connection((at.hostname or "", at.port or 80), 1):
            webbrowser.open(address)
            return
        time.sleep(0.1)


if address := os.environ.get(OPENS, ""):
    Thread(target=_open_browser, args=(address,), daemon=True).start()
_GUARD = Middleware(Guard, token=os.environ.get(TOKEN, ""))
app = App(Path(__file__).parents[1] / "app.py", middleware=[_GUARD])
