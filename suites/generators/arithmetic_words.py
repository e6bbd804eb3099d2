"""Arithmetic in words: one-step stories with small numbers, answered in chat.

Invariant: the answer is never one of the numbers in the story, so repeating one is not enough.
"""

import random
from typing import NamedTuple

from generators.rows import Row, answer_row, table, unique

NAMES = "Anna Ben Clara David Emma Frank Grace Henry Julia Karl Lucy Maria Noah Paul Rosa Sam".split()
GOODS = "apples books coins stamps pencils eggs shells cookies marbles oranges stickers flowers".split()
NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty"
).split()


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
buys | plus | {name} bought {a} {goods} on Monday and {b} on Tuesday. How many {goods} is that in total?
gives | minus | {name} has {a} {goods} and gives away {b}. How many {goods} are left?
loses | minus | {name} had {a} {goods} but lost {b} of them. How many {goods} does {name} still have?
adds | plus | What is {a} plus {b}?
sums | plus | What is the sum of {a} and {b}?
adding | plus | If you add {b} to {a}, what do you get?
takes | minus | What is {a} minus {b}?
difference | minus | What is the difference between {a} and {b}?
subtracts | minus | If you subtract {b} from {a}, what do you get?
more | plus | Which number is {b} more than {a}?
less | minus | Which number is {b} less than {a}?
""")
]
PER_STORY = 24


def items(seed: int) -> list[Row]:
    """Fill every story with different numbers."""
    rng = random.Random(f"arithmetic_words-{seed}")
    rows: list[Row] = []
    for story in STORIES:
        numbers = [(a, b) for a in range(2, 11) for b in range(2, 11) if answerable(story, a, b)]
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
    text = story.text.format(name=name, other=other, a=a, b=b, goods=rng.choice(GOODS))
    return answer_row(
        f"{story.name}-{i:02d}", text, [str(answer), NUMBER_WORDS[answer]], f"{story.name}-{max(a, b)}"
    )
