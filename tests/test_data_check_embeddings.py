"""Rows of one sense, by a real encoder: what `data check --embeddings` names, and what it leaves."""

import json

import pytest
import tiny_experiment
from checked_rows import write
from typer.testing import CliRunner

from harness.cli import app

ASKED = (
    ("Can I cancel my order?", "Yes, until it is packed."),
    ("Is it possible to cancel my order?", "Yes, until it is packed."),
    ("How can I close my account?", "In the settings, on the last page."),
    ("What do I do to close my account?", "In the settings, on the last page."),
    ("How do I open an account?", "With a name and an e-mail address."),
    ("How tall is Mount Everest?", "8,849 m"),
    ("How tall is Mount Elbrus?", "5,642 m"),
    ("Hamlet was written by whom?", "Shakespeare"),
    ("Which bus goes to the harbour?", "Line 12"),
    ("My stove does not light", "Clean the nozzle first."),
)
TESTED = (
    ("What is the height of Mount Everest?", "8,849 m"),
    ("Who wrote Hamlet?", "Shakespeare"),
    ("Where is the nearest pharmacy?", "At the station"),
)


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, rows in (("train", ASKED), ("test", TESTED)):
        write(tmp_path / f"{name}.jsonl", [{"question": asks, "answer": says} for asks, says in rows])
    return ["train.jsonl", "--test", "test.jsonl"]


def check_by_sense(*words):
    """Run the command and return what it finds by sense."""
    done = CliRunner().invoke(app, ["data", "check", *words, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["findings"]
    return {f["check"]: f for f in found if "by sense" in f["title"]}


@pytest.mark.e2e
def test_a_real_encoder_finds_duplicates_and_leaks_that_share_few_words(files, minilm):
    assert check_by_sense(*files) == {}
    found = check_by_sense(*files, "--embeddings", str(minilm))
    assert found["repeated_rows"]["rows"] == ["train.jsonl:2", "train.jsonl:4"]
    assert found["test_leaks"]["rows"] == ["train.jsonl:6", "train.jsonl:8"]
    where = "# its Data page, where the target's `test:` is test.jsonl, with the model of --embeddings named there, "
    assert where in found["test_leaks"]["command"]


@pytest.mark.e2e
def test_the_doctor_holds_training_rows_against_every_suite_by_sense(tiny, minilm, own_cache, tmp_path):
    path = tiny_experiment.write(tmp_path, tiny)
    letters, facts = (tmp_path / "suites" / file for file in ("letters/train.jsonl", "general/facts.jsonl"))
    rows = [json.loads(line) for line in letters.read_text().splitlines()]
    rows[0]["prompt"] = "Is it possible to cancel my order?"
    tiny_experiment.rows(letters, rows)
    tested = [{"id": "cancel", "prompt": "Can I cancel my order?", "reference": "Yes"}]
    tiny_experiment.rows(facts, [*tiny_experiment.facts(), *tested])
    assert not any("embeddings" in line for line in _run_doctor(path))
    (line,) = [line for line in _run_doctor(path, "--embeddings", str(minilm)) if "(embeddings 0." in line]
    assert "letters/train.jsonl:1 and " in line
    assert "general/facts.jsonl:7 (embeddings 0." in line


def _run_doctor(path, *words):
    """Return what the doctor says of the experiment."""
    done = CliRunner().invoke(app, ["doctor", "--config", str(path), "--json", *words])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)["experiment"]
