"""Arithmetic in words: one-step stories with small numbers, answered in chat.

Invariant: the answer is never one of the numbers in the story, so repeating one is not enough.
"""

import random
from typing import NamedTuple

from generators.rows import Row, answer_row, table, unique, words

NAMES = words("Anna Ben Clara David Emma Frank Grace Henry Julia Karl Lucy Maria Noah Paul Rosa Sam")
GOODS = words("apples books coins stamps pencils eggs shells cookies marbles oranges stickers flowers")
NUMBER_WORDS = words("""
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen twenty twenty-one
""")


class Story(NamedTuple):
    """Text with {name}, {other}, {a}, {b} and {goods}; `plus` adds, else b is taken from a."""

    name: str
    plus: bool
    text: str


# name | plus or minus | what is asked
STORIES = [
    Story(name, sign == "plus", text)
    for name, sign, text in table("""
gets | plus | {name} has {a} {goods} and gets {b} more. How many {goods} does {name} have now?
finds | plus | {name} has {a} {goods} and finds {b} more. How many {goods} does {name} have now?
wins | plus | {name} had {a} {goods} and won {b} more. How many {goods} does {name} have now?
given | plus | {name} has {a} {goods} and {other} brings {b} more. How many {goods} are there now?
buys | plus | {name} bought {a} {goods} on Monday and {b} {goods} on Tuesday. How many is that in total?
boxes | plus | {name} counted {a} {goods} in one box and {b} {goods} in another. How many is that in total?
gives | minus | {name} has {a} {goods} and gives away {b}. How many {goods} does {name} have left?
loses | minus | {name} had {a} {goods} but lost {b} of them. How many {goods} does {name} still have?
sells | minus | {name} had {a} {goods} and sold {b} of them. How many {goods} does {name} have left?
breaks | minus | {name} had {a} {goods} but {b} of them broke. How many {goods} does {name} still have?
""")
]
PER_STORY = 26


def items(seed: int) -> list[Row]:
    """Fill every story with different numbers."""
    rng = random.Random(f"arithmetic_words-{seed}")
    rows: list[Row] = []
    for story in STORIES:
        numbers = [(a, b) for a in range(2, 13) for b in range(2, 10) if answerable(story, a, b)]
        rows += [told(story, i, a, b, rng) for i, (a, b) in enumerate(rng.sample(numbers, PER_STORY))]
    return unique(rows)


def answerable(story: Story, a: int, b: int) -> bool:
    """The answer is positive and none of the story's numbers."""
    answer = a + b if story.plus else a - b
    return answer > 1 and answer not in (a, b)


def told(story: Story, i: int, a: int, b: int, rng: random.Random) -> Row:
    """Tell one story; the cluster is the story with its larger number."""
    name, other = rng.sample(NAMES, 2)
    answer = a + b if story.plus else a - b
    asked = story.text.format(name=name, other=other, a=a, b=b, goods=rng.choice(GOODS))
    text = f"{asked} Answer in one short sentence."
    return answer_row(
        f"{story.name}-{i:02d}", text, [str(answer), NUMBER_WORDS[answer]], f"{story.name}-{max(a, b)}"
    )
