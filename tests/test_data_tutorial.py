"""The data tutorial of the docs and the pages of its studies: every command ends as shown, and mending pays."""

import contextlib
import io
import json
import random
import re
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from checked_rows import LABELS, make_clean_rows, write
from typer.testing import CliRunner

import harness.experiment as experiment
from harness.cli import app, main
from harness.data.edit.changes import RowDecision, keep_decision
from harness.records import checksum
from reports.studies import data_check_page, mended_rows
from reports.studies.data_check import READ

PAGE = (Path(__file__).parents[1] / "docs" / "howto" / "edit_data.md").read_text("utf-8")
TUTORIAL = PAGE.split("## From a messy file to a comparison\n")[1].split("\n## ")[0]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", TUTORIAL, re.MULTILINE | re.DOTALL)


class CommandResult(NamedTuple):
    command: str
    code: int
    printed: str
    expected: str


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory):
    """Write the files of the tutorial and run its commands, one after the other, in one folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder := tmp_path_factory.mktemp("tutorial"))
        yield folder, [ran for i in range(len(BLOCKS)) for ran in step(i, patch)]


def step(i, patch):
    language, text = BLOCKS[i]
    if language in ("csv", "yaml"):
        Path({"csv": "tickets.csv", "yaml": "harness.yaml"}[language]).write_text(text, encoding="utf-8")
    for line in text.splitlines() if language == "sh" else ():
        following = BLOCKS[i + 1] if i + 1 < len(BLOCKS) else ("", "")
        expected = following[1] if following[0] == "text" else ""
        out = io.StringIO()
        patch.setattr(sys, "argv", shlex.split(line))
        with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as ended:
            main()
        yield CommandResult(line, ended.value.code or 0, out.getvalue(), expected)


def test_every_command_of_the_tutorial_ends_well_prints_what_it_shows_and_changes_nothing_in_place(tutorial):
    assert {ran.command: ran.code for ran in tutorial[1] if ran.code} == {}
    expected = ["check", "clean", "dedup", "split", "--dry-run", "augment"]
    assert [ran.command.split()[2] for ran in tutorial[1]] == expected
    for ran in tutorial[1]:
        printed = iter(ran.printed.splitlines())
        assert [line for line in ran.expected.splitlines() if line not in printed] == [], ran.printed
    (ran,) = [ran for ran in tutorial[1] if ran.command == "harness compare --dry-run"]
    lines = [line.split("  ")[0] for line in ran.printed.splitlines()]
    assert {"prompt", "ranked", "lora"} <= set(lines)

    assert (tutorial[0] / "tickets.csv").read_text("utf-8") == next(
        text for kind, text in BLOCKS if kind == "csv"
    )
    assert not (tutorial[0] / "runs").exists()


N, N_TEST, N_AGAIN = 400, 300, 20
EXPERIMENT = """\
name: mended
target:
  name: tickets
  data: {train: messy.jsonl, validation: parts/validation.jsonl, test: parts/test.jsonl}
  fields: {prompt: "{text}", reference: "{label}"}
  labels: [refund, delivery, account, invoice]
candidates:
  messy: {method: classifier, params: {ngram_range: [1, 1]}}
  relabelled: {method: classifier, train: relabelled.jsonl, params: {ngram_range: [1, 1]}}
  unique: {method: classifier, train: unique.jsonl, params: {ngram_range: [1, 1]}}
"""


def harness(*words):
    done = CliRunner().invoke(app, ["data", *words])
    assert done.exit_code == 0, done.output
    return done.stdout


def change_labels(rows):
    """Give one row of five another label."""
    rng = random.Random(1)
    return [
        {**row, "label": rng.choice([label for label in LABELS if label != row["label"]])}
        if rng.random() < 0.2
        else row
        for row in rows
    ]


@pytest.fixture
def training_sets(tmp_path, monkeypatch):
    """Check, clean, deduplicate and split rows, and compare a classifier on each file."""
    monkeypatch.chdir(tmp_path)
    rows = make_clean_rows(N + N_TEST)
    messy = change_labels(rows[:N])
    write(Path("messy.jsonl"), [*messy, *messy[:N_AGAIN]])
    write(Path("held.jsonl"), rows[N:])
    found = json.loads(harness("check", "messy.jsonl", "--json"))["findings"]
    (suspects,) = (f for f in found if f["check"] == "suspect_labels" and f["labels"])
    digest = checksum(Path("messy.jsonl"))
    for place, label in zip(suspects["rows"], suspects["labels"], strict=True):
        line = int(place.rpartition(":")[2])
        keep_decision("messy.jsonl", line, RowDecision("relabel", label), digest, "label")
    decided = ("--decisions", "messy.jsonl.decisions.json")
    harness("clean", "messy.jsonl", "--out", "relabelled.jsonl", *decided)
    harness("dedup", "relabelled.jsonl", "--out", "unique.jsonl")
    harness("split", "held.jsonl", "--shares", "0.1,0.1,0.8", "--stratify", "label", "--out", "parts")
    Path("harness.yaml").write_text(EXPERIMENT)
    (table,) = experiment.compare(tmp_path / "harness.yaml").training_sets
    return {one.candidate: one for one in table.sets}


def test_mended_labels_raise_the_score_and_dropped_duplicates_leave_it(training_sets):
    assert training_sets["relabelled"].difference.low > 0
    again = training_sets["unique"].difference
    assert again.low > 0
    assert Path("unique.jsonl").read_bytes().count(b"\n") == N
    assert abs(training_sets["unique"].score - training_sets["relabelled"].score) < 0.05


REPORTS = Path(__file__).parents[1] / "reports"


def data_check(figures):
    return data_check_page.page(figures, json.loads(READ.read_text("utf-8")))


@pytest.mark.parametrize(("name", "page"), [("data_check", data_check), ("mended_rows", mended_rows.page)])
def test_a_page_is_what_its_figures_give(name, page):
    figures = json.loads((REPORTS / f"{name}.json").read_text("utf-8"))
    assert (REPORTS / f"{name}.md").read_text("utf-8") == page(figures)


def test_at_least_fifty_findings_that_nobody_planted_were_read():
    read = json.loads(READ.read_text("utf-8"))
    assert sum(len(lines) for checks in read.values() for lines in checks.values()) >= 50
