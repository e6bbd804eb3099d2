"""The GitHub Action of the gate: its steps are run here as a runner would, on real folders of samples."""

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import lmeval_folder
import pytest
import tiny_experiment
from ruamel.yaml import YAML

from harness import cli
from tests.fake_rows import flips

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
ACTION = YAML(typ="safe").load(ROOT / ".github" / "actions" / "gate" / "action.yml")
WORKFLOW = YAML(typ="safe").load(ROOT / ".github" / "workflows" / "gate.yml")
INPUT = re.compile(r"\$\{\{ inputs\.([a-z]+) \}\}")

HARNESS = f'exec {sys.executable} -c "from harness.cli import main; main()" "$@"'


def run_action(folder, script=HARNESS, **changed_inputs):
    """Run the steps whose conditions hold; returns the last exit code and the action's outputs."""
    # `script` is the body of the fake command `harness`.
    inputs = {name: spec.get("default", "") for name, spec in ACTION["inputs"].items()} | changed_inputs
    for name in ("bin", "temp"):
        (folder / name).mkdir(exist_ok=True)
    command = folder / "bin" / "harness"
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)
    (folder / "output").write_text("")
    code = 0
    for step in ACTION["runs"]["steps"]:
        if code or not holds(step.get("if", ""), inputs):
            continue
        process = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
            cwd=folder,
            check=False,
            capture_output=True,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "PATH": f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
                "RUNNER_TEMP": str(folder / "temp"),
                "GITHUB_OUTPUT": str(folder / "output"),
                "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
                **{name: INPUT.sub(lambda m: inputs[m[1]], text) for name, text in step["env"].items()},
            },
        )
        code = process.returncode
    outputs = dict(line.split("=", 1) for line in (folder / "output").read_text().splitlines())
    return code, outputs


def holds(condition, inputs):
    """Evaluate the few conditions that the action has."""
    if not condition:
        return True
    name, comparison, value = re.fullmatch(r"inputs\.([a-z]+) (==|!=) '(.*)'", condition).groups()
    return (inputs[name] == value) == (comparison == "==")


def fake_pip(folder, exit_code=0):
    """Put a `python` first on PATH whose pip only records its arguments; Python runs everything else."""
    (folder / "bin").mkdir()
    python = folder / "bin" / "python"
    python.write_text(
        f'#!/bin/sh\n[ "$1 $2" = "-m pip" ] || exec {sys.executable} "$@"\n'
        f'printf "%s\\n" "$@" > {folder / "pip"}\nexit {exit_code}\n'
    )
    python.chmod(0o755)


def samples(folder, gains, losses):
    base, new = flips(800, gains, losses)
    names = [f"task_{i}" for i in range(4)]
    lmeval_folder.write(folder / "base", dict.fromkeys(names, base))
    lmeval_folder.write(folder / "tuned", dict.fromkeys(names, new))
    return {"base": "base", "candidate": "tuned", "install": ""}


def test_a_candidate_that_fails_stops_the_job_and_one_that_passes_by_the_settings_lets_it_go_on(tmp_path):
    inputs = samples(tmp_path, 0, 150)
    assert run_action(tmp_path, **inputs) == (3, {"verdict": "fail", "exit-code": "3"})
    code, outputs = run_action(tmp_path, **inputs, overrides="gate.macro=0.5\n\ngate.each=0.5\n")
    assert (code, outputs) == (0, {"verdict": "pass", "exit-code": "0"})
    assert ET.parse(tmp_path / "harness-gate.xml").getroot().find("testsuite").get("failures") == "0"
    assert "## PASS" in (tmp_path / "summary.md").read_text()


