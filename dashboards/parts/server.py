"""The dashboard's server: Streamlit behind a guard against requests from other sites.

Invariant: no page of another site reaches it, whatever name that site gives this machine (DNS rebinding):
Host is this machine, or the request has the token; an Origin equals the requested address.
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
TOKEN = "HARNESS_DASHBOARD_TOKEN"  # environment variable; without it only this machine is served
OPENS = "HARNESS_DASHBOARD_OPENS"  # address to open in a browser on this machine; empty: none
_COOKIE = "harness_token"


class Guard:
    """Middleware that refuses foreign hosts and origins, and requires the token if one is set."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or refuse a request; a refused web socket is closed before it is accepted."""
        refusal = self._refuse(scope) if scope["type"] in ("http", "websocket") else None
        if refusal is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await refusal(scope, receive, send)

    def _refuse(self, scope: Scope) -> Response | None:
        """Return the response that refuses a request or sets the cookie; None if the app may answer."""
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
            # Browsers read a path that begins with two slashes as another host's address.
            answer = RedirectResponse(f"/{scope['path'].lstrip('/')}", 303)
            answer.set_cookie(_COOKIE, self._token, httponly=True, samesite="strict")
            return answer
        return PlainTextResponse("open the address with the token that harness dashboard printed", 401)

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._token.encode())


def _headers(scope: Scope, name: bytes) -> Sequence[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def _open_browser(address: str) -> None:
    parts = urlsplit(address)
    for _ in range(300):
        with suppress(OSError), socket.create_connection((parts.hostname or "", parts.port or 80), 1):
            webbrowser.open(address)
            return
        time.sleep(0.1)


if address := os.environ.get(OPENS, ""):
    Thread(target=_open_browser, args=(address,), daemon=True).start()
_GUARD = Middleware(Guard, token=os.environ.get(TOKEN, ""))
app = App(Path(__file__).parents[1] / "app.py", middleware=[_GUARD])
