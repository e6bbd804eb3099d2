"""Citations in answers: which forms are read, how they count, and sentences that their passages entail."""

import json
import shutil
import time

import pytest
import tiny_experiment
import tiny_model
import torch
from checked_rows import list_cases
from openai_server import Rule, serve_model

from harness import store
from harness.errors import UserError
from harness.experiment import compare
from harness.metrics import load_metrics, version
from harness.metrics.citations import support
from harness.prompting import with_context
from harness.records import Document, Example, Output
from harness.spec import Task, TaskData
from harness.store import Store

LAMP = Document("lamp", "Lamp", "The lamp costs 40 euros.")
SHIP = Document("ship", "", "A parcel takes three days.")
BULB = Document("lamp", "Lamp", "It burns for 900 hours.")
METRICS = load_metrics(Task(name="desk", data=TaskData(), metrics=("citation_precision", "citation_recall")))
WORDS = "lamp : the costs 40 euros . a parcel takes three days what does cost ? it and burns long".split()


def make_item(mark="number", documents=("lamp",), found=(LAMP, SHIP, BULB), question="What does it cost?"):
    item = Example("1", ({"role": "user", "content": question},), ("40",), documents=documents)
    return with_context(item, list(found), mark) if found else item


def read_forms(section):
    return [json.loads(form) for (form,) in list_cases("citation_forms.txt", section)]


def scores(answer, example):
    return tuple(metric.score(Output(answer), example)[0] for metric in METRICS.values())


@pytest.mark.parametrize("answer", read_forms("read"))
def test_each_usual_form_of_a_citation_is_read(answer):
    documents = ("lamp", "ship")
    assert scores(answer, make_item(documents=documents)) == (1.0, 1.0)
    assert scores(answer, make_item(documents=("ship",))) == (0.5, 1.0)


@pytest.mark.parametrize("answer", read_forms("not read"))
def test_what_is_in_no_form_that_is_read_counts_for_no_citation(answer):
    assert scores(answer, make_item()) == (0.0, 0.0)


@pytest.mark.parametrize(
    "answer",
    [
        "<sup>" + 3000 * " ", "x" + 3000 * " ", 3000 * "(1", 3000 * "[1]-",
    ],
)  # fmt: skip
def test_an_answer_that_repeats_itself_is_read_quickly(answer):
    start_s = time.process_time()
    scores(answer, make_item())
    assert time.process_time() - start_s < 2


def test_a_citation_behind_a_sentence_is_of_that_sentence_and_every_sentence_should_have_one():
    item = make_item(documents=())
    assert scores("It costs 40 euros. Source: 1", item) == (1.0, 1.0)
    assert scores("It costs 40 euros.¹ It burns long.", item) == (1.0, 0.5)
    assert scores("It costs 40 euros [1, p. 5]. It is 40 [doc. 1].", item) == (1.0, 1.0)
    assert scores("It costs 40 euros [1]. It burns long [1].", item) == (1.0, 1.0)
    assert scores("It costs 40 euros. [1] It burns long.", item) == (1.0, 0.5)
    assert scores("It costs 40 euros [9].", item) == (0.0, 0.0)
    assert scores("40 euros [1]", make_item(found=(SHIP,))) == (0.0, 0.0)
    assert scores("40 euros [1]", make_item(documents=("lamp", "price"))) == (1.0, 0.5)


@pytest.mark.parametrize(
    ("answer", "precision", "recall"),
    [
        ("It costs 40 euros [1].", 1.0, 1.0), ("It costs 40 euros. [1]", 1.0, 1.0),
        ("40 euros [1][2]", 0.5, 1.0), ("40 euros [1, 2]", 0.5, 1.0),
        ("40 euros [1] and again [1]", 1.0, 1.0), ("40 euros [2]", 0.0, 0.0), ("40 euros [1] [7]", 0.5, 1.0),
        ("40 euros [7]", 0.0, 0.0), ("40 euros", 0.0, 0.0), ("40 euros [sic] [1]", 1.0, 1.0),
        ("see [1](http://host.example)", 0.0, 0.0),
    ],
)  # fmt: skip
def test_a_citation_counts_where_its_passage_exists_and_is_one_that_the_item_names(answer, precision, recall):
    assert scores(answer, make_item()) == (precision, recall)


HARNESS = (
    tiny_experiment.DESK
    + """\
  name: replies
  data: {{train: train.jsonl, validation: validation.jsonl, test: test.jsonl, documents: documents.jsonl}}
  metrics: [{metrics}]
  system: Cite the passages that you use, as in [1].
candidates:
  closed: {{method: endpoint, params: {{base_url: {url}, model: tiny, protocol: chat}}}}
  cited: {{weights_of: closed, prompting: {{rag: {{top_k: 2, mark: number}}}}, template: "Context:\\n[a] Read.\\n[b] Cite.\\n\\n{{prompt}}"}}
"""
)


@pytest.fixture(scope="module")
def nli(tmp_path_factory):
    """Save a random sequence classifier with the labels of natural language inference, in an odd order."""
    labels = {0: "contradiction", 1: "ENTAILMENT", 2: "neutral"}
    label_maps = {"id2label": labels, "label2id": {label: i for i, label in labels.items()}}
    folder, kind = tmp_path_factory.mktemp("nli") / "model", "BertForSequenceClassification"
    return tiny_model.build_bert(folder, WORDS, kind, initializer_range=1.0, **label_maps)


