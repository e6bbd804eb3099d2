"""Use of retrieved passages: planted failures are told apart on made-up items, and shown in the report."""

from collections import Counter
from dataclasses import replace
from itertools import product

import pytest
import tiny_experiment
from fake_facts import candidate
from openai_server import Rule, serve_model
from tiny_experiment import runs_of

from harness.analysis.answers import RetrievalUse, is_supported, retrieval_use
from harness.experiment import compare
from harness.prompting import context_of, with_context
from harness.records import Document, Example, SampleResult
from harness.report import experiment_document, markdown
from harness.report.sections import RETRIEVAL_COLUMNS, retrieval_section, retrieval_text
from harness.report.wording import find_shown_figure

LAMP = Document("lamp", "Lamp", "The lamp costs 40 euros and burns for 900 hours.")
SHIP = Document("ship", "Shipping", "A parcel takes three days to arrive.")
PRICE = Example(
    "price", ({"role": "user", "content": "What does the lamp cost?"},), ("40 euros",), documents=("lamp",)
)


def make_row(example, passages, text, status="ok"):
    prompted = with_context(example, passages)
    return SampleResult(
        task="task", split="test", example_id=example.id, position=0, status=status, text=text,
        prompt=prompted.prompt, references=example.references, parts={}, passages=prompted.passages,
    )  # fmt: skip


def use(passages, text, right, example=PRICE, documents=(LAMP, SHIP), status="ok"):
    row = make_row(example, passages, text, status)
    return retrieval_use([row], {example.id: float(right)}, {example.id: example}, documents)


@pytest.mark.parametrize(
    ("passages", "text", "right", "expected"),
    [
        ([LAMP], "40 euros", True, "used"),
        ([LAMP], "It costs 40 euros. Delivery costs 7 euros more.", True, "ungrounded"),
        ([LAMP], "I do not know.", False, "unused"),
        ([SHIP], "three days", False, "missed"),
        ([SHIP], "40 euros", True, "known"),
    ],
)
def test_an_answer_is_sorted_by_what_was_found_and_used(passages, text, right, expected):
    outcome = use(passages, text, right)
    assert {name: n for name, n in outcome._asdict().items() if name in RetrievalUse._fields[1:7] and n} == {
        expected: 1
    }
    assert outcome.n == 1


def test_the_passages_of_a_prompt_are_read_back_from_under_any_template():
    assert context_of(with_context(PRICE, [SHIP]).prompt).endswith("A parcel takes three days to arrive.")
    assert context_of(PRICE.prompt) == ""
    query = with_context(PRICE, [LAMP])
    wrapped = replace(query, messages=({"role": "user", "content": f"Be brief.\n\n{query.prompt}\nThanks"},))
    assert context_of(wrapped.prompt) == context_of(query.prompt) != ""
    row = replace(make_row(PRICE, [LAMP], "40 euros"), prompt=wrapped.prompt)
    assert retrieval_use([row], {"price": 1.0}, {"price": PRICE}, (LAMP, SHIP)).used == 1
    row = make_row(PRICE, [LAMP], "40 euros")
    framed = replace(row, prompt=f"Context:\nYou are a shop.\n\n{row.prompt}\n\nBe brief.")
    assert retrieval_use([framed], {"price": 1.0}, {"price": PRICE}, (LAMP, SHIP)).used == 1
    question = "Context:\nA shop of ours.\n\nWhat does the lamp cost?"
    item = replace(PRICE, messages=({"role": "user", "content": question},))
    assert use([LAMP], "40 euros", True, item).used == 1


def test_recall_precision_and_reciprocal_rank_are_those_of_the_passages_and_failures_apart():
    third = Document("third", "", "Nothing of that.")
    facts = use([SHIP, LAMP, third], "40 euros", True).retrieved
    assert (facts.recall, facts.precision, facts.reciprocal_rank) == (1.0, pytest.approx(1 / 3), 0.5)
    outcome = use([LAMP], "", False, status="error")
    assert (outcome.n, outcome.errors, outcome.grounded) == (0, 1, None)
    row = replace(make_row(PRICE, [LAMP], "40 euros"), passages=())
    assert retrieval_use([row], {"price": 1.0}, {"price": PRICE}, [LAMP]) is None


