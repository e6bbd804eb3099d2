"""Near duplicates against brute force: every pair's exact Jaccard index."""

import random
import re
from functools import cache
from itertools import pairwise
from string import ascii_lowercase

import pytest

from harness.data import near_duplicates as found
from harness.data.near_duplicates import (
    DuplicateGroup,
    TextMatch,
    are_alike,
    near_duplicates,
    nearest,
    similarity,
)
from harness.regularizers import general_prompts

WORDS = (
    "card transfer lost cash fee money top up pin wrong refund bank rate late order app abroad note".split()
)


@cache
def shingles(text: str, letters: bool) -> set[str]:
    words = re.findall(r"\w+", text.lower())
    if not letters:
        return {" ".join(pair) for pair in pairwise(words)}
    text = f" {' '.join(words)} "
    return {text[i : i + 4] for i in range(max(1, len(text) - 3))}


def jaccard(a: str, b: str) -> float:
    short = max(len(a.split()), len(b.split())) <= 12
    one, other = shingles(a, short), shingles(b, short)
    return len(one & other) / len(one | other) if one & other else 0.0


def group_by_brute_force(texts: list[str], threshold: float) -> list[DuplicateGroup]:
    groups: dict[int, list[TextMatch]] = {}
    for i, text in enumerate(texts):
        alike = [TextMatch(j, jaccard(text, texts[j])) for j in groups]
        best = max(alike, key=lambda a: (a.similarity, -a.row), default=TextMatch(0, 0.0))
        if best.similarity >= threshold:
            groups[best.row].append(TextMatch(i, best.similarity))
        else:
            groups[i] = []
    return [DuplicateGroup(kept, tuple(others)) for kept, others in groups.items() if others]


def edit_words(text: str, rng: random.Random) -> str:
    words = text.split()
    for _ in range(rng.randint(1, 3)):
        words[rng.randrange(len(words))] = rng.choice(WORDS)
    return " ".join(words)


@pytest.fixture(scope="module")
def texts():
    rng = random.Random(7)
    made = [" ".join(rng.choices(WORDS, k=rng.randint(3, 40))) for _ in range(150)]
    made += [edit_words(text, rng) for text in made for _ in range(rng.randint(0, 2))]
    rng.shuffle(made)
    return made


def test_similarity_is_the_jaccard_index_of_shingles(texts):
    pairs = list(pairwise(texts))
    assert [similarity(a, b) for a, b in pairs] == pytest.approx([jaccard(a, b) for a, b in pairs])


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.9])
def test_groups_are_those_of_comparing_all_with_all(texts, threshold):
    found = group_by_brute_force(texts, threshold)
    assert len(found) >= 8
    assert near_duplicates(texts, threshold=threshold) == found


@pytest.mark.parametrize("threshold", [0.4, 0.7])
def test_the_nearest_is_that_of_comparing_all_with_all(texts, threshold):
    asked, reference = texts[:100], texts[100:]
    best = [
        max(
            (TextMatch(j, jaccard(a, b)) for j, b in enumerate(reference)),
            key=lambda x: (x.similarity, -x.row),
        )
        for a in asked
    ]
    expected = [found if found.similarity >= threshold else None for found in best]
    assert sum(found is not None for found in expected) > 20
    assert nearest(asked, reference, threshold=threshold) == expected


def test_case_punctuation_space_and_width_do_not_count():
    texts = ["Where is my card?", "where  is my CARD", "ｗｈｅｒｅ is my card!"]
    assert near_duplicates(texts) == [DuplicateGroup(0, (TextMatch(1, 1.0), TextMatch(2, 1.0)))]
    assert nearest(texts[1:], texts[:1]) == [TextMatch(0, 1.0), TextMatch(0, 1.0)]


def test_texts_without_a_word_are_like_nothing():
    assert near_duplicates(["?!", "?!", "", ""]) == []
    assert nearest(["", "?"], ["", "?"]) == [None, None]


def test_texts_without_spaces_are_compared_by_letters():
    a, b = "私の銀行カードを今すぐ止めてください", "私の銀行カードを今すぐに止めてください"
    assert near_duplicates([a, b, "明日の天気はどうですか"], threshold=0.6)[0].others[0].row == 1


def test_a_repeated_text_joins_the_group_of_its_first_appearance():
    kept = "one two three four five six seven eight nine ten"
    near = f"{kept} eleven"
    groups = near_duplicates([kept, near, near, kept], threshold=0.7)
    assert [[other.row for other in group.others] for group in groups] == [[1, 2, 3]]


@pytest.mark.parametrize(
    "texts",
    [
        [f"What is the sum of the numbers {a} and 20?" for a in (10, 20, 1.5, -10)],
        ["Which is more, 10 or 20 euros?", "Which is more, 20 or 10 euros?"],
        [f"How do I open a file in {of}?" for of in ("C", "C++", "C#")],
        [f"x {sign} y" for sign in ("<", ">", "=", "!=", "+", "*", "/", "-")],
        [f"How many ways are there to order these {n} cards" for n in ("5", "5!")],
        [f"Is a board of {n} long enough for the shelf" for n in ("6", "6'", '6"')],
        [f"My new card arrived today {face}" for face in ("", ":)", ":(")],
        [f"A great phone{sign}" for sign in ("", " \N{GRINNING FACE}", " \N{POUTING FACE}", " 5 $", " 5 €")],
    ],
)
def test_texts_whose_numbers_or_signs_differ_are_not_alike(texts):
    assert near_duplicates(texts) == []
    assert nearest(texts[1:], texts[:1]) == [None] * (len(texts) - 1)
    assert not are_alike(*texts[:2])


