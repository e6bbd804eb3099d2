"""Rows with wrong labels and duplicates from check to comparison: what mending them changes in the score."""

import json
import random
from pathlib import Path

import pytest
from checked_rows import LABELS, make_clean_rows, write
from typer.testing import CliRunner

import harness.experiment as experiment
from harness.cli import app
from harness.data.edit.decisions import RowDecision, keep_decision
from harness.records import checksum

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
