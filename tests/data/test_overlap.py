"""Paraphrased leaks by each measure at the threshold chosen on pairs; near duplicates against brute force."""

import json
import math
import random
import re
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from checked_rows import write

from harness.data import load_task
from harness.data.contamination import EMBEDDINGS, WORDS_IN_COMMON, Overlap, open_encoder, overlaps
from harness.data.near_duplicates import (
    DuplicateGroup,
    TextMatch,
    are_alike,
    near_duplicates,
    nearest,
    similarity,
)
from harness.evaluation.candidate_rows import refuse_or_note
from harness.records import Example
from harness.regularizers import general_prompts
from harness.spec import Task

FILE = Path(__file__).parents[2] / "reports" / "studies" / "paraphrases.jsonl"
PAIRS = [json.loads(line) for line in FILE.read_text("utf-8").splitlines()]
NEGATIVES = [p for p in PAIRS if p["kind"] == "different" and int(p["id"][-3:]) % 2]
RULES = (
    "Visitors may bring one bag that is not a larger than a sheet of paper and must leave umbrellas,"
    " tripods and food at the counter near the main entrance"
)


def find_lowest_threshold(similarities: list[float]) -> float:
    n_allowed = math.floor(0.05 * len(similarities))
    first_allowed = sorted(similarities, reverse=True)[n_allowed]
    return math.floor(100 * first_allowed + 1) / 100


def test_pairs_of_both_kinds_choose_the_threshold_of_words_in_common():
    kinds = [pair["kind"] for pair in PAIRS]
    assert min(kinds.count("paraphrase"), kinds.count("different")) >= 100
    assert len({pair["id"] for pair in PAIRS}) == len(PAIRS)
    assert find_lowest_threshold([similarity(p["a"], p["b"]) for p in NEGATIVES]) == WORDS_IN_COMMON


def test_a_lightly_edited_question_is_found_and_one_that_differs_behind_a_comma_is_no_leak():
    training = ["What is the fee for a top up?", "How do I open an account for my business in Germany"]
    items = ["Why is my card blocked?", "How do I open an account for my business in Germany, please?"]
    [overlap] = overlaps(training, items)
    assert overlap[:3] == (1, 1, "words in common")
    assert overlap.similarity == pytest.approx(similarity(training[1], items[1]))

    items = ["Which car manufacturer is French or American: Aixam, Buick"]
    assert overlaps(["Which car manufacturer is French or American: Renault, RAM"], items) == []


def test_an_item_inside_a_longer_row_or_answer_is_found_by_its_8_grams():
    long_row = f"Read this: {RULES}. Then write a summary of it for children, in three lines."
    [overlap] = overlaps(["Answer from the text.", long_row], ["Who came?", RULES])
    assert overlap == Overlap(1, 1, "8-grams", 1.0)
    words = RULES.split()
    cut_rules = " ".join(words[: len(words) - 4])
    n_grams = len(words) - 7
    longer_row = f"{cut_rules} and then something else that is much longer than it was, {cut_rules[:20]}"
    [overlap] = overlaps([longer_row], [RULES])
    assert overlap.measure == "8-grams"
    assert overlap.similarity == pytest.approx((n_grams - 4) / n_grams)
    short_rows = ["Recite the rules of the museum."]
    assert overlaps(short_rows, [RULES]) == []
    assert overlaps(short_rows, [RULES], answers=[f"Gladly. {RULES}."])[0].measure == "8-grams"


@pytest.mark.parametrize("row", ["Hello, where is my parcel? Thanks", "Where is my parcel - thanks a lot"])
def test_an_item_in_a_greeting_is_found_by_the_words_of_a_part(row):
    matches = overlaps([row], ["How do I pay?", "Where is my parcel?"])
    assert matches == [Overlap(0, 1, "words in a part", 1.0)]
    swapped_matches = overlaps(["How do I pay?", "Where is my parcel?", "Where is my parcel?"], [row])
    assert swapped_matches == [Overlap(i, 0, "words in a part", 1.0) for i in (1, 2)]


def test_what_many_items_share_is_boilerplate():
    """With the rules in front of eleven items, a row with the same rules repeats none of the items."""
    items = [f"{RULES}. Question number {i}: {'why ' * i}" for i in range(11)]
    query = "And now a question of its own, about what one may take home from the shop of the museum today?"
    assert overlaps([f"{RULES}. {query}"], items[:10])
    assert overlaps([f"{RULES}. {query}"], items) == []


def test_embeddings_name_the_closest_item_above_the_threshold():
    vectors = {"a": (1.0, 0.0), "b": (0.0, 1.0), "near b": (0.1, math.sqrt(0.99)), "between": (0.8, 0.6)}

    def encode(texts):
        return np.array([vectors[text] for text in texts], np.float32)

    matches = overlaps(["near b", "between"], ["a", "b"], encode=encode)
    assert [match[:3] for match in matches] == [(0, 1, "embeddings")]
    assert matches[0].similarity == pytest.approx(math.sqrt(0.99))