INSTRUCTION = (
    "You are a careful assistant of the customer service of a bank. Read the message below and answer with"
    " exactly one of the labels card, refund or pin and nothing else, in small letters, please. Message:"
)


def test_what_many_texts_share_does_not_make_them_alike(texts):
    behind = [f"{INSTRUCTION} {' '.join(text.split()[:6])}" for text in texts[:60]]
    assert near_duplicates(behind[:5])
    assert [group for group in near_duplicates(behind, threshold=0.8) if len(group.others) > 3] == []


def test_a_slip_within_and_beside_boilerplate_is_still_a_near_duplicate():
    rng = random.Random(2)
    words = [" ".join("".join(rng.choices(ascii_lowercase, k=9)) for _ in range(3)) for _ in range(12)]
    behind = [f"{INSTRUCTION} {of}" for of in words]
    slips = behind[3].replace("careful", "carefull"), f"{behind[5]} please"
    found = near_duplicates([*behind, *slips])
    assert [(group.kept, [other.row for other in group.others]) for group in found] == [(3, [12]), (5, [13])]


def test_rows_that_are_not_the_same_are_in_groups_of_their_own():
    text = "one two three four five six seven eight nine ten"
    labels = "abb"
    groups = near_duplicates(
        [text, f"{text} eleven", f"{text} twelve"], same=lambda i, j: labels[i] == labels[j]
    )
    assert [(group.kept, [other.row for other in group.others]) for group in groups] == [(1, [2])]


def test_texts_behind_one_instruction_are_not_all_compared_with_one_another():
    rng = random.Random(1)
    words = [["".join(rng.choices(ascii_lowercase, k=6)) for _ in range(40)] for _ in range(300)]
    long = " ".join("".join(rng.choices(ascii_lowercase, k=6)) for _ in range(150))
    behind = [f"{long} {' '.join(own)}" for own in words]
    assert near_duplicates(behind) == []
    index = found._index([found._fold(text) for text in behind], 0.7)
    assert (index.buckets >= 0).mean() < 0.01  # a text alone in its bucket is compared with nothing


def test_numbers_in_front_of_many_texts_tell_nothing():
    rng = random.Random(3)
    said = [" ".join(rng.sample(WORDS, 9)) for _ in range(20)]
    tickets = [f"Ticket {4821 + 7 * i}: {text}" for i, text in enumerate((*said, *said))]
    assert [(group.kept, [other.row for other in group.others]) for group in near_duplicates(tickets)] == [
        (i, [i + 20]) for i in range(20)
    ]
    assert nearest(tickets[20:], tickets[:20]) == [TextMatch(i, 1.0) for i in range(20)]


def test_numbers_that_are_asked_for_tell_texts_apart():
    sums = [f"What is the sum of the numbers {i} and {j} then?" for i in range(5) for j in range(5)]
    years = [f"Year {1930 + 4 * i}: who won the {of} of the world?" for i in range(5) for of in "abcd"]
    assert near_duplicates(sums) == near_duplicates(years) == []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("does my new card work abroad in every shop", "does my new card not work abroad in every shop"),
        ("is it possible to change my PIN at the desk", "is it impossible to change my PIN at the desk"),
        ("why did it work at the cash machine here", "why didn't it work at the cash machine here"),
        ("why did it work at the cash machine here", "why didnt it work at the cash machine here"),
        ("so i do want the newsletter that you send", "so i don´t want the newsletter that you send"),
        ("so i do want the newsletter that you send", "so i don`t want the newsletter that you send"),
        ("why can i not log in with my new pin here", "why cant i not log in with my new pin here"),
        ("both of the brakes squeal when it is raining", "neither of the brakes squeal when it is raining"),
        ("everybody there told me that it is covered", "nobody there told me that it is covered"),
        (
            "in this street our parcels were always brought to the door before noon in every month of spring",
            "in this street our parcels were hardly brought to the door before noon in every month of spring",
        ),
        ("mix it with water at a ratio of 1:3 please", "mix it with water at a ratio of 1.3 please"),
    ],
)
def test_a_text_and_its_negation_are_not_alike(one, other):
    assert similarity(one, other) > 0.7
    assert near_duplicates([one, other]) == []
    assert not are_alike(one, other)


def test_texts_of_a_series_are_not_alike_and_one_with_a_slip_of_the_pen_is():
    months = "January March May July August October".split()
    asked = [f"How many days does the month of {month} have in a leap year?" for month in months]
    assert near_duplicates(asked[:2]) != []
    assert near_duplicates(asked) == []
    for slipped in (asked[0].replace("January", "Janaury"), asked[0].replace("leap year", "year leap")):
        assert [group.kept for group in near_duplicates([*asked, slipped])] == [0]


def test_a_near_duplicate_is_found_among_thousands_of_one_pattern():
    rng = random.Random(3)
    words = sorted({word for prompt in general_prompts() for word in re.findall("[a-z]{4,}", prompt)})
    things = [rng.sample(words, 3) for _ in range(3000)]
    known = [f"Where is the {a} {b} that I ordered for my {c}?" for a, b, c in things]
    asked = [f"Where is the {a} {b} that I have ordered for my {c}?" for a, b, c in things[1500:1540]]
    assert [near and near.row for near in nearest(asked, known)] == list(range(1500, 1540))
