"""The command `harness nightly run` itself, on a real tiny model whose chat template changes overnight."""

import io
import json
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import inbox
import pytest
import tiny_experiment
import tiny_model

from harness.cli import main

CANDIDATES = """\
  prompt: {method: base}
  lora: {method: lora, params: {r: 2, num_train_epochs: 1, learning_rate: 0.01, max_length: 200}}
"""
WATCHED = "nightly: {candidates: [lora], items: 4, anchors: 2}\n"
PAGES = {"tiny.nightly.md", "tiny.nightly.json"}


class CommandResult(NamedTuple):
    """The result of a command, with the contents of reports/ and the webhook's messages at its end."""

    code: int
    stdout: str
    stderr: str
    reports: dict[str, str]
    received: list[dict]


class Desk(NamedTuple):
    """An experiment with its model, a webhook and the summary page of a GitHub job."""

    folder: Path
    model: Path
    received: list[dict]

    def run(self, *words: str) -> CommandResult:
        stdout, stderr = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(stdout), redirect_stderr(stderr):
            command = ["harness", "nightly", "run", "-c", str(self.folder / "harness.yaml"), *words]
            patch.setattr(sys, "argv", command)
            with pytest.raises(SystemExit) as exit_info:
                main()
        report_files = (self.folder / "reports").glob("*.nightly.*")
        texts = {path.name: path.read_text() for path in report_files}
        return CommandResult(
            exit_info.value.code or 0, stdout.getvalue(), stderr.getvalue(), texts, list(self.received)
        )


@pytest.fixture(scope="module")
def desk(tiny, own_cache, tmp_path_factory):
    """The experiment with its reference run; commands find webhook and summary as in a job."""
    folder = tmp_path_factory.mktemp("desk")
    model = shutil.copytree(tiny, folder / "model")
    tiny_experiment.run(tiny_experiment.write(folder, model, CANDIDATES, extra=WATCHED))
    with inbox.open_inbox() as (address, received), pytest.MonkeyPatch.context() as environment:
        environment.setenv("HARNESS_WEBHOOK", address)
        environment.setenv("GITHUB_STEP_SUMMARY", str(folder / "summary.md"))
        yield Desk(folder, model, received)


@pytest.fixture(scope="module")
def quiet_night(desk):
    return desk.run("--night", "2026-03-01")


@pytest.fixture(scope="module")
def drift_night(desk, quiet_night):
    """The next night, after the model's chat template was changed to write the BOS token itself."""
    file = desk.model / "chat_template.jinja"
    file.write_text(tiny_model.STARTED)
    return desk.run("--night", "2026-03-02", "--json")


@pytest.fixture(scope="module")
def repeated_night(desk, drift_night):
    (desk.folder / "reports" / "tiny.nightly.issue.md").unlink()
    return desk.run("--night", "2026-03-02")


def test_a_quiet_night_ends_with_its_verdict_and_writes_page_and_json_and_no_issue(desk, quiet_night):
    assert quiet_night.code == 0, quiet_night.stderr
    assert quiet_night.stdout.splitlines()[-1] == "tiny, night of 2026-03-01: ok, 1 watched"
    assert set(quiet_night.reports) == PAGES
    assert json.loads(quiet_night.reports["tiny.nightly.json"])["night"] == "2026-03-01"
    assert f"wrote {desk.folder / 'reports' / 'tiny.nightly.md'}" in quiet_night.stderr


def test_another_chat_template_is_harness_drift_and_told_as_issue_and_to_the_webhook(drift_night):
    assert drift_night.code == 4, drift_night.stderr
    document = json.loads(drift_night.stdout)
    assert (document["verdict"], document["exit_code"]) == ("harness-drift", 4)
    assert set(drift_night.reports) == PAGES | {"tiny.nightly.issue.md"}
    title = drift_night.reports["tiny.nightly.issue.md"].splitlines()[0]
    assert title == "Nightly tiny, 2026-03-02: harness: harness-drift"
    (message,) = drift_night.received
    assert message["text"].startswith("harness nightly, tiny: harness-drift (2026-03-02): ")


def test_a_night_again_tells_nobody_twice_and_adds_its_page_to_the_summary(drift_night, repeated_night, desk):
    assert repeated_night.code == 4
    assert "known alarm since 2026-03-02: harness: harness-drift" in repeated_night.stdout
    assert repeated_night.received == drift_night.received

    titles = [row for row in (desk.folder / "summary.md").read_text().splitlines() if row.startswith("# ")]
    assert titles == [
        "# tiny: night of 2026-03-01: ok",
        "# tiny: night of 2026-03-02: harness-drift",
        "# tiny: night of 2026-03-02: harness-drift",
    ]


@pytest.mark.parametrize(
    ("night", "said"), [("2026-02-28", "expected a night after the last one"), ("yesterday", "--night")]
)
def test_a_night_that_cannot_be_is_refused_without_a_traceback(desk, repeated_night, night, said):
    result = desk.run("--night", night)
    assert result.code == 2
    assert said in result.stderr
    assert "Traceback" not in result.stderr