def test_what_is_in_no_document_or_needs_no_literal_answer_is_found_by_the_needed_documents():
    label = replace(PRICE, references=("price_question",))
    outcome = use([LAMP], "price_question", True, label)
    assert (outcome.used, outcome.grounded) == (1, None), "a label stands in no document"
    assert use([SHIP], "other", False, label).missed == 1
    label = replace(PRICE, references=("price_question",), documents=())
    assert use([LAMP], "price_question", True, label)[:8] == (0, 0, 0, 0, 0, 0, 0, 1)
    item = replace(PRICE, references=("no",))
    long = LAMP._replace(text=f"{LAMP.text} There is no lamp with a plug.")
    passage = LAMP._replace(text="The lamp costs 40 euros.")
    assert use([passage], "no", True, item, documents=(long, SHIP)).used == 1
    assert use([passage], "yes", False, item, documents=(long, SHIP)).unused == 1
    item = replace(PRICE, references=("cheaper",), documents=("lamp", "ship"))
    assert use([LAMP], "dearer", False, item).missed == 1
    assert use([LAMP, SHIP], "dearer", False, item).unused == 1


def test_a_reference_in_a_wrong_passage_or_within_another_word_is_not_found():
    price = Document("price", "", "The chair costs 40 euros too.")
    assert use([price], "no idea", False, documents=(LAMP, price)).missed == 1
    twins = Document("twins", "", "The lamp costs 140 euros.")
    item = replace(PRICE, documents=())
    assert use([twins], "140 euros", False, item, documents=(twins, LAMP)).missed == 1
    copy = LAMP._replace(id="copy")
    outcome = use([copy], "40 euros", True, documents=(LAMP, copy, SHIP))
    assert (outcome.used, outcome.retrieved.recall, outcome.retrieved.precision) == (1, 1.0, 1.0)


@pytest.mark.parametrize(
    ("answer", "supported"),
    [
        ("The lamp costs 40 euros.", True), ("40 EUROS", True), ("The lamp costs 45 euros.", False),
        ("The lamp costs 40 euros. Elephants remember faces.", False), ("", False), ("?!", False),
        ("yes", True),
    ],
)  # fmt: skip
def test_an_answer_is_grounded_where_the_passages_hold_the_words_of_each_sentence(answer, supported):
    assert is_supported(answer, "Lamp: The lamp costs 40 euros and burns for 900 hours. Yes.") is supported


def test_the_table_and_the_sentence_say_what_was_found_and_used():
    row = make_row(PRICE, [LAMP], "I do not know.")
    usage = retrieval_use([row], {"price": 0.0}, {"price": PRICE}, [LAMP])
    facts = candidate("rag", 0.5, retrieval=usage, recall=1.0)
    assert retrieval_section([facts, candidate("prompt", 0.4)]).rows == [
        ["rag", "1", "0", "0", "1", "0", "0", "0", "0.0", "100.0", "100.0", "1.00"]
    ]
    assert retrieval_text(facts) == (
        "retrieval found 100.0 % of the documents needed (recall@k); the passages held the answer to 1 of"
        " 1 items; 1 were answered wrongly and 0 right but not from them"
    )


HARNESS = """\
name: shops
base_model: {model}
precision: fp32
device: cpu
target:
  name: questions
  data: {{train: train.jsonl, validation: validation.jsonl, test: test.jsonl, documents: documents.jsonl}}
  metrics: [contains, token_f1]
decide:
  usd_per_million_tokens: {{input: 0, output: 0}}
  device_hour_usd: 3600
  index_usd_per_month: 30
  requests_per_month: 20_000
candidates:
  closed: {{method: endpoint, params: {{base_url: {url}, model: tiny, protocol: chat}}}}
  rag:
    weights_of: closed
    prompting: {{rag: {{top_k: 1, chunk_words: 2000, mark: number}}}}
    template: "Answer from the passages.\\n{{prompt}}"
"""


