"""How the dashboard starts: reachable from this machine only, unless a host is given."""

import http.client
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from harness.cli import main
from harness.cli.runs import app_file, server_command, server_environment


def test_it_listens_on_this_machine_sends_nothing_and_the_pages_learn_what_to_show():
    flags = server_command("localhost", 8501)
    assert "--server.address=localhost" in flags
    assert "--server.port=8501" in flags
    assert "--browser.gatherUsageStats=false" in flags
    assert app_file().exists()
    assert server_environment(Path("harness.yaml"), "")["HARNESS_CONFIG"] == str(
        Path("harness.yaml").resolve()
    )


def test_an_experiment_that_is_not_there_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["harness", "dashboard", "-c", str(tmp_path / "harness.yaml")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert (ended.value.code, "no such file" in capsys.readouterr().err) == (2, True)


@contextmanager
def serving(project, *options):
    """Run `harness dashboard` as users do, until the block ends; yields process, port and its first line."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    run = "from harness.cli import main; main()"
    words = [sys.executable, "-c", run, "dashboard", "-c", project / "harness.yaml"]
    words += [*options, "--port", port]
    with subprocess.Popen(list(map(str, words)), stderr=subprocess.PIPE, text=True) as server:
        try:
            wait_for(lambda: ask(port, "127.0.0.1"), "an answer")
            yield server, port, server.stderr.readline()
        finally:
            server.kill()


def wait_for(ready, awaited, patience_s=60):
    end = time.monotonic() + patience_s
    while not (value := ready()):
        assert time.monotonic() < end, awaited
        time.sleep(0.1)
    return value


def ask(port, host, path="/", **headers):
    """Request a page under a host name; returns status and headers, or None where nothing listens."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with closing(connection), suppress(OSError):
        connection.request("GET", path, headers={"Host": f"{host}:{port}", **headers})
        answer = connection.getresponse()
        return answer.status, answer.headers
    return None


def shake_hands(port, host, origin, **headers):
    """Request a web socket as a browser does for a page of `origin`; returns the status."""
    upgrade = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
    key = {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Origin": origin}
    return ask(port, host, "/_stcore/stream", **upgrade, **key, **headers)[0]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    (folder / "harness.yaml").write_text("name: x\n")
    return folder


@pytest.mark.e2e
def test_a_page_of_another_site_reaches_neither_pages_nor_the_web_socket(project):
    with serving(project) as (_, port, _):
        own_origin = f"http://localhost:{port}"
        assert (ask(port, "localhost")[0], ask(port, "[::1]")[0]) == (200, 200)
        assert shake_hands(port, "localhost", own_origin) == 101
        foreign = ("evil.example", "localhost.evil.example", "localhost@evil.example", "192.0.2.1", "")
        for host in (*foreign, "[::1", "::1", "[localhost]", "localhost:1"):
            assert ask(port, host)[0] == 403
            assert shake_hands(port, host, f"http://{host}:{port}") == 403
        for origin in (
            *("http://evil.example", "http://localhost:1", "null", f"http://localhost:{port}.evil"),
            *("http://[::1", "[", f"http://localhost:{port}/"),
        ):
            assert shake_hands(port, "localhost", origin) == 403
            assert ask(port, "localhost", "/_stcore/health", Origin=origin)[0] == 403


@pytest.mark.e2e
def test_beyond_this_machine_it_asks_for_the_token_that_it_printed(project):
    with serving(project, "--host", "0.0.0.0") as (_, port, first_line):
        token = re.search(r"\?token=(\S{32}) shows", first_line)[1]
        own_origin = f"http://box.example:{port}"
        assert (ask(port, "box.example")[0], ask(port, "localhost", "/?token=x")[0]) == (401, 401)
        assert shake_hands(port, "box.example", own_origin) == 403
        status, headers = ask(port, "box.example", f"/?token={token}")
        assert (status, headers["location"]) == (303, "/")
        elsewhere = ask(port, "box.example", f"//evil.example/x?token={token}")[1]
        assert elsewhere["location"] == "/evil.example/x"
        cookie = headers["set-cookie"].partition(";")[0]
        assert "httponly" in headers["set-cookie"].lower()
        assert ask(port, "box.example", Cookie=cookie)[0] == 200
        assert ask(port, "box.example", Cookie=f'other={{"a": 1}}; {cookie}')[0] == 200
        assert shake_hands(port, "box.example", own_origin, Cookie=cookie) == 101
        assert shake_hands(port, "box.example", "http://evil.example", Cookie=cookie) == 403


@pytest.mark.e2e
def test_what_ends_the_command_ends_the_server(project):
    with serving(project) as (server, port, _):
        server.send_signal(signal.SIGTERM)
        server.wait(20)
        assert ask(port, "localhost") is None
