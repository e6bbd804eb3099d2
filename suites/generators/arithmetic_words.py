"""Arithmetic in words: one-step stories with small numbers, answered in chat.

Invariant: the answer is never one of the numbers in the story, so repeating one is not enough.
"""

import random
from typing import NamedTuple

from generators.rows import Row, answer_row, unique

NAMES = ["Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Julia", "Karl", "Lucy", "Maria", "Noah",
         "Paul", "Rosa", "Sam"]  # fmt: skip
GOODS = ["apples", "books", "coins", "stamps", "pencils", "eggs", "shells", "cookies", "marbles", "oranges", "stickers",
         "flowers"]  # fmt: skip
NUMBER_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
                "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"]  # fmt: skip


class Story(NamedTuple):
    """Text with {name}, {other}, {a}, {b} and {goods}; `plus` adds, else b is taken from a."""

    name: str
    plus: bool
    text: str


STORIES = [Story(*row) for row in (
    ("gets", True, "{name} has {a} {goods} and gets {b} more. How many {goods} does {name} have now?"),
    ("buys", True, "{name} bought {a} {goods} on Monday and {b} {goods} on Tuesday. How many {goods} did {name} buy in total?"),
    ("both", True, "{name} has {a} {goods} and {other} has {b} {goods}. How many {goods} do they have together?"),
    ("box", True, "There are {a} {goods} in a box. {name} puts {b} more into it. How many {goods} are in the box?"),
    ("finds", True, "{name} found {a} {goods} in the morning and {b} in the evening. How many {goods} is that altogether?"),
    ("gives", False, "{name} has {a} {goods} and gives {b} of them to {other}. How many {goods} are left?"),
    ("loses", False, "{name} had {a} {goods} but lost {b} of them. How many {goods} does {name} still have?"),
    ("sells", False, "There were {a} {goods} on the table. {name} took {b} away. How many {goods} remain?"),
)]  # fmt: skip
PER_STORY = 32


def items(seed: int) -> list[Row]:
    """Fill every story with different numbers."""
    rng = random.Random(f"arithmetic_words-{seed}")
    rows: list[Row] = []
    for story in STORIES:
        numbers = [(a, b) for a in range(1, 11) for b in range(1, 11) if answerable(story, a, b)]
        rows += [told(story, i, a, b, rng) for i, (a, b) in enumerate(rng.sample(numbers, PER_STORY))]
    return unique(rows)


def answerable(story: Story, a: int, b: int) -> bool:
    """The answer is positive and none of the story's numbers."""
    answer = a + b if story.plus else a - b
    return answer > 0 and answer not in (a, b)


def told(story: Story, i: int, a: int, b: int, rng: random.Random) -> Row:
    """Tell one story; the cluster is the story with its larger number."""
    name, other = rng.sample(NAMES, 2)
    answer = a + b if story.plus else a - b
    text = story.text.format(name=name, other=other, a=a, b=b, goods=rng.choice(GOODS))
    return answer_row(f"{story.name}-{i:02d}", text, [str(answer), NUMBER_WORDS[answer]], f"{story.name}-{max(a, b)}")
