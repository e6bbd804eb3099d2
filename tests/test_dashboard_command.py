"""How the dashboard is started: on this machine alone unless told, and silent towards everybody else."""

from pathlib import Path

from harness.cli.dashboard import app_file, command, environment


def test_it_listens_on_this_machine_and_sends_nothing():
    flags = command("localhost", 8501)
    assert "--server.address=localhost" in flags
    assert "--server.port=8501" in flags
    assert "--browser.gatherUsageStats=false" in flags


def test_the_pages_are_there_and_learn_what_to_show(tmp_path):
    assert app_file().exists()
    assert environment(Path("harness.yaml"))["HARNESS_CONFIG"] == str(Path("harness.yaml").resolve())