def write_failures(folder):
    """Write a question about each of 20 shops; returns the answers, and the count of each planted failure."""
    names = [
        "".join(pair)
        for pair in product("Amber Birch Cedar Doum Elm".split(), "Bridge Gate Hill Lake".split())
    ]
    hours = [f"{hour}:{ten}0 in the morning" for hour, ten in product("67891", "6789")]
    opening = dict(zip(names, hours, strict=True))
    rows, answers, kinds = [], {}, Counter()
    for i, name in enumerate(names):
        kind = ("used", "ungrounded", "unused", "missed", "used")[i % 5]
        needed = names[i - 7] if kind == "missed" else name  # its question finds the shop that it names
        question, right = f"When does the {name} shop open?", opening[needed]
        replies = {"used": right, "ungrounded": f"{right}. Zebras zigzag quietly 77123 times."}
        answers[question] = replies.get(kind, "no idea whatsoever")
        kinds[kind] += 1
        rows.append({"id": f"q{i}", "prompt": question, "reference": right, "documents": [needed]})
    tiny_experiment.rows(folder / "test.jsonl", rows)
    for name in ("train", "validation"):
        plain = [{"id": f"{name}-{i}", "prompt": f"{name} {i}?", "reference": f"r{i}"} for i in range(4)]
        tiny_experiment.rows(folder / f"{name}.jsonl", plain)
    sold = "The {0} shop opens at {1}; lamps and tents are sold there. Welcome to {0}."
    documents = [{"id": name, "text": sold.format(name, opening[name])} for name in names]
    tiny_experiment.rows(folder / "documents.jsonl", documents)
    return answers, kinds


@pytest.mark.e2e
def test_failures_planted_into_retrieval_are_counted_in_the_report_as_planted(tmp_path, tiny, own_cache):
    answers, planted = write_failures(tmp_path)
    path = tmp_path / "harness.yaml"

    def answer(messages):
        text = messages[-1]["content"]
        return answers.get(text.rpartition("\n\n")[2], "?!") if "Context:" in text else "?!"

    with serve_model(Rule(answer)) as server:
        path.write_text(HARNESS.format(model=tiny, url=server.url))
        compared = compare(path)
    facts = {facts.name: facts for facts in compared.facts}
    assert facts["closed"].cost_per_1k_usd == 0
    chosen_s = runs_of(path)["rag"].latency["prompting_s"]
    assert facts["rag"].cost_per_1k_usd == pytest.approx(1000 * chosen_s), "at 1 USD a second"
    assert find_shown_figure(facts["rag"], "cost_per_1k_usd") == pytest.approx(1000 * chosen_s + 1.5)
    assert "1.50 USD of 1,000 requests to rag at 20,000 requests a month" in compared.decision.reasons[-1]
    use = facts["rag"].answers.retrieval
    assert {kind: getattr(use, kind) for kind in planted} == planted
    assert (use.n, use.known, use.errors, use.unclear) == (20, 0, 0, 0)
    assert use.retrieved.recall == use.retrieved.reciprocal_rank == 1 - planted["missed"] / 20
    page = markdown(experiment_document(compared))
    line = next(line for line in page.splitlines() if line.startswith("| rag | 20 |"))
    cells = dict(zip(RETRIEVAL_COLUMNS, [cell.strip() for cell in line.split("|")[1:-1]], strict=True))
    columns = ("used", "used, not grounded", "found, not used", "not found, wrong")
    assert [cells[name] for name in columns] == [str(n) for n in planted.values()]
    assert (cells["not found, yet right"], cells["not judged"]) == ("0", "0")
