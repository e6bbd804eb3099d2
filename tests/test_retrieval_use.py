"""What became of retrieval: failures that were planted are told apart, on made-up items and on XQuAD."""

import gzip
import json
from dataclasses import replace

import pytest
from conftest import find_shared_data
from fake_facts import candidate

from harness.comparison import RetrievalUse, retrieval_use
from harness.comparison.answers import is_supported
from harness.prompting import context_of, with_context
from harness.records import Document, Example, SampleResult
from harness.report.answer_tables import retrieval_section, retrieval_text

LAMP = Document("lamp", "Lamp", "The lamp costs 40 euros and burns for 900 hours.")
SHIP = Document("ship", "Shipping", "A parcel takes three days to arrive.")
PRICE = Example(
    "price", ({"role": "user", "content": "What does the lamp cost?"},), ("40 euros",), documents=("lamp",)
)


def make_row(example, passages, text, status="ok"):
    asked = with_context(example, passages)
    return SampleResult(
        task="task",
        split="test",
        example_id=example.id,
        position=0,
        status=status,
        text=text,
        prompt=asked.prompt,
        references=example.references,
        parts={},
        passages=asked.passages,
    )


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
    found = use(passages, text, right)
    assert {name: n for name, n in found._asdict().items() if name in RetrievalUse._fields[1:7] and n} == {
        expected: 1
    }
    assert found.n == 1


def test_the_passages_of_a_prompt_are_read_back_from_under_any_template():
    assert context_of(with_context(PRICE, [SHIP]).prompt).endswith("A parcel takes three days to arrive.")
    assert context_of(PRICE.prompt) == ""
    asked = with_context(PRICE, [LAMP])
    wrapped = replace(asked, messages=({"role": "user", "content": f"Be brief.\n\n{asked.prompt}\nThanks"},))
    assert context_of(wrapped.prompt) == context_of(asked.prompt) != ""
    row = replace(make_row(PRICE, [LAMP], "40 euros"), prompt=wrapped.prompt)
    assert retrieval_use([row], {"price": 1.0}, {"price": PRICE}, (LAMP, SHIP)).used == 1
    row = make_row(PRICE, [LAMP], "40 euros")
    framed = replace(row, prompt=f"Context:\nYou are a shop.\n\n{row.prompt}\n\nBe brief.")
    assert retrieval_use([framed], {"price": 1.0}, {"price": PRICE}, (LAMP, SHIP)).used == 1
    asked = "Context:\nA shop of ours.\n\nWhat does the lamp cost?"
    item = replace(PRICE, messages=({"role": "user", "content": asked},))
    assert use([LAMP], "40 euros", True, item).used == 1


def test_recall_precision_and_reciprocal_rank_are_those_of_the_passages_and_failures_apart():
    third = Document("third", "", "Nothing of that.")
    found = use([SHIP, LAMP, third], "40 euros", True).retrieved
    assert (found.recall, found.precision, found.reciprocal_rank) == (1.0, pytest.approx(1 / 3), 0.5)
    found = use([LAMP], "", False, status="error")
    assert (found.n, found.errors, found.grounded) == (0, 1, None)
    row = replace(make_row(PRICE, [LAMP], "40 euros"), passages=())
    assert retrieval_use([row], {"price": 1.0}, {"price": PRICE}, [LAMP]) is None


def test_what_is_in_no_document_or_needs_no_literal_answer_is_found_by_the_needed_documents():
    label = replace(PRICE, references=("price_question",))
    found = use([LAMP], "price_question", True, label)
    assert (found.used, found.grounded) == (1, None), "a label stands in no document"
    assert use([SHIP], "other", False, label).missed == 1
    label = replace(PRICE, references=("price_question",), documents=())
    assert use([LAMP], "price_question", True, label)[:8] == (0, 0, 0, 0, 0, 0, 0, 1)
    item = replace(PRICE, references=("no",))
    long = LAMP._replace(text=f"{LAMP.text} There is no lamp with a plug.")
    part = LAMP._replace(text="The lamp costs 40 euros.")
    assert use([part], "no", True, item, documents=(long, SHIP)).used == 1
    assert use([part], "yes", False, item, documents=(long, SHIP)).unused == 1
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
    found = use([copy], "40 euros", True, documents=(LAMP, copy, SHIP))
    assert (found.used, found.retrieved.recall, found.retrieved.precision) == (1, 1.0, 1.0)


@pytest.mark.parametrize(
    ("answer", "supported"),
    [
        ("The lamp costs 40 euros.", True),
        ("40 EUROS", True),
        ("The lamp costs 45 euros.", False),
        ("The lamp costs 40 euros. Elephants remember faces.", False),
        ("", False),
        ("?!", False),
        ("yes", True),
    ],
)
def test_an_answer_is_grounded_where_the_passages_hold_the_words_of_each_sentence(answer, supported):
    assert is_supported(answer, "Lamp: The lamp costs 40 euros and burns for 900 hours. Yes.") is supported


@pytest.mark.e2e
def test_planted_failures_of_xquad_are_counted_as_planted():
    """Plant into 1,190 questions: other articles' passages, wrong answers, and invented sentences."""
    with gzip.open(find_shared_data("rows/squad_xquad_en/all.jsonl.gz"), "rt", encoding="utf-8") as file:
        stored = [json.loads(line) for line in file]
    texts = {row["context"]: f"d{i}" for i, row in enumerate(stored)}
    documents = [Document(i, "", text) for text, i in texts.items()]
    by_text = {document.text: document for document in documents}
    rows, scores, examples = [], {}, {}
    planted = dict.fromkeys(("used", "ungrounded", "unused", "missed"), 0)
    for i, row in enumerate(stored):
        asked = ({"role": "user", "content": row["question"]},)
        example = Example(row["id"], asked, tuple(row["answers"]), documents=(texts[row["context"]],))
        answer = row["answers"][0]
        others = [d for d in documents if answer.casefold() not in d.text.casefold()]
        kind = ("used", "unused", "missed", "ungrounded", "used")[i % 5]
        if kind == "missed" and not others:
            kind = "used"
        passage = others[i % len(others)] if kind == "missed" else by_text[row["context"]]
        text = {"ungrounded": f"{answer}. Zebras zigzag quietly 77123 times."}.get(kind, answer)
        text = "no idea whatsoever" if kind in ("unused", "missed") else text
        examples[example.id] = example
        scores[example.id] = float(kind in ("used", "ungrounded"))
        rows.append(make_row(example, [passage], text))
        planted[kind] += 1
    found = retrieval_use(rows, scores, examples, documents)
    assert found.n == len(stored)
    assert {name: getattr(found, name) for name in planted} == planted
    assert found.known == found.unclear == 0
    assert found.retrieved.recall == pytest.approx(1 - planted["missed"] / found.n)


def test_the_table_and_the_sentence_say_what_was_found_and_used():
    row = make_row(PRICE, [LAMP], "I do not know.")
    found = retrieval_use([row], {"price": 0.0}, {"price": PRICE}, [LAMP])
    facts = replace(candidate("rag", 0.5), retrieval=found, recall=1.0)
    assert retrieval_section([facts, candidate("prompt", 0.4)]).rows == [
        ["rag", "1", "0", "0", "1", "0", "0", "0", "0.0", "100.0", "100.0", "1.00"]
    ]
    assert retrieval_text(facts) == (
        "retrieval found 100.0 % of the documents needed (recall@k); the passages held the answer to 1 of"
        " 1 items; 1 were answered wrongly and 0 right but not from them"
    )
