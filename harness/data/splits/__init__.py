"""Seeded draws: which rows are set aside for validation or test, and which of many are used.

Invariant: rows of one cluster, and rows that ask the same, are never on both sides of a
split; what is drawn keeps the order of the file, and a smaller draw is part of a larger one.
"""

import random
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from harness.data.contamination import key
from harness.data.examples import SourcedExample
from harness.data.readers import file_of
from harness.errors import Problem, UserError, as_argument
from harness.records import Example, digest, fold_text

SHARE = 0.2


def set_aside(
    rows: Sequence[SourcedExample],
    rng: random.Random,
    with_choices: bool = False,
    share: float = SHARE,
    *,
    leave: int = 1,
) -> tuple[list[SourcedExample], list[SourcedExample]]:
    """Split rows into training and another split (a share of them, at least one) by whole groups.

    At least `leave` groups stay for training, of which further splits may be set aside.

    Raises:
        UserError: there are no more groups than these.
    """
    groups = groups_of([row.example for row in rows], with_choices)
    if len(groups) <= leave:
        n = "one cluster" if len(groups) == 1 else f"{len(groups)} clusters or questions"
        expected = "clusters to set aside as a whole" + (f", at least {leave + 1}" if leave > 1 else "")
        found, next_step = f"training rows of {n} only", "name files for train, validation and test"
        if (
            len({key(row.example, with_choices) for row in rows})
            == 1
            < len({r.example.cluster for r in rows})
        ):
            found, expected = "training rows that all ask the same", "questions that differ"
            file = as_argument(file_of(rows[0].where))
            next_step = f"harness data check {file} names the columns that tell them apart"
        raise UserError(Problem(rows[0].where, found, expected, next_step))
    quota = max(round(share * len(rows)), min(map(len, groups)))
    chosen: set[int] = set()
    n_left = len(groups)
    for group in _spread([stratum_of([rows[i].example for i in group]) for group in groups], rng):
        if n_left > leave and len(chosen) + len(groups[group]) <= quota:
            chosen.update(groups[group])
            n_left -= 1
    kept = [row for i, row in enumerate(rows) if i not in chosen]
    return kept, [row for i, row in enumerate(rows) if i in chosen]


def draw(
    rows: Sequence[SourcedExample],
    limit: int | None,
    rng: random.Random,
    folds: Mapping[str, int] = MappingProxyType({}),
) -> tuple[Example, ...]:
    """Draw at most `limit` examples, every label (or slice) by its share, in the order of the file.

    `folds` maps ids to folds, each of which is drawn from by its share as well.
    """
    if limit is None or limit >= len(rows):
        return tuple(row.example for row in rows)
    strata = [stratum_of([row.example]) for row in rows]
    order = _spread(strata, rng)
    if folds:
        order = _take_from_folds(order, strata, [folds[row.example.id] for row in rows])
    chosen = set(order[:limit])
    return tuple(row.example for i, row in enumerate(rows) if i in chosen)


def _take_from_folds(order: Sequence[int], strata: Sequence[str], folds: Sequence[int]) -> list[int]:
    """Keep the order of strata, and take each row from the fold that is furthest behind its share."""
    left: dict[str, dict[int, deque[int]]] = {}
    for index in order:
        left.setdefault(strata[index], {}).setdefault(folds[index], deque()).append(index)
    sizes, taken, out = Counter(folds), Counter[int](), list[int]()
    for index in order:
        of = left[strata[index]]
        fold = min((f for f in of if of[f]), key=lambda f: (taken[f] / sizes[f], f))
        taken[fold] += 1
        out.append(of[fold].popleft())
    return out


def stratum_of(group: Sequence[Example]) -> str:
    """Return the commonest label of a group where there are labels, else its slice."""
    named = [e.references[0] if e.choices and e.references else e.slice for e in group]
    return Counter(named).most_common(1)[0][0]


def _spread(strata: Sequence[str], rng: random.Random) -> list[int]:
    """Order indices at random so that every beginning holds each stratum by its share."""
    # The j-th of the n members of a stratum goes to (j + u) / n, with one u in [0, 1) a stratum: systematic
    # sampling with a random start, so each stratum is off its share by a row or two.
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
    return _join([(("cluster", e.cluster), ("question", key(e, with_choices))) for e in examples])


def cluster_repeats(rows: Sequence[SourcedExample]) -> tuple[list[SourcedExample], int]:
    """Give rows that ask the same in other clusters one cluster, and count those that join another's.

    A question that stands twice is no second item: an interval would be too narrow by it.
    """
    out, n = list(rows), 0
    for group in _join([(("cluster", e.cluster), ("question", _fold_question(e))) for e, *_ in rows]):
        members = [rows[i].example for i in group]
        if len({e.cluster for e in members}) == 1:
            continue
        # An id would be that of other rows too, in files of pairs and in other tasks.
        written = (e.cluster for e in members if e.cluster != e.id)
        cluster = next(written, f"question {digest(_fold_question(members[0]))}")
        for i in group:
            out[i] = rows[i]._replace(example=replace(rows[i].example, cluster=cluster))
        n += len({e.cluster for e in members}) - 1
    return out, n


def _fold_question(example: Example) -> str:
    """Fold all that an example shows: the system message and its choices too."""
    system = [m["content"] for m in example.messages if m["role"] == "system"]
    return "\n".join([*map(fold_text, system), key(example, with_choices=True)])


def _join(marks: Sequence[Sequence[tuple[str, str]]]) -> list[list[int]]:
    """Join the indices of what shares a mark, also by way of others, in their order."""
    parent = list(range(len(marks)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    seen: dict[tuple[str, str], int] = {}
    for index, own in enumerate(marks):
        for mark in own:
            parent[root(index)] = root(seen.setdefault(mark, index))
    groups: dict[int, list[int]] = {}
    for index in range(len(marks)):
        groups.setdefault(root(index), []).append(index)
    return list(groups.values())
