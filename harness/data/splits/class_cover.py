"""Class cover: groups are parted so that every part has every class, with the fewest rows moved.

Invariant: a group is in one part, and moves only where a class would lack otherwise. That there is no such
way is proven, never guessed: the integer program is solved to its end.
Source: set covering as an integer program, Karp 1972; solved by HiGHS, Huangfu & Hall 2018.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence

import numpy as np

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


def clashing_classes(classes: Classes, n_parts: int) -> list[str]:
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
