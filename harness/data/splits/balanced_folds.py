"""Folds: rows dealt by whole groups, each label by its share.

Invariant: rows of one cluster, and rows that ask the same, are in one fold; a label of a closed set
is in every fold.
"""

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from harness.data.examples import SourcedExample
from harness.data.splits import groups_of, stratum_of
from harness.data.splits.class_cover import cover
from harness.errors import Problem, UserError, refuse
from harness.formatting import pluralize


def deal(
    rows: Sequence[SourcedExample], k: int, rng: random.Random, with_choices: bool = False
) -> list[list[SourcedExample]]:
    """Deal rows into k folds by whole groups, every label (or slice) by its share, in the order of the file.

    Two folds differ by the rows of the largest group at most. The largest groups come first, and of one size
    those with the rarest label. Each goes where the fewest rows of its labels are, by their shares, among
    the folds that it puts no further ahead than that.

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
    labels = [Counter(stratum_of([rows[i].example]) for i in group) for group in groups]
    n = Counter(stratum_of([row.example]) for row in rows)
    order, names, largest = list(range(len(groups))), sorted(n), max(map(len, groups))
    rng.shuffle(order)
    rng.shuffle(names)
    rank = {label: (n[label], i) for i, label in enumerate(names)}
    held, sizes = [Counter[str]() for _ in range(k)], [0] * k
    fold_of: dict[int, int] = {}
    for group in sorted(order, key=lambda group: (-len(groups[group]), min(rank[x] for x in labels[group]))):
        of, size = labels[group], len(groups[group])
        room = [fold for fold in range(k) if sizes[fold] + size <= min(sizes) + largest]
        fold = min(room, key=lambda f: (sum(held[f][x] * m / n[x] ** 2 for x, m in of.items()), sizes[f], f))
        held[fold].update(of)
        sizes[fold] += size
        fold_of |= dict.fromkeys(groups[group], fold)
    return [[row for i, row in enumerate(rows) if fold_of[i] == fold] for fold in range(k)]


def spread_labels(
    rows: Sequence[SourcedExample], parts: Sequence[Sequence[SourcedExample]], with_choices: bool = False
) -> list[list[SourcedExample]]:
    """Move the fewest rows from part to part, by whole groups, so that every part has every label (or slice).

    The parts come back as they are where no way gives them every label.
    """
    part_of = {row.example.id: number for number, part in enumerate(parts) for row in part}
    groups = groups_of([row.example for row in rows], with_choices)
    drawn = [part_of[rows[group[0]].example.id] for group in groups]
    found = cover(labels_of(rows, groups), list(map(len, groups)), drawn, len(parts))
    for number, group in zip(found or drawn, groups, strict=True):
        part_of |= {rows[i].example.id: number for i in group}
    return [[row for row in rows if part_of[row.example.id] == number] for number in range(len(parts))]


def labels_of(rows: Sequence[SourcedExample], groups: Sequence[Sequence[int]]) -> list[set[str]]:
    """List the labels (or slices) of each group of rows."""
    return [{stratum_of([rows[i].example]) for i in group} for group in groups]


def assign_folds(
    task: str, rows: Sequence[SourcedExample], k: int, where: str, with_choices: bool = False
) -> dict[str, int]:
    """Return the fold of every row by its id, from 1; the same for every seed.

    Raises:
        UserError: there are fewer groups of rows than folds, or a label that some fold lacks.
    """
    dealt = deal(rows, k, random.Random(f"{task}/folds"), with_choices)
    if any(_missing_labels(dealt, where)):
        dealt = spread_labels(rows, dealt, with_choices)
    refuse(_missing_labels(dealt, where))
    return {row.example.id: fold for fold, of in enumerate(dealt, start=1) for row in of}


def _missing_labels(dealt: Sequence[Sequence[SourcedExample]], where: str) -> Iterator[Problem]:
    """Yield each label of a closed set that a fold lacks: the score there would be that of other classes."""
    # Choices that differ from row to row are no labels.
    if len({frozenset(row.example.choices) for fold in dealt for row in fold}) > 1:
        return
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
