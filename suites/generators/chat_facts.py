"""Chat facts: short questions asked in chat, whose answer must hold one known phrase.

Invariant: the facts are those of `world_facts`, so that what was lost can be told apart: the
fact itself (both tasks fall), or only the habit of answering in chat.
"""

import unicodedata

from generators.facts import GROUPS, Group
from generators.rows import Row, answer_row, slug, unique

WORDS = {
    "2": "two", "3": "three", "4": "four", "5": "five", "6": "six", "7": "seven", "8": "eight", "10": "ten",
    "12": "twelve", "26": "twenty-six", "60": "sixty", "90": "ninety", "100": "hundred",
}  # fmt: skip


def items(seed: int) -> list[Row]:
    """Ask every fact whose answer does not stand in its question."""
    asked = unique(ask(group, subject) for group in GROUPS for subject in group.answers)
    return [row for row in asked if not any(word in row["prompt"].casefold() for word in answers(row))]


def answers(row: Row) -> list[str]:
    """Return the accepted answers that are words, in lower case; a symbol such as O is in any question."""
    return [answer.casefold() for answer in row["references"] if len(answer) > 2]


def ask(group: Group, subject: str) -> Row:
    """Ask one fact; facts with the same answer in the same group share a cluster."""
    gold = group.answers[subject]
    cluster = f"{group.name}-{slug(gold)}"
    return answer_row(
        f"{group.name}-{slug(subject)}", group.question.format(subject), accepted(gold), cluster
    )


def accepted(gold: str) -> list[str]:
    """Leave out articles, and take a number also in words and a name also without accents."""
    bare = gold
    for opening in ("in ", "the ", "a ", "an "):
        bare = bare.removeprefix(opening)
    plain = unicodedata.normalize("NFKD", bare).encode("ascii", "ignore").decode()
    return list(dict.fromkeys([bare, plain, WORDS.get(bare, bare)]))
