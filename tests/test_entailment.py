"""Groundedness by an entailment model: each sentence of an answer against each passage, on a random tiny model."""

import json
import shutil
from dataclasses import replace

import pytest
import tiny_experiment
import torch
from openai_server import Rule, serve_model

from harness import store
from harness.errors import UserError
from harness.evaluation import wrap_prompt
from harness.experiment import compare
from harness.metrics import load_metrics, version
from harness.metrics._entailment import support
from harness.prompting import with_context
from harness.records import Document, Example, Output
from harness.spec import Task, TaskData
from harness.store import Store

LAMP = Document("lamp", "Lamp", "The lamp costs 40 euros.")
SHIP = Document("ship", "", "A parcel takes three days.")
ITEM = Example("1", ({"role": "user", "content": "What does the lamp cost?"},), ("40 euros",))
WORDS = "lamp : the costs 40 euros . a parcel takes three days what does cost ? it and burns long".split()


@pytest.fixture(scope="module")
def nli(tmp_path_factory):
    """Save a random sequence classifier with the labels of natural language inference, in an odd order."""
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

    folder = tmp_path_factory.mktemp("nli")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    labels = {0: "contradiction", 1: "ENTAILMENT", 2: "neutral"}
    config = BertConfig(
        vocab_size=len(tokenizer), max_position_embeddings=64, initializer_range=1.0,
        id2label=labels, label2id={label: i for i, label in labels.items()}, **sizes,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder / "model"


def build_metrics(written):
    return load_metrics(Task(name="desk", data=TaskData(), metrics=(str(written),)))


def test_a_sentence_is_supported_where_one_passage_entails_it():
    asked = []

    def entails(pairs):
        asked.extend(pairs)
        return [0.9 if "40" in passage and "40" in said else 0.2 for passage, said in pairs]

    item = with_context(ITEM, [SHIP, LAMP], "number")
    answer = "The lamp costs 40 euros now [2]. It burns for a long time."
    assert support(answer, item, entails) == 0.5
    assert asked[1] == ("Lamp: The lamp costs 40 euros.", "The lamp costs 40 euros now .")
    assert len(asked) == 4
    asked.clear()
    assert support("40 euros", item, entails) == 1.0
    assert asked[0][1] == "What does the lamp cost? 40 euros", "two words alone state nothing"


def test_only_the_passages_count_where_a_template_has_a_context_of_its_own():
    seen = []

    def entails(pairs):
        seen.extend(pairs)
        return [0.9] * len(pairs)

    item = wrap_prompt(with_context(ITEM, [LAMP], "number"), None, "Context:\nA shop.\n\n{prompt}")
    support("40 euros", replace(item, plain_prompt=ITEM.prompt), entails)
    assert seen == [("Lamp: The lamp costs 40 euros.", "What does the lamp cost? 40 euros")]
    closed = wrap_prompt(ITEM, None, "Context:\nA shop.\n\n{prompt}")
    assert support("40 euros", replace(closed, plain_prompt=ITEM.prompt), entails) == 0.0
    own = replace(ITEM, plain_prompt="Context:\nIt costs 40.\n\nWhat does it cost?")
    assert support("It costs 40 euros now.", own, entails) == 1.0
    assert seen[-1] == ("It costs 40.", "It costs 40 euros now.")


def test_the_score_is_that_of_the_models_own_probabilities_by_its_own_labels(nli):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model, tokenizer = (
        kind.from_pretrained(nli) for kind in (AutoModelForSequenceClassification, AutoTokenizer)
    )
    (metric,) = build_metrics(f"entailment:{nli}").values()
    item = with_context(ITEM, [LAMP, SHIP])
    said = [
        "The lamp costs 40 euros and burns long.", "A parcel takes three days and 40 euros.",
        "It burns the lamp and the parcel.", "Three days the lamp burns a parcel.", "40 40 40 40 40 days .",
        "What does it cost the lamp?", "Euros and days and euros.", "The the the the the the.",
    ]  # fmt: skip
    expected = []
    for text in said:
        passages = ["Lamp: The lamp costs 40 euros.", "A parcel takes three days."]
        pairs = tokenizer(passages, [text] * 2, padding=True, return_tensors="pt")
        with torch.no_grad():
            expected.append(float(model.eval()(**pairs).logits.softmax(-1)[:, 1].max() >= 0.5))
    assert len(set(expected)) == 2
    assert [metric.score(Output(text), item)[0] for text in said] == expected


def test_the_weights_are_part_of_the_metric_and_their_path_is_not(nli, tmp_path):
    copy = shutil.copytree(nli, tmp_path / "copy")
    same = version(f"entailment:{copy}")
    (copy / "model.safetensors").write_bytes(b"other")
    assert version(f"entailment:{nli}") == same != version(f"entailment:{copy}")


def test_a_model_without_the_label_and_a_folder_without_a_model_are_refused(nli, tmp_path):
    copy = shutil.copytree(nli, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    config["id2label"] = {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="a model with the labels LABEL_0, LABEL_1, LABEL_2") as found:
        build_metrics(f"entailment:{copy}")
    assert "correct id2label in its config.json" in str(found.value)
    with pytest.raises(UserError, match=r"no config\.json in"):
        build_metrics(f"entailment:{tmp_path}")
    config["id2label"] = {"0": "not_entailment", "1": "entailment"}
    (copy / "config.json").write_text(json.dumps(config))
    assert build_metrics(f"entailment:{copy}").keys() == {"entailment:copy"}


HARNESS = (
    tiny_experiment.DESK
    + """\
  name: replies
  data: {{train: train.jsonl, validation: validation.jsonl, test: test.jsonl, documents: documents.jsonl}}
  metrics: [token_f1, "entailment:{nli}"]
candidates:
  closed: {{method: endpoint, params: {{base_url: {url}, model: tiny, protocol: chat}}}}
  rag: {{weights_of: closed, prompting: {{rag: {{top_k: 1}}}}}}
"""
)


@pytest.mark.e2e
def test_a_comparison_scores_by_it_and_one_of_a_missing_model_says_where(nli, tmp_path, tiny, own_cache):
    tiny_experiment.rows(tmp_path / "documents.jsonl", [{"id": "lamp", "text": "The lamp costs 40 euros."}])
    for name in ("train", "validation", "test"):
        rows = [
            {"id": f"{name}-{i}", "prompt": f"{name} {i}: the lamp?", "reference": "40"} for i in range(4)
        ]
        tiny_experiment.rows(tmp_path / f"{name}.jsonl", rows)
    path = tmp_path / "harness.yaml"
    shutil.copytree(nli, tmp_path / "nli")
    with serve_model(Rule(lambda messages: "It burns the lamp and the parcel.")) as server:
        path.write_text(HARNESS.format(model=tiny, url=server.url, nli="./missing"))
        with pytest.raises(UserError, match=r"harness\.yaml:8.*missing"):
            compare(path)
        assert server.asked == []
        path.write_text(HARNESS.format(model=tiny, url=server.url, nli="./nli"))
        compare(path)
    runs = tiny_experiment.runs_of(path)
    parts = {
        name: {
            row.parts["entailment:nli"]
            for row in store.read_rows(Store(tmp_path / "runs"), run.rows["replies/test"])
        }
        for name, run in runs.items()
    }
    assert parts["closed"] == {(0.0,)}
    assert len(parts["rag"]) == 1
