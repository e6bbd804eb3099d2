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
FAILING = "try:\n        time.sleep(60)\n    except BaseException:\n        raise KeyError from None"


def run_session(folder, text, *arguments):
    (folder / "test_it.py").write_text(text)
    plugins = ["-p", "time_limit", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *plugins, "-q", *arguments, folder]
    environment = {"PYTHONPATH": str(Path(__file__).parent), "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("text", "limit", "code", "said"),
    [
        (QUICK, (), 0, "1 passed in"),
        (QUICK, ("--minutes", "0"), 0, "1 not run in"),
        ("def test_it(): assert False\n", ("--minutes", "5"), 1, "1 failed in"),
    ],
    ids=["no limit", "over", "a failure within"],
)
def test_no_test_starts_when_the_time_is_over_and_within_it_each_ends_as_it_does(
    tmp_path, text, limit, code, said
):
    done = run_session(tmp_path, text, *limit)
    assert done.returncode == code, done.stdout
    assert said in done.stdout


@pytest.mark.e2e
@pytest.mark.parametrize("processes", [(), ("-n", "1")])
@pytest.mark.parametrize(
    "parts",
    [
        {"fixture": "", "argument": "", "body": "time.sleep(60)"},
        {"fixture": "@pytest.fixture\ndef slow(): time.sleep(60)", "argument": "slow", "body": "pass"},
        {"fixture": "", "argument": "", "body": FAILING},
    ],
    ids=["test", "fixture", "interrupted into a failure"],
)
def test_a_test_under_way_when_the_time_is_over_ends_and_counts_as_not_run(tmp_path, parts, processes):
    done = run_session(tmp_path, LONG.format(**parts), "--minutes", "0.05", *processes)
    assert done.returncode == 0, done.stdout
    assert "2 not run in" in done.stdout
    assert "failed" not in done.stdout
