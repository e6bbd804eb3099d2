"""A server that receives messages like Slack, for tests of what a night sends."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer


class _Hook(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if is_json := self.headers["Content-Type"] == "application/json":
            self.server.received.append(json.loads(body))
        self.send_response(200 if is_json else 415)
        self.end_headers()

    def log_message(self, *args):
        pass


@contextmanager
def open_inbox() -> Iterator[tuple[str, list[dict]]]:
    server = HTTPServer(("127.0.0.1", 0), _Hook)
    server.received = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hook", server.received
    finally:
        server.shutdown()
        server.server_close()