@pytest.mark.e2e
def test_a_candidate_that_retrieves_is_scored_by_what_it_cites_and_by_entailment_from_its_stored_answers(
    tmp_path, tiny, nli, own_cache
):
    """Six questions on lamp prices: even ones are cited, odd ones cite one too many, the last none."""
    lamps = [{"id": f"lamp-{i}", "text": f"Lamp model{i} costs {40 + i} euros."} for i in range(6)]
    tiny_experiment.rows(tmp_path / "documents.jsonl", lamps)

    def ask(name, i):
        item = {"prompt": f"{name}: price of lamp model{i}?", "reference": str(40 + i)}
        return item | {"documents": [f"lamp-{i}"]}

    tiny_experiment.write_splits(tmp_path, (4, 2, 6), ask)

    def answer(messages):
        text = messages[-1]["content"]
        number = text.rpartition("model")[2].removesuffix("?")
        first = next((line for line in text.splitlines() if f"model{number} costs" in line), "[1]")
        mark = first.partition(" ")[0]
        if number == "5":
            return "45 euros, as the passage says"
        return f"{40 + int(number)} euros {mark}" + ("" if int(number) % 2 == 0 else "[1][2]")

    path = tmp_path / "harness.yaml"
    with serve_model(Rule(answer)) as server:
        names = "citation_precision, citation_recall"
        path.write_text(HARNESS.format(model=tiny, url=server.url, metrics=names))
        report = compare(path)
        by_name = {facts.name: facts for facts in report.facts}
        assert by_name["cited"].target.score == pytest.approx((3 * 1.0 + 2 * 0.5) / 6)
        assert by_name["closed"].target.score == 0.0, "what is not in the prompt cannot be cited"
        n_asked = len(server.asked)
        config = HARNESS.format(model=tiny, url=server.url, metrics=f"contains, {names}, 'entailment:./nli'")
        path.write_text(config)
        with pytest.raises(UserError, match=r"harness\.yaml:8.*nli"):
            compare(path)
        shutil.copytree(nli, tmp_path / "nli")
        compare(path)
        assert len(server.asked) == n_asked
    closed, rows = (
        store.read_rows(Store(tmp_path / "runs"), tiny_experiment.runs_of(path)[name].rows["replies/test"])
        for name in ("closed", "cited")
    )
    assert {row.parts["entailment:nli"] for row in closed} == {(0.0,)}
    assert all(row.parts["entailment:nli"] is not None for row in rows)
    assert all(len(row.passages) == 2 for row in rows)
    assert sorted(row.parts["citation_recall"] for row in rows) == [(0.0,)] + [(1.0,)] * 5
    assert sorted(row.parts["citation_precision"] for row in rows) == [(0.0,), (0.5,), (0.5,)] + [(1.0,)] * 3


ITEM = Example("1", ({"role": "user", "content": "What does the lamp cost?"},), ("40 euros",))


def build_metrics(written):
    return load_metrics(Task(name="desk", data=TaskData(), metrics=(str(written),)))


def test_a_sentence_is_supported_where_one_passage_entails_it():
    asked_pairs = []

    def entails(pairs):
        asked_pairs.extend(pairs)
        return [0.9 if "40" in passage and "40" in claim else 0.2 for passage, claim in pairs]

    item = with_context(ITEM, [SHIP, LAMP], "number")
    answer = "The lamp costs 40 euros now [2]. It burns for a long time."
    assert support(answer, item, entails) == 0.5
    assert asked_pairs[1] == ("Lamp: The lamp costs 40 euros.", "The lamp costs 40 euros now .")
    assert len(asked_pairs) == 4
    asked_pairs.clear()
    assert support("40 euros", item, entails) == 1.0
    assert asked_pairs[0][1] == "What does the lamp cost? 40 euros", "two words alone state nothing"


def test_the_score_is_that_of_the_models_own_probabilities_by_its_own_labels(nli):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model, tokenizer = (
        kind.from_pretrained(nli) for kind in (AutoModelForSequenceClassification, AutoTokenizer)
    )
    (metric,) = build_metrics(f"entailment:{nli}").values()
    item = with_context(ITEM, [LAMP, SHIP])
    answers = [
        "The lamp costs 40 euros and burns long.", "A parcel takes three days and 40 euros.",
        "It burns the lamp and the parcel.", "Three days the lamp burns a parcel.", "40 40 40 40 40 days .",
        "What does it cost the lamp?", "Euros and days and euros.", "The the the the the the.",
    ]  # fmt: skip
    expected = []
    for text in answers:
        passages = ["Lamp: The lamp costs 40 euros.", "A parcel takes three days."]
        pairs = tokenizer(passages, [text] * 2, padding=True, return_tensors="pt")
        with torch.no_grad():
            expected.append(float(model.eval()(**pairs).logits.softmax(-1)[:, 1].max() >= 0.5))
    assert len(set(expected)) == 2
    assert [metric.score(Output(text), item)[0] for text in answers] == expected


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
    with pytest.raises(UserError, match="a model with the labels LABEL_0, LABEL_1, LABEL_2") as error:
        build_metrics(f"entailment:{copy}")
    assert "correct id2label in its config.json" in str(error.value)
    with pytest.raises(UserError, match=r"no config\.json in"):
        build_metrics(f"entailment:{tmp_path}")
    config["id2label"] = {"0": "not_entailment", "1": "entailment"}
    (copy / "config.json").write_text(json.dumps(config))
    assert build_metrics(f"entailment:{copy}").keys() == {"entailment:copy"}