@pytest.fixture
def leaky_task(tmp_path, monkeypatch):
    """A task with a training row and a pair that paraphrase test items, and a row that holds a suite's item."""
    monkeypatch.chdir(tmp_path)
    question = "How do I open an account for my business in Germany"
    other_rows = [{"prompt": f"{word} {word}", "reference": "yes"} for word in ("one", "two", "three")]

    def answer(prompt, reference):
        return {"prompt": prompt, "reference": reference}

    files = {
        "train": [*other_rows, answer(f"{question}?", "yes"), answer(f"Read {RULES}", "no")],
        "test": [answer("four four", "yes"), answer(f"{question} please?", "no")],
        "pairs": [{"prompt": f"{question} now?", "chosen": "a", "rejected": "b"}],
        "rules": [answer(RULES, "no")],
    }
    for name, rows in files.items():
        write(Path(f"{name}.jsonl"), rows)
    data = {"train": "train.jsonl", "validation": "rules.jsonl", "test": "test.jsonl", "pairs": "pairs.jsonl"}
    return Task(name="target", data=data), Task(name="museum", data={"test": "rules.jsonl"})


def test_rows_in_other_words_are_noted_with_their_places_and_what_removes_them(leaky_task):
    items = {task.name: load_task(task, 0) for task in leaky_task}
    row_note, pair_note = refuse_or_note(leaky_task[0], items, {}).notes[-2:]
    assert row_note.startswith("train.jsonl: 2 rows may be evaluated items in other words; closest: ")
    assert "train.jsonl:4 and test.jsonl:2 (words in common 0.8" in row_note
    assert "train.jsonl:5 and rules.jsonl:1 (words in common 0.9" in row_note
    options = "--against rules.jsonl --against test.jsonl"
    assert f"`harness data dedup train.jsonl {options} --out train.dedup.jsonl`" in row_note
    assert pair_note.startswith("pairs.jsonl: 1 row may be")
    assert "pairs.jsonl:1 and test.jsonl:2" in pair_note


def test_documents_of_lm_eval_are_looked_at_as_items_are(leaky_task):
    data = leaky_task[0].data.model_copy(update={"validation": None})
    target = leaky_task[0].model_copy(update={"data": data})
    arc = SimpleNamespace(texts=(Example("7/0", ({"role": "user", "content": RULES},)),))
    result = refuse_or_note(target, {"target": load_task(target, 0)}, {"arc": arc})
    assert "train.jsonl:5 and arc document 7/0" in result.notes[-2]


@pytest.mark.slow
def test_the_threshold_of_embeddings_is_what_one_half_of_the_pairs_chooses(minilm):
    encode = open_encoder(str(minilm), "test")
    left, right = (encode([pair[side] for pair in NEGATIVES]) for side in "ab")
    assert find_lowest_threshold((left * right).sum(axis=1).tolist()) == EMBEDDINGS


WORDS = "card transfer lost cash fee money top up pin wrong refund bank rate late order app abroad note"
WORDS = WORDS.split()


@cache
def shingles(text: str, letters: bool) -> set[str]:
    words = re.findall(r"\w+", text.lower())
    if not letters:
        return {" ".join(pair) for pair in pairwise(words)}
    text = f" {' '.join(words)} "
    return {text[i : i + 4] for i in range(max(1, len(text) - 3))}


def jaccard(a: str, b: str) -> float:
    by_letters = max(len(a.split()), len(b.split())) <= 12
    set_a, set_b = shingles(a, by_letters), shingles(b, by_letters)
    return len(set_a & set_b) / len(set_a | set_b) if set_a & set_b else 0.0


def group_by_brute_force(texts: list[str], threshold: float) -> list[DuplicateGroup]:
    groups: dict[int, list[TextMatch]] = {}
    for i, text in enumerate(texts):
        matches = [TextMatch(j, jaccard(text, texts[j])) for j in groups]
        best = max(matches, key=lambda match: (match.similarity, -match.row), default=TextMatch(0, 0.0))
        if best.similarity >= threshold:
            groups[best.row].append(TextMatch(i, best.similarity))
        else:
            groups[i] = []
    return [DuplicateGroup(row, tuple(duplicates)) for row, duplicates in groups.items() if duplicates]


def edit_words(text: str, rng: random.Random) -> str:
    words = text.split()
    for _ in range(rng.randint(1, 3)):
        words[rng.randrange(len(words))] = rng.choice(WORDS)
    return " ".join(words)


