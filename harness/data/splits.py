"""Seeded draws: which rows are set aside for validation or test, and which of many are used.

Invariant: rows of one cluster, and rows that ask the same, are never on both sides of a
split; what is drawn keeps the order of the file, and a smaller draw is part of a larger one.
"""

import random
from collections import Counter
from collections.abc import Sequence

from harness.data.contamination import key
from harness.data.examples import Sourced
from harness.errors import Problem, UserError
from harness.records import Example

SHARE = 0.2


def set_aside(
    rows: Sequence[Sourced], rng: random.Random, with_choices: bool = False, share: float = SHARE
) -> tuple[list[Sourced], list[Sourced]]:
    """Split rows into training and another split (a share of them, at least one) by whole groups.

    Raises:
        UserError: all rows belong to one group.
    """
    groups = groups_of([row.example for row in rows], with_choices)
    if len(groups) < 2:
        found, next_step = "training rows of one cluster only", "name files for train, validation and test"
        raise UserError(Problem(rows[0].where, found, "clusters to set aside as a whole", next_step))
    quota = max(round(share * len(rows)), min(map(len, groups)))
    chosen: set[int] = set()
    for group in _spread([_stratum([rows[i].example for i in group]) for group in groups], rng):
        if len(chosen) + len(groups[group]) <= quota:
            chosen.update(groups[group])
    kept = [row for i, row in enumerate(rows) if i not in chosen]
    return kept, [row for i, row in enumerate(rows) if i in chosen]


def draw(rows: Sequence[Sourced], limit: int | None, rng: random.Random) -> tuple[Example, ...]:
    """Draw at most `limit` examples, every label (or slice) by its share, in the order of the file."""
    if limit is None or limit >= len(rows):
        return tuple(row.example for row in rows)
    chosen = set(_spread([_stratum([row.example]) for row in rows], rng)[:limit])
    return tuple(row.example for i, row in enumerate(rows) if i in chosen)


def _stratum(group: Sequence[Example]) -> str:
    """The commonest label of a group where there are labels, else its slice."""
    named = [e.references[0] if e.choices and e.references else e.slice for e in group]
    return Counter(named).most_common(1)[0][0]


def _spread(strata: Sequence[str], rng: random.Random) -> list[int]:
    """Order indices at random so that every beginning holds each stratum by its share.

    The j-th of the n members of a stratum goes to (j + u) / n, with one u in [0, 1) a stratum:
    systematic sampling with a random start, so each stratum is off its share by a row or two.
    """
    members: dict[str, list[int]] = {}
    for index, stratum in enumerate(strata):
        members.setdefault(stratum, []).append(index)
    places: list[tuple[float, int]] = []
    for _, indices in sorted(members.items()):
        rng.shuffle(indices)
        start = rng.random()
        places += [((j + start) / len(indices), index) for j, index in enumerate(indices)]
    return [index for _, index in sorted(places)]


def groups_of(examples: Sequence[Example], with_choices: bool = False) -> list[list[int]]:
    """Join the indices of examples that share a cluster or a question, in the order of the file."""
    parent = list(range(len(examples)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    seen: dict[tuple[str, str], int] = {}
    for index, example in enumerate(examples):
        for mark in (("cluster", example.cluster), ("question", key(example, with_choices))):
            parent[root(index)] = root(seen.setdefault(mark, index))
    groups: dict[int, list[int]] = {}
    for index in range(len(examples)):
        groups.setdefault(root(index), []).append(index)
    return list(groups.values())
