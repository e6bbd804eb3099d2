"""What is refused of a command line is named, with what to type instead."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.cli import app


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("compare --workers x", "--workers"),
        ("data check x --fail-on warnin", "warning"),
        ("runs list --jsn", "--json"),
        ("compar", "compare"),
        ("runs show", "RUN"),
        ("compare --workers", "--workers"),
        ("compare --json=x", "--json"),
    ],
)
def test_what_the_parser_refuses_is_named_and_ends_with_2(words, named):
    done = CliRunner().invoke(app, words.split(), prog_name="harness")
    assert done.exit_code == 2
    assert done.stdout == ""
    assert named in done.stderr.partition("Error")[2]


@pytest.mark.parametrize(
    ("words", "step"),
    [
        (["tickets.yaml"], "harness compare -c tickets.yaml"),
        (["-c", "tickets.yaml", "tickets.yaml"], "harness compare -c tickets.yaml"),
        (["--config=other.yaml", "tickets.yaml"], "harness compare --config=other.yaml"),
    ],
)
def test_a_file_in_the_place_of_an_override_has_the_command_that_reads_it(command, words, step):
    Path("tickets.yaml").write_text("name: x\n")
    code, _, said = command("compare", *words)
    assert (code, said.partition("next: ")[2].strip()) == (2, step)