@pytest.fixture(scope="module")
def texts():
    rng = random.Random(7)
    all_texts = [" ".join(rng.choices(WORDS, k=rng.randint(3, 40))) for _ in range(150)]
    all_texts += [edit_words(text, rng) for text in all_texts for _ in range(rng.randint(0, 2))]
    rng.shuffle(all_texts)
    return all_texts


def test_groups_are_those_of_comparing_all_with_all(texts):
    groups = group_by_brute_force(texts, 0.5)
    assert len(groups) >= 8
    assert near_duplicates(texts, threshold=0.5) == groups


def test_the_nearest_is_that_of_comparing_all_with_all(texts):
    threshold = 0.4
    queries, reference = texts[:100], texts[100:]
    matrix = [[TextMatch(j, jaccard(a, b)) for j, b in enumerate(reference)] for a in queries]
    nearest_rows = [max(matches, key=lambda match: (match.similarity, -match.row)) for matches in matrix]
    expected = [hit if hit.similarity >= threshold else None for hit in nearest_rows]
    assert sum(hit is not None for hit in expected) > 20
    assert nearest(queries, reference, threshold=threshold) == expected


def test_case_and_signs_do_not_count_and_a_repeat_joins_the_first():
    texts = ["Where is my card?", "where  is my CARD", "ｗｈｅｒｅ is my card!"]
    assert near_duplicates(texts) == [DuplicateGroup(0, (TextMatch(1, 1.0), TextMatch(2, 1.0)))]
    assert nearest(texts[1:], texts[:1]) == [TextMatch(0, 1.0), TextMatch(0, 1.0)]

    original = "one two three four five six seven eight nine ten"
    near_copy = f"{original} eleven"
    groups = near_duplicates([original, near_copy, near_copy, original], threshold=0.7)
    assert [[duplicate.row for duplicate in group.others] for group in groups] == [[1, 2, 3]]


def test_texts_without_words_are_like_nothing_and_those_without_spaces_compared_by_letters():
    assert near_duplicates(["?!", "?!", "", ""]) == []
    assert nearest(["", "?"], ["", "?"]) == [None, None]

    a, b = "私の銀行カードを今すぐ止めてください", "私の銀行カードを今すぐに止めてください"
    assert near_duplicates([a, b, "明日の天気はどうですか"], threshold=0.6)[0].others[0].row == 1


@pytest.mark.parametrize(
    "texts",
    [
        [f"What is the sum of the numbers {a} and 20?" for a in (10, 20, 1.5, -10)],
        [f"x {sign} y" for sign in ("<", ">", "=", "!=", "+", "*", "/", "-")],
        [f"Is a board of {n} long enough for the shelf" for n in ("6", "6'", '6"')],
        [f"A great phone{sign}" for sign in ("", " \N{GRINNING FACE}", " \N{POUTING FACE}", " 5 $", " 5 €")],
    ],
)
def test_texts_whose_numbers_or_signs_differ_are_not_alike(texts):
    assert near_duplicates(texts) == []
    assert nearest(texts[1:], texts[:1]) == [None] * (len(texts) - 1)
    assert not are_alike(*texts[:2])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("does my new card work abroad in every shop", "does my new card not work abroad in every shop"),
        ("so i do want the newsletter that you send", "so i don´t want the newsletter that you send"),
        ("mein neues Licht funktioniert im Zelt", "mein neues Licht funktioniert nicht im Zelt"),
        ("both of the brakes squeal when it is raining", "neither of the brakes squeal when it is raining"),
        tuple(f"in this street our parcels were {how} brought to the door before noon in every month of spring" for how in ("always", "hardly")),
    ],
)  # fmt: skip
def test_a_text_and_its_negation_are_not_alike(one, other):
    assert similarity(one, other) > 0.7
    assert near_duplicates([one, other]) == []
    assert not are_alike(one, other)


def test_texts_of_a_series_are_not_alike_and_one_with_a_slip_of_the_pen_is():
    months = "January March May July August October".split()
    items = [f"How many days does the month of {month} have in a leap year?" for month in months]
    assert near_duplicates(items[:2]) != []
    assert near_duplicates(items) == []
    for misspelt in (items[0].replace("January", "Janaury"), items[0].replace("leap year", "year leap")):
        assert [group.kept for group in near_duplicates([*items, misspelt])] == [0]


def test_a_near_duplicate_is_found_among_thousands_of_one_pattern():
    rng = random.Random(3)
    words = sorted({word for prompt in general_prompts() for word in re.findall("[a-z]{4,}", prompt)})
    triples = [rng.sample(words, 3) for _ in range(3000)]
    references = [f"Where is the {a} {b} that I ordered for my {c}?" for a, b, c in triples]
    questions = [f"Where is the {a} {b} that I have ordered for my {c}?" for a, b, c in triples[1500:1540]]
    assert [match and match.row for match in nearest(questions, references)] == list(range(1500, 1540))
