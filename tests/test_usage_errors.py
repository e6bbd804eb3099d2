"""What the parser refuses of a command is an error as any other: found, expected, next step."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.cli import app
from harness.errors import UserError, did_you_mean


def read_refusal(*words):
    error = CliRunner().invoke(app, words, prog_name="harness").exception
    assert isinstance(error, UserError)
    assert error.exit_code == 2
    return str(error)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["compare", "--workers", "x"],
            "--workers: found x; expected a whole number; next: such as --workers 1",
        ),
        (["init", "--minutes=abc"], "--minutes: found abc; expected a number; next: such as --minutes 0.5"),
        (
            ["nightly", "run", "--night", "2026-13-40"],
            "--night: found 2026-13-40; expected a date; next: such as --night 2026-01-31",
        ),
        (
            ["data", "check", "x", "--fail-on", "warnin"],
            "--fail-on: found warnin; expected one of error, warning; next: did you mean 'warning'?",
        ),
        (
            ["runs", "list", "--jsn"],
            "harness runs list: found --jsn; expected an option that it has; next: did you mean '--json'?",
        ),
        (["compar"], "harness: found compar; expected a verb that it has; next: did you mean 'compare'?"),
        (
            ["data", "chek"],
            "harness data: found chek; expected a verb that it has; next: did you mean 'check'?",
        ),
        (["runs", "show"], "RUN: found none; expected a run's id; next: harness runs show --help"),
        (
            ["runs", "list", "a", "b"],
            "harness runs list: found a b; expected no further words; next: harness runs list --help",
        ),
        (
            ["compare", "--workers"],
            "--workers: found no value; expected one behind it; next: harness compare --help",
        ),
        (
            ["data", "clean", "x.csv", "--out"],
            "--out: found no value; expected one behind it; next: harness data clean --help",
        ),
        (
            ["runs", "list", "--runs"],
            "--runs: found no value; expected one behind it; next: harness runs list --help",
        ),
        (["compare", "--json=x"], "--json: found a value; expected none; next: harness compare --help"),
    ],
)
def test_what_cannot_be_parsed_is_said_with_what_was_found_and_expected(words, said):
    assert read_refusal(*words) == said


def test_an_unknown_option_names_options_alone():
    assert read_refusal("rate", "import", "x.csv", "--pairs").endswith(
        "next: one of: --config, --help, --json, --rater, --scale, -c"
    )


def test_text_in_a_variable_in_place_of_a_number_is_said_of_its_option(monkeypatch):
    monkeypatch.setenv("HARNESS_MINUTES", "abc")
    assert read_refusal("init").startswith("--minutes: found abc; expected a number")


def test_a_group_of_verbs_alone_prints_its_help():
    done = CliRunner().invoke(app, ["runs"])
    assert "Usage:" in done.output
    assert not isinstance(done.exception, UserError)


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


def test_a_long_list_of_known_names_is_cut():
    said = did_you_mean("zzz", [f"item-{i:03d}" for i in range(300)])
    assert said.endswith("item-039 and 260 more")
    assert len(said) < 500
