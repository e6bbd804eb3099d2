"""Leaks in other words: what each measure finds, and that its threshold is the one that pairs chose."""

import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from harness.data import load_task
from harness.data.examples import SourcedExample
from harness.data.near_duplicates import similarity
from harness.data.overlap import EMBEDDINGS, WORDS_IN_COMMON, Overlap, open_encoder, overlap_notes, overlaps
from harness.evaluation.candidate_rows import refuse_or_note
from harness.records import Example
from harness.spec import Task

FILE = Path(__file__).parents[1] / "reports" / "studies" / "paraphrases.jsonl"
PAIRS = [json.loads(line) for line in FILE.read_text("utf-8").splitlines()]
NEGATIVES = [p for p in PAIRS if p["kind"] == "different" and int(p["id"][-3:]) % 2]
RULES = (
    "Visitors may bring one bag that is not a larger than a sheet of paper and must leave umbrellas,"
    " tripods and food at the counter near the main entrance"
)


class TaskTexts(NamedTuple):
    """The texts of an lm-eval task's documents, which are all that the leak check reads."""

    texts: tuple[Example, ...]


def find_lowest_threshold(similarities: list[float]) -> float:
    allowed = math.floor(0.05 * len(similarities))
    highest_quiet = sorted(similarities, reverse=True)[allowed]
    return math.floor(100 * highest_quiet + 1) / 100


def test_pairs_of_both_kinds_choose_the_threshold_of_words_in_common():
    kinds = [pair["kind"] for pair in PAIRS]
    assert min(kinds.count("paraphrase"), kinds.count("different")) >= 100
    assert len({pair["id"] for pair in PAIRS}) == len(PAIRS)
    assert find_lowest_threshold([similarity(p["a"], p["b"]) for p in NEGATIVES]) == WORDS_IN_COMMON


def test_a_lightly_edited_question_is_found_with_its_item():
    training = ["What is the fee for a top up?", "How do I open an account for my business in Germany"]
    items = ["Why is my card blocked?", "How do I open an account for my business in Germany, please?"]
    [found] = overlaps(training, items)
    assert found[:3] == (1, 1, "words in common")
    assert found.similarity == pytest.approx(similarity(training[1], items[1]))


def test_an_item_inside_a_longer_row_or_answer_is_found_by_its_8_grams():
    training = [
        "Answer from the text.",
        f"Read this: {RULES}. Then write a summary of it for children, in three lines.",
    ]
    [found] = overlaps(training, ["Who came?", RULES])
    assert found == Overlap(1, 1, "8-grams", 1.0)
    words = RULES.split()
    cut = " ".join(words[: len(words) - 4])
    grams = len(words) - 7
    [found] = overlaps(
        [f"{cut} and then something else that is much longer than it was, {cut[:20]}"], [RULES]
    )
    assert found.measure == "8-grams"
    assert found.similarity == pytest.approx((grams - 4) / grams)
    rows = ["Recite the rules of the museum."]
    assert overlaps(rows, [RULES]) == []
    assert overlaps(rows, [RULES], answers=[f"Gladly. {RULES}."])[0].measure == "8-grams"


@pytest.mark.parametrize(
    "row",
    [
        "Hello, where is my parcel? Thanks",
        "Good morning! Where is my parcel? Kind regards",
        "Dear team,\nwhere is my parcel",
        "Where is my parcel - thanks a lot",
    ],
)
def test_an_item_in_a_greeting_is_found_by_the_words_of_a_part(row):
    found = overlaps([row], ["How do I pay?", "Where is my parcel?"])
    assert found == [Overlap(0, 1, "words in a part", 1.0)]


def test_rows_that_differ_behind_a_comma_are_no_leaks():
    items = ["Which car manufacturer is French or American: Aixam, Buick"]
    assert overlaps(["Which car manufacturer is French or American: Renault, RAM"], items) == []


def test_what_many_items_share_is_boilerplate():
    """With the rules in front of eleven items, a row that has them too repeats none of the items."""
    items = [f"{RULES}. Question number {i}: {'why ' * i}" for i in range(11)]
    row = [
        f"{RULES}. And now a question of its own, about what one may take home from the shop of the museum today?"
    ]
    assert overlaps(row, items[:10])
    assert overlaps(row, items) == []


def test_embeddings_name_the_closest_item_above_the_threshold():
    vectors = {"a": (1.0, 0.0), "b": (0.0, 1.0), "near b": (0.1, math.sqrt(0.99)), "between": (0.8, 0.6)}
    found = overlaps(
        ["near b", "between"],
        ["a", "b"],
        encode=lambda texts: np.array([vectors[t] for t in texts], np.float32),
    )
    assert [o[:3] for o in found] == [(0, 1, "embeddings")]
    assert found[0].similarity == pytest.approx(math.sqrt(0.99))


