"""Provenance: what a number depends on is found without a heavy import, and never by failing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from harness import provenance
from harness.records import canonical_json

ROOT = Path(__file__).parents[1]


def git(folder, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path):
    git(tmp_path, "init", "--quiet")
    (tmp_path / ".gitignore").write_text("runs/\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    return tmp_path


@pytest.mark.parametrize("name", [".gitignore", "new_metric.py"])
def test_a_changed_or_a_new_file_makes_the_checkout_dirty(repository, name):
    (repository / name).write_text("changed\n")
    assert provenance.git_state(repository).dirty is True


def test_outside_a_repository_the_commit_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.git_state(tmp_path) == (None, None)


def test_without_git_the_commit_is_unknown(repository, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert provenance.git_state(repository) == (None, None)


def test_what_is_collected_is_json_and_names_code_packages_and_machine(repository):
    found = provenance.collect("Some GPU", repository)
    assert json.loads(canonical_json(found)) == found
    assert found["git_sha"] == git(repository, "rev-parse", "HEAD")
    assert (found["device"], found["git_dirty"]) == ("Some GPU", False)
    assert set(found["packages"]) == set(provenance.PACKAGES)
    assert found["packages"]["numpy"]


def test_the_environment_digest_is_stable_and_changes_with_the_device():
    assert provenance.environment_digest("x") == provenance.environment_digest("x")
    assert provenance.environment_digest("x") != provenance.environment_digest("y")


def test_a_machine_without_cpuinfo_has_another_name_or_none(tmp_path):
    assert provenance.processor_name(tmp_path / "none") != ""


@pytest.mark.parametrize(("limit", "expected"), [("3", 3), ("", None), ("2,1", None)])
def test_the_thread_count_follows_the_limit_where_it_is_a_number(monkeypatch, limit, expected):
    monkeypatch.setenv("OMP_NUM_THREADS", limit)
    count = provenance.thread_count()
    assert count == expected if expected else count >= 1


def test_packages_are_not_imported_to_learn_their_versions():
    program = (
        "import sys, harness.provenance as p; p.collect(); p.environment_digest();"
        "print(sorted(set(p.PACKAGES) & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
