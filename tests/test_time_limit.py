"""The time limit of a test session, by sessions of their own."""

import subprocess
import sys
from pathlib import Path

import pytest

QUICK = "def test_quick(): pass\n"
LONG = """
import time

import pytest

{fixture}
def test_long({argument}):
    {body}

def test_later():
    pass
"""


def run_session(folder, text, *arguments):
    """Run the tests of a file with the time limit, and return what pytest printed."""
    (folder / "test_it.py").write_text(text)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "time_limit",
        "-p",
        "no:cacheprovider",
        "-q",
        *arguments,
        folder,
    ]
    environment = {"PYTHONPATH": str(Path(__file__).parent), "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)


def test_without_a_limit_every_test_runs(tmp_path):
    done = run_session(tmp_path, QUICK)
    assert "1 passed in" in done.stdout


def test_no_test_starts_when_the_time_is_over(tmp_path):
    done = run_session(tmp_path, QUICK, "--minutes", "0")
    assert done.returncode == 0, done.stdout
    assert "1 not run in" in done.stdout


@pytest.mark.parametrize("processes", [(), ("-n", "1")])
@pytest.mark.parametrize(
    "parts",
    [
        {"fixture": "", "argument": "", "body": "time.sleep(60)"},
        {"fixture": "@pytest.fixture\ndef slow(): time.sleep(60)", "argument": "slow", "body": "pass"},
    ],
    ids=["test", "fixture"],
)
def test_a_test_under_way_when_the_time_is_over_ends_and_counts_as_not_run(tmp_path, parts, processes):
    done = run_session(tmp_path, LONG.format(**parts), "--minutes", "0.05", *processes)
    assert done.returncode == 0, done.stdout
    assert "2 not run in" in done.stdout
    assert "failed" not in done.stdout


def test_what_an_interrupted_test_fails_by_is_no_failure(tmp_path):
    body = "try:\n        time.sleep(60)\n    except BaseException:\n        raise KeyError from None"
    done = run_session(tmp_path, LONG.format(fixture="", argument="", body=body), "--minutes", "0.05")
    assert "2 not run in" in done.stdout


def test_a_failure_within_the_time_stays_a_failure(tmp_path):
    done = run_session(tmp_path, "def test_it(): assert False\n", "--minutes", "5")
    assert done.returncode == 1
    assert "1 failed in" in done.stdout