def test_what_is_missing_is_computed_beforehand_only_on_request_with_the_same_settings(tmp_path):
    judged = """echo '[{"outcome": "pass"}]'"""
    script = f"""echo "$@" $HARNESS_CANDIDATES >> {tmp_path / "words"}; [ $1 = compare ] || {judged}"""
    inputs = {"candidate": "lora", "install": "", "config": "desk.yaml", "overrides": "seeds=[3]\n"}
    assert run_action(tmp_path, script, **inputs, baseline="base")[0] == 0
    assert run_action(tmp_path, script, **inputs, also="prompt", compute="true")[0] == 0
    words = (tmp_path / "words").read_text().splitlines()
    assert [line.split()[0] for line in words] == ["gate", "compare", "gate"]
    assert "--baseline base" in words[0]
    assert all("seeds=[3]" in line for line in words)
    assert "prompt" in words[1]

    failing = run_action(tmp_path, "exit 5", candidate="lora", install="")
    assert failing == (5, {"verdict": "error", "exit-code": "5"})


def test_what_is_to_be_installed_reaches_pip_word_by_word(tmp_path):
    fake_pip(tmp_path)
    judged, install = """echo '[{"outcome": "pass"}]'""", "-e .[endpoint] -c constraints.txt"
    assert run_action(tmp_path, judged, candidate="lora", install=install)[0] == 0
    words = (tmp_path / "pip").read_text().split("\n")[:-1]
    assert words == ["-m", "pip", "install", "--quiet", "-e", ".[endpoint]", "-c", "constraints.txt"]


def test_no_input_is_pasted_into_a_script_and_what_the_gate_step_writes_is_given_out():
    for name in ("verdict", "exit-code"):
        assert ACTION["outputs"][name]["value"] == f"${{{{ steps.gate.outputs.{name} }}}}"
    assert [step["name"] for step in ACTION["runs"]["steps"] if "${{" in step["run"]] == []


def test_the_action_calls_verbs_and_variables_that_the_command_line_has():
    from typer.main import get_command

    commands = get_command(cli.app).commands
    for step in ACTION["runs"]["steps"]:
        for verb in re.findall(r"^\s*harness (\w+)", step["run"], re.MULTILINE):
            known_variables = {p.envvar for p in commands[verb].params}
            assert {name for name in step["env"] if name.startswith("HARNESS_")} <= known_variables


def test_the_example_workflow_runs_the_action_on_pull_requests_but_not_of_forks_and_keeps_its_report():
    assert "harness.yaml" in WORKFLOW["on"]["pull_request"]["paths"]
    assert "head.repo.full_name == github.repository" in WORKFLOW["jobs"]["gate"]["if"]
    (step,) = [s for s in WORKFLOW["jobs"]["gate"]["steps"] if s.get("uses", "").startswith("./")]
    assert (ROOT / step["uses"] / "action.yml").exists()
    assert set(step["with"]) <= set(ACTION["inputs"])
    required = {name for name, spec in ACTION["inputs"].items() if spec.get("required")}
    assert required <= set(step["with"])
    (step,) = [s for s in WORKFLOW["jobs"]["gate"]["steps"] if "upload-artifact" in s.get("uses", "")]
    assert step["if"] == "always()"


@pytest.mark.weekly
def test_the_nightly_workflow_makes_the_quickstart_once_and_asks_its_fine_tune_every_night(
    tiny, own_cache, tmp_path
):
    workflow = YAML(typ="safe").load(ROOT / ".github" / "workflows" / "nightly.yml")
    candidates = "  prompt: {method: base}\n  hybrid: {method: lora, params: {r: 2, num_train_epochs: 1}}\n"
    tiny_experiment.write(tmp_path, tiny, candidates)
    tools = tmp_path / ".venv" / "bin"
    tools.mkdir(parents=True)
    (tools / "harness").write_text(f"#!/bin/sh\n{HARNESS}\n")
    (tools / "make").write_text('#!/bin/sh\nexec .venv/bin/harness "$1" ${2#ARGS=}\n')
    for program in tools.iterdir():
        program.chmod(0o755)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{tools}:{os.environ['PATH']}"}
    for step in (step["run"] for step in workflow["jobs"]["night"]["steps"] if "run" in step):
        process = subprocess.run(
            ["bash", "-ec", step], cwd=tmp_path, check=False, capture_output=True, env=environment
        )
        assert process.returncode == 0, process.stderr
    assert list((tmp_path / "reports").glob("*.nightly.json")), "which the workflow keeps"
