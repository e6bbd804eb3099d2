"""The units for cron, systemd and GitHub, and what `nightly status` says of an unfinished night."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from harness.errors import UserError
from harness.lifecycle import scheduler as install
from harness.lifecycle.nightly_alarm import EXIT


@pytest.fixture
def config(folder, tmp_path_factory):
    desk = shutil.copytree(folder, tmp_path_factory.mktemp("units") / "my desk")
    file = desk / "harness.yaml"
    file.write_text(file.read_text().replace("name: tiny", "name: desk"))
    return file


def test_a_cron_line_goes_to_the_folder_and_keeps_a_log(config):
    (line,) = install.units("cron", config, "02:30").values()
    fields, command = line.split(maxsplit=5)[:5], line.split(maxsplit=5)[5]
    assert fields == ["30", "2", "*", "*", "*"]
    words = shlex.split(command)
    assert words[:2] == ["cd", str(config.parent)]
    program, log = Path(sys.executable).with_name("harness"), config.parent / "runs" / "nightly.log"
    assert words[3:] == [str(program), *"nightly run -c harness.yaml >>".split(), str(log), "2>&1"]


def test_a_systemd_timer_makes_up_for_a_night_and_its_service_takes_a_verdict_for_no_failure(config):
    files = {path.name: text for path, text in install.units("systemd", config, "23:05").items()}
    assert "OnCalendar=*-*-* 23:05:00" in files["harness-nightly-desk.timer"]
    assert "Persistent=true" in files["harness-nightly-desk.timer"]
    assert f"WorkingDirectory={config.parent}" in files["harness-nightly-desk.service"]
    assert "nightly run -c harness.yaml" in files["harness-nightly-desk.service"]
    service, _ = install.units("systemd", config, "02:30").values()
    settings = dict(row.split("=", 1) for row in service.splitlines() if "=" in row)
    assert {int(code) for code in settings["SuccessExitStatus"].split()} == set(EXIT.values()) - {0, 1}
    programs = settings["Environment"].removeprefix("PATH=").split(":")
    assert programs[0] == str(Path(sys.executable).parent)
    assert "/usr/bin" in programs


def test_a_per_cent_sign_stays_one_in_every_unit(config, tmp_path):
    desk = shutil.copytree(config.parent, tmp_path / "50% desk")
    file = (desk / "harness.yaml").rename(desk / "90%.yaml")
    (line,) = install.units("cron", file, "02:30").values()
    assert line.count("%") == line.count("\\%") == 3, "folder twice and file"
    service, _ = install.units("systemd", file, "02:30").values()
    assert f"WorkingDirectory={tmp_path}/50%% desk\n" in service
    assert "-c 90%%.yaml\n" in service


def test_a_github_workflow_has_no_secret_in_it_and_is_written_once_never_over_another(config, monkeypatch):
    monkeypatch.chdir(config.parent)
    ((path, text),) = install.units("github", Path("harness.yaml"), "04:00").items()
    workflow = YAML(typ="safe").load(text)
    assert path == Path(".github/workflows/harness-nightly-desk.yml")
    assert workflow["on"]["schedule"] == [{"cron": "0 4 * * *"}]
    assert workflow["concurrency"] == "harness-nightly-desk"
    steps = workflow["jobs"]["night"]["steps"]
    assert steps[0]["with"] == {"clean": False}, "the runs of the nights before stay"
    assert steps[2]["if"] == "always()", "issues are opened whatever became of the night"
    assert steps[1]["run"] == "harness nightly run -c harness.yaml"
    assert steps[1]["env"] == {"HARNESS_WEBHOOK": "${{ secrets.HARNESS_WEBHOOK }}"}

    files = install.units("github", Path("harness.yaml"), "04:00")
    (path,) = install.write(files)
    assert install.write(files) == [path]
    path.write_text("theirs")
    with pytest.raises(UserError, match="another content"):
        install.write(files)
    assert path.read_text() == "theirs"


def open_issues(folder, gh):
    (text,) = install.units("github", Path("harness.yaml"), "04:00").values()
    step = YAML(typ="safe").load(text)["jobs"]["night"]["steps"][2]
    (folder / "bin").mkdir(exist_ok=True)
    command = folder / "bin" / "gh"
    command.write_text(f"#!/bin/sh\n{gh}\n")
    command.chmod(0o755)
    env = os.environ | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    shell = "bash --noprofile --norc -eo pipefail -c".split()
    return subprocess.run([*shell, step["run"]], cwd=folder, check=False, env=env).returncode


def test_an_issue_is_opened_once_whatever_became_of_the_night_and_tried_again_until_it_is(
    config, monkeypatch
):
    monkeypatch.chdir(config.parent)
    (config.parent / "reports").mkdir()
    issue = config.parent / "reports" / "desk.nightly.issue.md"
    issue.write_text("Nightly desk: $(lora) `regression`\n\nmore\n")
    assert open_issues(config.parent, "exit 1") == 1
    assert issue.exists()
    for _ in range(2):
        assert open_issues(config.parent, 'printf "%s\n" "$4" "$6" >> opened') == 0
    opened = (config.parent / "opened").read_text().splitlines()
    assert opened == ["Nightly desk: $(lora) `regression`", "reports/desk.nightly.issue.md"]


def test_the_next_step_starts_the_timer_of_the_experiment_or_asks_for_the_same_unit_again(config):
    step = install.next_step("systemd", install.units("systemd", config, "04:00"))
    assert "enable --now harness-nightly-desk.timer;" in step
    files = install.units("cron", config, "03:15")
    step = install.next_step("cron", files, ["--at", "03:15", "-c", "a b.yaml"])
    assert "; harness nightly install --cron --at 03:15 -c 'a b.yaml') | crontab -" in step


@pytest.mark.parametrize("at", ["25:00", "two"])
def test_a_time_that_is_none_is_refused(config, at):
    with pytest.raises(UserError, match="a time of day"):
        install.units("cron", config, at)
