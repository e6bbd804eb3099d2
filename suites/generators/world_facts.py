"""World facts: a question and four answers of one type, of which one is true.

Invariant: wrong choices are answers to the same question about other subjects.
"""

import random

from generators.facts import CAPITAL, CONTINENT, CURRENCY, GROUPS, LANGUAGE, Group
from generators.rows import Row, choice_row, place_gold, slug, unique

BY_COUNTRY = (CAPITAL, CONTINENT, CURRENCY, LANGUAGE)


def items(seed: int) -> list[Row]:
    """Ask every fact of every group once."""
    rng = random.Random(f"world_facts-{seed}")
    rows = [ask(group, subject, rng) for group in GROUPS for subject in group.answers]
    return place_gold(unique(rows), rng)


def ask(group: Group, subject: str, rng: random.Random) -> Row:
    """Ask one fact; a country's facts share a cluster, other facts share one with equal answers."""
    gold = group.answers[subject]
    others = sorted(set(group.answers.values()) - {gold})
    cluster = slug(subject) if group in BY_COUNTRY else f"{group.name}-{slug(gold)}"
    prompt = f"Question: {group.question.format(subject)}\nAnswer:"
    return choice_row(f"{group.name}-{slug(subject)}", prompt, gold, rng.sample(others, 3), cluster)
