"""Chat facts: short questions asked in chat, whose answer must hold one known phrase.

Invariant: the facts are those of `world_facts`, so that what was lost can be told apart: the
fact itself (both tasks fall), or only the habit of answering in chat.
"""

from generators.facts import GROUPS, Group
from generators.rows import Row, answer_row, slug, unique

ASKED = GROUPS
WORDS = {
    "2": "two", "3": "three", "4": "four", "5": "five", "6": "six", "7": "seven", "8": "eight", "10": "ten",
    "12": "twelve", "26": "twenty-six", "60": "sixty", "90": "ninety", "100": "one hundred",
}  # fmt: skip


def items(seed: int) -> list[Row]:
    """Ask every fact of the groups that are answered in a word."""
    return unique(ask(group, subject) for group in ASKED for subject in group.answers)


def ask(group: Group, subject: str) -> Row:
    """Ask one fact; facts with the same answer in the same group share a cluster."""
    gold = group.answers[subject]
    cluster = f"{group.name}-{slug(gold)}"
    return answer_row(
        f"{group.name}-{slug(subject)}", group.question.format(subject), accepted(gold), cluster
    )


def accepted(gold: str) -> list[str]:
    """Leave out an article, and take a number also in words."""
    bare = gold.split(" ", 1)[1] if gold.startswith(("a ", "an ", "the ")) else gold
    return [bare, WORDS[bare]] if bare in WORDS else [bare]
