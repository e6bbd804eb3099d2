"""Folds: rows dealt by whole groups, each label by its share, and parts of groups that cover every class.

Invariant: rows of one cluster, and rows that ask the same, are in one fold; a label of a closed set
is in every fold. A group moves only where a class would lack otherwise, and as few rows as can be: that there
is no better way is proven, never guessed, for the integer program is solved to its end.
Source: set covering as an integer program, Karp 1972; solved by HiGHS, Huangfu & Hall 2018.
"""

import random
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import numpy as np

from harness.data.examples import SourcedExample
from harness.data.splits import groups_of, stratum_of
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
    if any(_find_missing_labels(dealt, where)):
        dealt = spread_labels(rows, dealt, with_choices)
    refuse(_find_missing_labels(dealt, where))
    return {row.example.id: fold for fold, of in enumerate(dealt, start=1) for row in of}


def _find_missing_labels(dealt: Sequence[Sequence[SourcedExample]], where: str) -> Iterator[Problem]:
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


Classes = Sequence[Collection[str]]  # of each group


def cover(classes: Classes, sizes: Sequence[int], drawn: Sequence[int], n_parts: int) -> list[int] | None:
    """Return the part of each group, with every class in every part; None where there is no such way.

    `sizes` are the rows of each group and `drawn` its part as it was drawn, in [0, n_parts).
    """
    held = {(part, name) for part, of in zip(drawn, classes, strict=True) for name in of}
    lacking = {name for of in classes for name in of if any((p, name) not in held for p in range(n_parts))}
    if not lacking:
        return list(drawn)
    if scarce_classes(classes, n_parts):
        return None
    few = [g for g, of in enumerate(classes) if lacking.intersection(of)]
    return _solve(classes, sizes, drawn, n_parts, few) or _solve(
        classes, sizes, drawn, n_parts, range(len(classes))
    )


def scarce_classes(classes: Classes, n_parts: int) -> list[str]:
    """List the classes that stand in fewer groups than there are parts."""
    counts = Counter(name for of in classes for name in set(of))
    return sorted(name for name, n in counts.items() if n < n_parts)


def find_clashing_classes(classes: Classes, n_parts: int) -> list[str]:
    """List a smallest set of classes that no parting of the groups gives to every part; empty of none.

    Without any one of them the others can be given.
    """

    def can_be_given(names: Iterable[str]) -> bool:
        left = [set(of).intersection(names) for of in classes]
        return cover(left, [1] * len(left), [0] * len(left), n_parts) is not None

    clash = sorted({name for of in classes for name in of})
    if can_be_given(clash):
        return []
    for name in list(clash):
        if not can_be_given(without := [other for other in clash if other != name]):
            clash = without
    return clash


def _solve(
    classes: Classes, sizes: Sequence[int], drawn: Sequence[int], n_parts: int, movable: Iterable[int]
) -> list[int] | None:
    """Move the fewest rows of some groups; the others stay where they were drawn."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    moved = {group: i for i, group in enumerate(movable)}
    names = sorted({name for of in classes for name in of})
    rows: dict[tuple[int, str], int] = {
        key: i for i, key in enumerate((p, n) for p in range(n_parts) for n in names)
    }
    needed, where = np.ones(len(rows)), list[tuple[int, int]]()
    for group, of in enumerate(classes):
        for name in of:
            if group in moved:
                where += ((rows[part, name], moved[group] * n_parts + part) for part in range(n_parts))
            else:
                needed[rows[drawn[group], name]] = 0
    shape = (len(rows), len(moved) * n_parts)
    held = csr_array((np.ones(len(where)), tuple(np.array(where).T)), shape=shape)
    columns = np.arange(shape[1])
    once = csr_array((np.ones(shape[1]), (columns // n_parts, columns)), shape=(len(moved), shape[1]))
    cost = [float(sizes[group] * (part != drawn[group])) for group in moved for part in range(n_parts)]
    limits = [LinearConstraint(held, needed, np.inf), LinearConstraint(once, 1, 1)]
    found = milp(cost, integrality=np.ones(shape[1]), bounds=Bounds(0, 1), constraints=limits)
    if found.x is None:
        return None
    parts = list(drawn)
    for group, i in moved.items():
        parts[group] = int(found.x[i * n_parts : (i + 1) * n_parts].argmax())
    return parts