@pytest.fixture
def leaky_task(tmp_path, monkeypatch):
    """A task with a training row and a pair that are test items in other words, and a suite's item in another."""
    monkeypatch.chdir(tmp_path)
    ask = "How do I open an account for my business in Germany"
    fill = [{"prompt": f"{word} {word}", "reference": "yes"} for word in ("one", "two", "three")]
    files = {
        "train": [
            *fill,
            {"prompt": f"{ask}?", "reference": "yes"},
            {"prompt": f"Read {RULES}", "reference": "no"},
        ],
        "test": [
            {"prompt": "four four", "reference": "yes"},
            {"prompt": f"{ask} please?", "reference": "no"},
        ],
        "pairs": [{"prompt": f"{ask} now?", "chosen": "a", "rejected": "b"}],
        "rules": [{"prompt": RULES, "reference": "no"}],
    }
    for name, rows in files.items():
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train": "train.jsonl", "validation": "rules.jsonl", "test": "test.jsonl", "pairs": "pairs.jsonl"}
    return Task(name="target", data=data), Task(name="museum", data={"test": "rules.jsonl"})


def test_rows_in_other_words_are_noted_with_their_places_and_what_removes_them(leaky_task):
    items = {task.name: load_task(task, 0) for task in leaky_task}
    of_rows, of_pairs = refuse_or_note(leaky_task[0], items, {}).notes[-2:]
    assert of_rows.startswith("train.jsonl: 2 rows may be evaluated items in other words; closest: ")
    assert "train.jsonl:4 and test.jsonl:2 (words in common 0.8" in of_rows
    assert "train.jsonl:5 and rules.jsonl:1 (words in common 0.9" in of_rows
    assert (
        "`harness data dedup train.jsonl --against rules.jsonl --against test.jsonl --out train.dedup.jsonl`"
        in of_rows
    )
    assert of_pairs.startswith("pairs.jsonl: 1 row may be")
    assert "pairs.jsonl:1 and test.jsonl:2" in of_pairs


def test_documents_of_lm_eval_are_looked_at_as_items_are(leaky_task):
    target = leaky_task[0].model_copy(
        update={"data": leaky_task[0].data.model_copy(update={"validation": None})}
    )
    items = {"target": load_task(target, 0)}
    said = refuse_or_note(
        target, items, {"arc": TaskTexts((Example("7/0", ({"role": "user", "content": RULES},)),))}
    )
    assert "train.jsonl:5 and arc document 7/0" in said.notes[-2]


@pytest.mark.slow
def test_the_threshold_of_embeddings_is_what_one_half_of_the_pairs_chooses(minilm):
    encode = open_encoder(str(minilm), "test")
    left, right = (encode([pair[side] for pair in NEGATIVES]) for side in "ab")
    assert find_lowest_threshold((left * right).sum(axis=1).tolist()) == EMBEDDINGS


def test_rows_alike_in_a_file_that_test_items_are_drawn_from_are_kept_together_by_a_split():
    ask = "How do I open an account for my business in Germany"
    train, test = (
        SourcedExample(Example(str(i), ({"role": "user", "content": text},)), f"rows.jsonl:{i}")
        for i, text in enumerate((f"{ask}?", f"{ask} please?"), start=1)
    )
    (note,) = overlap_notes([train], [test], "rows.jsonl")
    assert note.endswith(
        "`harness data split rows.jsonl --out rows.split` keeps rows that are alike in one part"
    )
    (note,) = overlap_notes([train], [test], "own.jsonl", drawn_from="rows.jsonl")
    assert "--against" not in note
    assert "`harness data split rows.jsonl --out rows.split`" in note


def test_no_two_commands_write_one_file():
    texts = (
        "How do I open an account for my business in Germany",
        "Where is the parcel that I ordered in May",
    )
    data_sets = ("hub:a/rows", "hub:b/rows")
    train = [
        SourcedExample(Example(f"{i}{at}", ({"role": "user", "content": text},)), f"{at}:{i}")
        for i, text in enumerate([f"{texts[0]}?", texts[1]])
        for at in data_sets
    ]
    test = SourcedExample(
        Example("t", ({"role": "user", "content": f"{texts[0]} please?"},)), "hub:c/items:1"
    )
    names = {}
    one, other = (
        overlap_notes([row for row in train if row.where.startswith(at)], [test], at, names=names)
        for at in data_sets
    )
    assert "--out rows.dedup.jsonl`" in "".join(one)
    assert "--out rows.dedup-2.jsonl`" in "".join(other)
    (both,) = overlap_notes(train, [test], " and ".join(data_sets))
    assert "--out rows.dedup.jsonl`" in both
    assert "--out rows.dedup-2.jsonl`" in both
