"""How the dashboard is started: on this machine alone unless told, and silent towards everybody else."""

import socket
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from harness.cli import app, main
from harness.cli.dashboard import app_file, command, environment, refuse_address
from harness.errors import UserError


def test_it_listens_on_this_machine_and_sends_nothing():
    flags = command("localhost", 8501)
    assert "--server.address=localhost" in flags
    assert "--server.port=8501" in flags
    assert "--browser.gatherUsageStats=false" in flags


def test_unless_told_otherwise_it_listens_on_this_machine_alone():
    (host,) = (p for p in get_command(app).commands["dashboard"].params if p.name == "host")
    assert host.default == "localhost"


def test_the_pages_are_there_and_learn_what_to_show(tmp_path):
    assert app_file().exists()
    assert environment(Path("harness.yaml"))["HARNESS_CONFIG"] == str(Path("harness.yaml").resolve())


def test_an_experiment_that_is_not_there_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["harness", "dashboard", "-c", str(tmp_path / "harness.yaml")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert (ended.value.code, "no such file" in capsys.readouterr().err) == (2, True)


def test_a_port_that_is_taken_is_refused_with_another_one():
    with socket.create_server(("localhost", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"already in use.*next: --port {port + 1}"):
            refuse_address("localhost", port)
    refuse_address("localhost", port)


def test_a_host_that_is_not_this_machine_is_refused():
    with pytest.raises(UserError, match="expected a free port of this machine"):
        refuse_address("203.0.113.1", 8501)  # an address for documentation, RFC 5737
