"""Seeded draws: which rows are set aside for validation or test, which of many are used, and folds.

Invariant: rows of one cluster, and rows that ask the same, are never on both sides of a
split; what is drawn keeps the order of the file, and a smaller draw is part of a larger one. An augmented
row is trained on where the row is that it was made from, or left out: it is never set aside.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from harness.data.contamination import fold_text, key
from harness.data.examples import Kept, Origin, Sourced
from harness.data.readers import Row
from harness.errors import Problem, UserError
from harness.formatting import pluralize
from harness.records import Example

SHARE = 0.2
# Columns of an augmented row; the last, the text that it was made from, is what tells it from others.
SOURCE, AUGMENTED, ORIGIN = "source", "augmented", "augmented_from"


def is_augmented(row: Row) -> bool:
    """Tell whether a model made a row from another one."""
    return bool(row.fields.get(ORIGIN))


def origins(rows: Sequence[Row]) -> dict[str, Origin]:
    """Map the places of augmented rows to what they were made from: rows that hold their original text."""
    made = [row for row in rows if is_augmented(row)]
    if not made:
        return {}
    places: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        for text in set() if is_augmented(row) else set(_texts(row.fields)):
            places[text].append(row.where)
    known = {row.where: str(row.fields.get(ORIGIN) or "") for row in made}
    places.pop("", None)
    return {where: Origin(text, tuple(places.get(fold_text(text), ()))) for where, text in known.items()}


def with_origins(kept: Kept, made: Mapping[str, Origin]) -> Kept:
    """Return the examples of a split, the augmented ones with what they were made from."""
    if not made:
        return kept
    return kept._replace(examples=[row._replace(origin=made.get(row.where)) for row in kept.examples])


def beside_origins(
    rows: Sequence[Sourced],
    kept: Collection[Sourced],
    evaluated: Sequence[Sourced],
    *,
    without_original: bool = True,
) -> list[Sourced]:
    """Return the rows that are kept, and the augmented ones whose original is kept, in the order of the file.

    One whose original is not among the rows stays where `without_original` says so, unless that is evaluated;
    where rows were set aside, one like its original may be among them. None asks what is evaluated.
    """
    if all(row.origin is None for row in rows):
        return list(kept)
    places = {row.where for row in kept}
    asked = {key(row.example) for row in evaluated}

    def stays(row: Sourced) -> bool:
        if row.origin is None:
            return row.where in places
        texts = {fold_text(row.origin.text), key(row.example)}
        found = bool(row.origin.places) or without_original
        return found and places.issuperset(row.origin.places) and asked.isdisjoint(texts)

    return [row for row in rows if stays(row)]


def augmented_left_out(before: Sequence[Sourced], after: Sequence[Sourced], where: str) -> list[str]:
    """Say how many augmented rows were left out, and why; empty of none."""
    left = {row.where for row in after}
    gone = [row.origin for row in before if row.origin is not None and row.where not in left]
    alone = sum(not origin.places for origin in gone)
    reasons = {
        "made from rows that are evaluated": len(gone) - alone,
        "made from rows that are evaluated or not in the file": alone,
    }
    return [f"{where}: {pluralize(n, 'augmented row')} left out, {why}" for why, n in reasons.items() if n]


def _texts(value: Any) -> Iterator[str]:
    """Yield all texts that a value holds, without letter case and with single spaces."""
    if isinstance(value, str):
        yield fold_text(value)
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


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


def deal(
    rows: Sequence[Sourced], k: int, rng: random.Random, with_choices: bool = False
) -> list[list[Sourced]]:
    """Deal rows into k folds by whole groups, every label (or slice) by its share, in the order of the file.

    The largest groups come first, each into the fold with the fewest rows of its label.

    Raises:
        UserError: there are fewer groups than folds.
    """
    groups = groups_of([row.example for row in rows], with_choices)
    if len(groups) < k:
        found = (
            f"{pluralize(len(rows), 'row')} in {pluralize(len(groups), 'group')} of one cluster or question"
        )
        step = f"fewer folds{f', at most {len(groups)}' if len(groups) > 1 else ''}, or more rows"
        raise UserError(Problem(rows[0].where if rows else "folds", found, f"at least {k}, one a fold", step))
    strata = [_stratum([rows[i].example for i in group]) for group in groups]
    held: list[Counter[str]] = [Counter() for _ in range(k)]
    fold_of: dict[int, int] = {}
    for group in sorted(_spread(strata, rng), key=lambda group: -len(groups[group])):
        stratum = strata[group]
        fold = min(range(k), key=lambda f: (held[f][stratum], held[f].total(), f))
        held[fold][stratum] += len(groups[group])
        fold_of |= dict.fromkeys(groups[group], fold)
    return [[row for i, row in enumerate(rows) if fold_of[i] == fold] for fold in range(k)]


def deal_by_counts(
    rows: Sequence[Sourced], k: int, rng: random.Random, with_choices: bool = False
) -> list[list[Sourced]]:
    """Deal rows into k folds as `deal` does, by all labels of a group in place of its commonest one.

    Source: scikit-learn's StratifiedGroupKFold.
    """
    import warnings

    from sklearn.model_selection import StratifiedGroupKFold

    groups = groups_of([row.example for row in rows], with_choices)
    group_of = {i: number for number, group in enumerate(groups) for i in group}
    strata, numbers = [_stratum([row.example]) for row in rows], [group_of[i] for i in range(len(rows))]
    if max(Counter(strata).values()) < k:  # no label can be in every fold
        return deal(rows, k, rng, with_choices)
    dealing = StratifiedGroupKFold(k, shuffle=True, random_state=rng.randrange(2**32))
    with warnings.catch_warnings():  # of a label with fewer rows than folds, which is refused by its name
        warnings.simplefilter("ignore", UserWarning)
        return [[rows[i] for i in fold] for _, fold in dealing.split(strata, strata, numbers)]


def has_mixed_groups(rows: Sequence[Sourced], with_choices: bool = False) -> bool:
    """Tell whether a group has rows of several labels (or slices)."""
    groups = groups_of([row.example for row in rows], with_choices)
    return any(len({_stratum([rows[i].example]) for i in group}) > 1 for group in groups)


def assign_folds(
    task: str, rows: Sequence[Sourced], k: int, where: str, with_choices: bool = False
) -> dict[str, int]:
    """Return the fold of every row by its id, from 1; the same for every seed.

    Raises:
        UserError: there are fewer groups of rows than folds, or a label that some fold lacks.
    """
    dealt = deal(rows, k, random.Random(f"{task}/folds"), with_choices)
    if any(_missing_labels(dealt, where)) and has_mixed_groups(rows, with_choices):
        dealt = deal_by_counts(rows, k, random.Random(f"{task}/folds"), with_choices)
    if problems := list(_missing_labels(dealt, where)):
        raise UserError(problems)
    return {row.example.id: fold for fold, of in enumerate(dealt, start=1) for row in of}


def _missing_labels(dealt: Sequence[Sequence[Sourced]], where: str) -> Iterator[Problem]:
    """Yield each label of a closed set that a fold lacks: the score there would be that of other classes."""
    counts = [Counter(r.example.references[0] for r in fold if r.example.choices) for fold in dealt]
    for label, n in sorted(sum(counts, Counter[str]()).items()):
        lacking = [str(fold) for fold, held in enumerate(counts, start=1) if not held[label]]
        if lacking:
            found = f"{pluralize(n, 'row')} of the label {label!r}, none in fold {', '.join(lacking)}"
            expected = (
                f"at least {len(dealt)} of each label outside of validation, in rows that can be parted"
            )
            step = "add rows of it, join it with another label, or lower folds"
            yield Problem(where, found, expected, step)


def describe_folds(folds: Mapping[str, int]) -> str:
    """Say how many folds there are, of how many rows, and who answers what."""
    n, sizes = len(folds), Counter(folds.values())
    least, most = min(sizes.values()), max(sizes.values())
    size = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    return (
        f"{len(sizes)} folds of {size} rows, each answered by what was made without it, of some "
        f"{n - n // len(sizes):,}; what is shipped is made of all {n:,}"
    )


def draw(rows: Sequence[Sourced], limit: int | None, rng: random.Random) -> tuple[Example, ...]:
    """Draw at most `limit` examples, every label (or slice) by its share, in the order of the file."""
    if limit is None or limit >= len(rows):
        return tuple(row.example for row in rows)
    chosen = set(_spread([_stratum([row.example]) for row in rows], rng)[:limit])
    return tuple(row.example for i, row in enumerate(rows) if i in chosen)


def _stratum(group: Sequence[Example]) -> str:
    """Return the commonest label of a group where there are labels, else its slice."""
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
