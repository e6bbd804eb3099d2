"""Rows that users have, evaluated by a short harness.yaml without code: instructions, articles, preferences.

HARNESS_EXAMPLES names a folder in which to keep the reports, as `reports/examples` does.
"""

import os
from pathlib import Path

import pytest

import harness.experiment as experiment
from harness import config, report
from harness.data import load_task
from tests.conftest import find_shared_data

pytestmark = pytest.mark.weekly

DOLLY = """
name: dolly
target:
  name: dolly
  data: {{all: {rows}, limits: {{train: 32, validation: 8, test: 24}}}}
  metrics: [token_f1, rouge]
  max_new_tokens: 64
  truncated_scores: true
candidates:
  prompt: prompt
  lora: {{method: lora, params: {{r: 16, learning_rate: 1.0e-3, num_train_epochs: 2, max_length: 384}}}}
"""

XQUAD = """
name: xquad
target:
  name: xquad
  data: {{all: {rows}, documents: {rows}, limits: {{train: 64, validation: 16, test: 60}}}}
  fields: {{cluster: "{{article}}"}}
  metrics: [contains, token_f1, citation_recall]
  system: Answer in a few words, and name the passage that says so, as in [1].
  max_new_tokens: 48
  truncated_scores: true
candidates:
  closed-book: prompt
  shots: few-shot
  rag: rag
decide: {{needs: [answers_with_sources, missing_capability]}}
"""

HH_RLHF = """
name: harmless
target:
  name: harmless
  data: {{all: {rows}, pairs: {rows}, invalid_rows: drop, limits: {{validation: 8, test: 12}}}}
  metrics: [token_f1]
  max_new_tokens: 32
  truncated_scores: true
candidates:
  prompt: prompt
  dpo: {{method: dpo, params: {{learning_rate: 1.0e-4, max_steps: 5, max_length: 320}}}}
"""


def compare_and_write(path, **limits):
    result = experiment.compare(path, **limits)
    forms = report.write(result, path.parent)
    if kept_folder := os.environ.get("HARNESS_EXAMPLES"):
        for form in (form for form in forms if form.suffix in (".md", ".json", ".svg")):
            text = form.read_text().replace(f"{find_shared_data('rows').parent}/", "")
            (Path(kept_folder) / form.name).write_text(text)
    return result


def write_experiment(folder, text, rows):
    path = folder / "harness.yaml"
    path.write_text(text.format(rows=find_shared_data(rows)))
    return path


@pytest.fixture(scope="module")
def dolly(tmp_path_factory):
    path = write_experiment(tmp_path_factory.mktemp("dolly"), DOLLY, "rows/dolly_3k/train.jsonl.gz")
    return compare_and_write(path, limit=24)


@pytest.fixture(scope="module")
def xquad_path(tmp_path_factory):
    return write_experiment(tmp_path_factory.mktemp("xquad"), XQUAD, "rows/squad_xquad_en/all.jsonl.gz")


@pytest.fixture(scope="module")
def xquad(xquad_path):
    return compare_and_write(xquad_path)


@pytest.fixture(scope="module")
def harmless_report(tmp_path_factory):
    path = write_experiment(
        tmp_path_factory.mktemp("harmless"), HH_RLHF, "rows/hh_rlhf_harmless/test.jsonl.gz"
    )
    return compare_and_write(path)


def scores(report):
    return {f.name: f.target.score for f in report.facts}


def test_instructions_are_learnt_from_rows_as_they_are(dolly):
    lora = next(fact for fact in dolly.facts if fact.name == "lora")
    assert {fact.state for fact in dolly.facts} == {"done"}
    assert {fact.target.n for fact in dolly.facts} == {24}
    losses = [loss for _, loss in lora.training.loss]
    half = len(losses) // 2  # an epoch: both have seen the same rows
    assert sum(losses[-half:]) < sum(losses[:half])


def test_how_the_rows_were_read_and_split_is_in_the_report(dolly, xquad):
    assert any("read as Alpaca rows" in note for note in dolly.notes)
    assert any("by cluster" in note for note in xquad.notes)


def test_retrieval_beats_the_closed_book(xquad):
    rag = next(fact for fact in xquad.facts if fact.name == "rag")
    assert rag.answers.recall > 0.6
    assert scores(xquad)["rag"] > scores(xquad)["closed-book"] + 0.1


def test_declared_needs_are_answered_by_what_was_measured_and_edge_cases_are_slices(xquad):
    reasons = "\n".join(xquad.decision.reasons)
    assert "Measured (answers with sources): retrieval found" in reasons
    assert "the citations of rag reach" in reasons
    assert "Measured (missing capability): the base reaches" in reasons
    assert any(name.startswith("edge: ") for facts in xquad.facts for name in facts.slices), xquad.facts[
        0
    ].slices


def test_no_article_is_on_two_sides(xquad_path):
    items = load_task(config.load(xquad_path).experiment.target, 0)
    sides = [{item.cluster for item in split} for split in (items.train, items.validation, items.test)]
    assert sum(map(len, sides)) == len(set.union(*sides))


def test_transcripts_of_preferences_train_a_dpo_candidate(harmless_report):
    dpo = next(fact for fact in harmless_report.facts if fact.name == "dpo")
    assert dpo.state == "done"
    assert dpo.training.loss[0][1] == pytest.approx(0.6931, abs=0.02)
    assert dpo.training.reward_margin[-1][1] > 0
    assert any("rows dropped" in note or "left out" in note for note in harmless_report.notes)
