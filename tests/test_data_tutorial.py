"""The data tutorial of the docs, word for word: from a messy file to a dry run of a comparison."""

import contextlib
import io
import re
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from harness.cli import main

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


def test_every_command_of_the_tutorial_ends_well(tutorial):
    assert {ran.command: ran.code for ran in tutorial[1] if ran.code} == {}
    assert [ran.command.split()[2] for ran in tutorial[1]] == [
        "check",
        "clean",
        "dedup",
        "split",
        "--dry-run",
        "augment",
    ]


def test_the_commands_of_the_tutorial_print_what_it_shows_in_its_order(tutorial):
    for ran in tutorial[1]:
        printed = iter(ran.printed.splitlines())
        assert [line for line in ran.expected.splitlines() if line not in printed] == [], ran.printed


def test_the_dry_run_of_the_tutorial_counts_every_candidate(tutorial):
    (ran,) = [ran for ran in tutorial[1] if ran.command == "harness compare --dry-run"]
    lines = [line.split("  ")[0] for line in ran.printed.splitlines()]
    assert {"prompt", "ranked", "lora"} <= set(lines)


def test_the_tutorial_changes_nothing_in_place(tutorial):
    assert (tutorial[0] / "tickets.csv").read_text("utf-8") == next(
        text for kind, text in BLOCKS if kind == "csv"
    )
    assert not (tutorial[0] / "runs").exists()
