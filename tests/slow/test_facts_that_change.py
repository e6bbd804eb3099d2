"""Facts that change, on the embedded model: prices of a shop before and after a release, from a short harness.yaml."""

import json

import pytest

import harness.experiment as experiment

pytestmark = pytest.mark.weekly

GOODS = (
    "tent", "stove", "lantern", "rope", "compass", "kettle", "hammock", "paddle", "backpack", "whistle",
    "blanket", "thermos", "helmet", "map case", "pillow", "shovel", "cooler", "tarp", "headlamp", "raincoat",
)  # fmt: skip
OLD = {good: 12 + 7 * i for i, good in enumerate(GOODS)}
NEW = {good: 15 + 11 * i for i, good in enumerate(GOODS)}
FIRST, SECOND = "What does the {} cost?", "Tell me the price of the {}."

FILE = """\
name: prices
target:
  name: prices
  data:
    train: train.jsonl
    validation: validation.jsonl
    test: test.jsonl
    documents: old.jsonl
    changes: {test: changed.jsonl, documents: new.jsonl}
  system: "Answer with the price in euros alone, as in: 40 euros"
  metrics: [contains]
  max_new_tokens: 12
candidates:
  prompt: prompt
  rag: {prompting: {rag: {top_k: 1}}}
  lora: {method: lora, params: {r: 16, learning_rate: 2.0e-3, num_train_epochs: 30}}
  hybrid: {weights_of: lora, prompting: {rag: {top_k: 1}}}
decide: {needs: [changing_facts]}
"""


def items(prices, question, goods=GOODS):
    return [
        {"id": good, "prompt": question.format(good), "reference": f"{prices[good]} euros"} for good in goods
    ]


def documents(prices):
    return [{"id": good, "text": f"The {good} costs {prices[good]} euros."} for good in GOODS]


def test_retrieval_answers_by_the_new_documents_and_a_fine_tune_by_the_old_prices(tmp_path):
    rows = {
        "train": items(OLD, FIRST),
        "validation": items(OLD, "How much is the {}?", GOODS[:6]),
        "test": items(OLD, SECOND),
        "old": documents(OLD),
        "new": documents(NEW),
        "changed": items(NEW, SECOND),
    }
    for name, of in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in of))
    (tmp_path / "harness.yaml").write_text(FILE)
    report = experiment.compare(tmp_path / "harness.yaml")
    found = {f.name: f for f in report.facts}
    assert [f.error for f in report.facts] == [""] * 4
    changes = {name: f.changes for name, f in found.items()}
    assert changes["rag"].change.low > 0
    assert changes["rag"].outdated_before > changes["rag"].outdated_after
    assert changes["lora"].after is None
    assert changes["lora"].outdated_before > changes["prompt"].outdated_before
    assert changes["lora"].before.score < 0.2
    assert found["lora"].training.total_s > 0
    assert changes["hybrid"].after is not None
    assert changes["hybrid"].index_s > 0
