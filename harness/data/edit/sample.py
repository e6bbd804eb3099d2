"""Sample of rows, at random or balanced by a column.

Invariant: what is drawn keeps the order of the file; a smaller sample of one seed is part of a larger one.
"""

import random
from collections.abc import Sequence

from harness.data.edit.change import NOT_DRAWN, EditedRow, drop
from harness.data.readers import Rows
from harness.errors import Problem, UserError, refuse
from harness.formatting import pluralize


def sample(content: Rows, n_rows: int, balance: str | None, seed: int) -> list[EditedRow]:
    """Draw rows; balanced, equally many of every value of a column, one more of the first where they differ.

    Raises:
        UserError: there are fewer rows, or a class has fewer than its part, or none would be drawn of one.
    """
    classes: dict[str, list[int]] = {}
    for i, row in enumerate(content.rows):
        classes.setdefault(str(row.fields.get(balance)) if balance else "", []).append(i)
    if n_rows < len(classes):
        found, expected = f"{n_rows} for {len(classes)} values of {balance!r}", "one of each at least"
        raise UserError(Problem("--rows", found, expected, f"--rows {len(classes)}"))
    wanted = _equal_parts(n_rows, sorted(classes))
    _refuse_too_many(content.shown, {name: len(of) for name, of in classes.items()}, wanted, balance)
    drawn = {i for name, n in wanted.items() for i in draw(classes[name], n, f"{seed}/{name}")}
    return [EditedRow(row) if i in drawn else drop(row, NOT_DRAWN) for i, row in enumerate(content.rows)]


def draw(indices: Sequence[int], n: int, seed: str, *, replacement: bool = False) -> list[int]:
    """Draw n of some indices, in their order; with replacement one may come several times."""
    rng = random.Random(seed)
    return sorted(rng.choices(indices, k=n) if replacement else rng.sample(indices, len(indices))[:n])


def _equal_parts(n_rows: int, names: Sequence[str]) -> dict[str, int]:
    each, more = divmod(n_rows, len(names))
    return {name: each + (i < more) for i, name in enumerate(names)}


def _refuse_too_many(shown: str, there: dict[str, int], wanted: dict[str, int], balance: str | None) -> None:
    most = min(there.values()) * len(there)
    problems = [
        Problem(
            f"{shown}, --balance {balance}" if balance else shown,
            f"{pluralize(there[name], 'row')}{f' of the class {name!r}' if balance else ''}",
            f"at least {n:,} to draw from",
            f"--rows {most} at most",
        )
        for name, n in wanted.items()
        if n > there[name]
    ]
    refuse(problems)


def refuse_no_rows(n_rows: int) -> None:
    """Refuse to draw fewer rows than one."""
    if n_rows < 1:
        raise UserError(Problem("--rows", f"{n_rows}", "at least 1", "name how many rows to draw"))
