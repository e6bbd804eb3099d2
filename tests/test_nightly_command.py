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


class Done(NamedTuple):
    """How a command ended, and what stood in reports/ and had come to the webhook by then."""

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

    def run(self, *words: str) -> Done:
        """Run `harness nightly run` as typed in another folder."""
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            command = ["harness", "nightly", "run", "-c", str(self.folder / "harness.yaml"), *words]
            patch.setattr(sys, "argv", command)
            with pytest.raises(SystemExit) as ended:
                main()
        kept = (self.folder / "reports").glob("*.nightly.*")
        texts = {path.name: path.read_text() for path in kept}
        return Done(ended.value.code or 0, out.getvalue(), err.getvalue(), texts, list(self.received))


@pytest.fixture(scope="module")
def desk(tiny, own_cache, tmp_path_factory):
    """Make the experiment with its reference, and let commands find webhook and summary as in a job."""
    folder = tmp_path_factory.mktemp("desk")
    model = shutil.copytree(tiny, folder / "model")
    tiny_experiment.run(tiny_experiment.write(folder, model, CANDIDATES, extra=WATCHED))
    with inbox.listening() as (address, received), pytest.MonkeyPatch.context() as environment:
        environment.setenv("HARNESS_WEBHOOK", address)
        environment.setenv("GITHUB_STEP_SUMMARY", str(folder / "summary.md"))
        yield Desk(folder, model, received)


@pytest.fixture(scope="module")
def quiet(desk):
    """Run a first night, in which nothing has changed."""
    return desk.run("--night", "2026-03-01")


@pytest.fixture(scope="module")
def drifted(desk, quiet):
    """Run the next night after the model's chat template began to write the first token itself."""
    file = desk.model / "chat_template.jinja"
    file.write_text(tiny_model.STARTED)
    return desk.run("--night", "2026-03-02", "--json")


@pytest.fixture(scope="module")
def again(desk, drifted):
    """Run the night with the alarm once more, after somebody has opened the issue."""
    (desk.folder / "reports" / "tiny.nightly.issue.md").unlink()
    return desk.run("--night", "2026-03-02")


def test_a_quiet_night_ends_with_its_verdict_and_exit_code_0(quiet):
    assert quiet.code == 0, quiet.stderr
    assert quiet.stdout.splitlines()[-1] == "tiny, night of 2026-03-01: ok, 1 watched"


def test_the_night_is_the_one_that_was_asked_for(desk, quiet):
    assert (desk.folder / "runs" / "nightly" / "tiny" / "2026-03-01" / "night.json").is_file()


def test_a_quiet_night_writes_page_and_json_beside_the_experiment_and_no_issue(desk, quiet):
    assert set(quiet.reports) == PAGES
    assert json.loads(quiet.reports["tiny.nightly.json"])["night"] == "2026-03-01"
    assert f"wrote {desk.folder / 'reports' / 'tiny.nightly.md'}" in quiet.stderr


def test_a_quiet_night_sends_nothing(quiet):
    assert quiet.received == []


def test_another_chat_template_ends_as_harness_drift_with_exit_code_4(drifted):
    assert drifted.code == 4, drifted.stderr
    found = json.loads(drifted.stdout)
    assert (found["verdict"], found["exit_code"]) == ("harness-drift", 4)


def test_a_new_alarm_is_written_as_an_issue(drifted):
    assert set(drifted.reports) == PAGES | {"tiny.nightly.issue.md"}
    title = drifted.reports["tiny.nightly.issue.md"].splitlines()[0]
    assert title == "Nightly tiny, 2026-03-02: harness: harness-drift"


def test_a_new_alarm_goes_to_the_webhook_that_the_environment_names(drifted):
    (message,) = drifted.received
    assert message["text"].startswith("harness nightly, tiny: harness-drift (2026-03-02): ")


def test_the_same_night_again_tells_nobody_twice_and_keeps_its_verdict(drifted, again):
    assert again.code == 4
    assert "known alarm since 2026-03-02: harness: harness-drift" in again.stdout
    assert again.received == drifted.received


def test_the_same_night_again_writes_no_second_issue(again):
    assert set(again.reports) == PAGES


def test_every_night_adds_its_page_to_the_summary_of_the_job(desk, again):
    titles = [row for row in (desk.folder / "summary.md").read_text().splitlines() if row.startswith("# ")]
    assert titles == [
        "# tiny: night of 2026-03-01: ok",
        "# tiny: night of 2026-03-02: harness-drift",
        "# tiny: night of 2026-03-02: harness-drift",
    ]


@pytest.mark.parametrize(
    ("night", "said"), [("2026-02-28", "expected a night after the last one"), ("yesterday", "--night")]
)
def test_a_night_that_cannot_be_is_refused_without_a_traceback(desk, again, night, said):
    done = desk.run("--night", night)
    assert done.code == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
