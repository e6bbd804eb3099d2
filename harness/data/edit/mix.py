"""Mixtures of files, by weights or by size at a temperature, and samples of one file.

Invariant: rows and files keep their order, and the number of rows is exact. Without replacement no row is
drawn twice; a smaller sample of one seed is part of a larger one.
Source: Raffel et al. 2020, Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer,
section 3.5.2, https://arxiv.org/abs/1910.10683: p_i ∝ n_i^(1/T).
"""

import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import count
from typing import NamedTuple

from harness.data import formats
from harness.data.column_roles import find_roles
from harness.data.edit.changes import NOT_DRAWN, Change, EditedRow, drop
from harness.data.row_forms import settle_forms
from harness.data.splits import ORIGIN
from harness.data.text_files import Row, Rows
from harness.errors import Problem, UserError, refuse
from harness.formatting import pluralize

NEW_ID = "a new id, because an earlier row has its id"
OWN = {"prompt", "messages", "reference", "references", "constraints"}  # columns of our own layout
_READ = {"id", ORIGIN, *OWN}  # columns that readers of a row need


class RowMixture(NamedTuple):
    """Weights of the files (None: by their sizes at a temperature) and number of rows (None: the largest)."""

    weights: tuple[float, ...] | None = None
    temperature: float = 1.0
    n_rows: int | None = None
    replacement: bool = False
    column: str = "source"
    seed: int = 0


def mix(files: Sequence[Rows], mixture: RowMixture) -> Iterator[EditedRow]:
    """Sample each file by its share; repeated rows get new ids. An existing `column` is refused."""
    numbers, column = row_numbers(files, mixture), mixture.column
    if column in _READ or not column.strip():
        found, expected = repr(column), "a name that says nothing else of a row"
        raise UserError("--column", found, expected, "name another: --column source")
    taken_row = next((row for content in files for row in content.rows if column in row.fields), None)
    if taken_row:
        step = "name another: --column from"
        raise UserError(taken_row.where, f"the column {column!r}", "rows without it", step)
    ids = RowIds(row for content in files for row in content.rows)
    for file_index, (content, n) in enumerate(zip(files, numbers, strict=True)):
        seed = f"{mixture.seed}/{file_index}"
        n_drawn = Counter(draw(range(len(content.rows)), n, seed, replacement=mixture.replacement))
        for i, row in enumerate(content.rows):
            if not n_drawn[i]:
                yield drop(row, NOT_DRAWN)
            fields = {**row.fields, column: content.shown}
            ident = row.fields.get("id")
            for _ in range(n_drawn[i]):
                if not isinstance(ident, str | int) or (new_id := ids.give(ident)) == ident:
                    yield EditedRow(Row(row.where, fields))
                else:
                    change = Change(row.where, "changed", (NEW_ID,))
                    yield EditedRow(Row(row.where, fields | {"id": new_id}), change)


def refuse_other_layouts(files: Sequence[Rows]) -> None:
    """Refuse files with other layouts, or columns of question and answer, than the first."""

    def describe(content: Rows) -> tuple[str, formats.Layout | None]:
        layout = formats.recognise(content.rows)
        if not layout:
            return f"rows of {', '.join([*content.names][:8])}", None
        forms = settle_forms(content.rows)
        numbers = f" whose numbers are {' or '.join(forms.numbers)}" if forms.has_numbers else ""
        return f"{layout.name} rows{numbers}", layout

    expected, layout = describe(first_file := files[0])
    step = "let a candidate read each as it is: train: [a, b], or mix: of them"
    problems = []
    for content in files[1:]:
        found, other_layout = describe(content)
        is_alike = layout is other_layout and (found == expected or layout is None)
        if layout is other_layout is None:
            with suppress(UserError):  # the columns are named when the mixture is read
                roles, names = find_roles(first_file), content.names
                find_roles(content)
                asking, answering = ({*role, *OWN} if OWN & {*role} else {*role} for role in roles)
                is_alike = bool(asking & names) and (bool(answering & names) or not answering)
        if not is_alike:
            problems.append(Problem(content.shown, found, f"{expected}, as in {first_file.shown}", step))
    refuse(problems)


def shares(sizes: Sequence[int], mixture: RowMixture) -> list[float]:
    """Return the share of each file, in [0, 1]; together they are 1. Other weights are refused."""
    if mixture.weights is not None:
        wrong = [weight for weight in mixture.weights if not 0 < weight < math.inf]
        if len(mixture.weights) != len(sizes) or wrong:
            found = f"{len(mixture.weights)} for {len(sizes)} files{f', one {wrong[0]:g}' if wrong else ''}"
            raise UserError("--weights", found, "a weight above 0 for each file", "such as 0.7,0.3")
        if not math.isclose(sum(mixture.weights), 1, abs_tol=1e-6):
            found = f"weights that add up to {sum(mixture.weights):g}"
            scaled_weights = ",".join(f"{w / sum(mixture.weights):.4g}" for w in mixture.weights)
            raise UserError("--weights", found, "shares that add up to 1", f"perhaps {scaled_weights}")
        return list(mixture.weights)
    if not 0 < mixture.temperature < math.inf:
        found, expected = f"{mixture.temperature:g}", "a number above 0"
        raise UserError("--temperature", found, expected, "1 is by size, a high one nearly even")
    logs = [math.log(n) / mixture.temperature for n in sizes]
    powers = [math.exp(log - max(logs)) for log in logs]
    return [power / sum(powers) for power in powers]


def row_numbers(
    files: Sequence[Rows], mixture: RowMixture, step: str = "--rows {}, or --replacement"
) -> list[int]:
    """Return how many rows are drawn of each file: the largest remainders are rounded up.

    `step` says what to do about a file that is too small; its braces get the largest possible number of rows.
    A share that draws no row is refused, too.
    """
    sizes = [len(content.rows) for content in files]
    file_shares = shares(sizes, mixture)
    if mixture.n_rows is None and mixture.replacement:
        found = "--replacement without --rows"
        raise UserError("harness data mix", found, "how many rows to draw", "--rows N")
    largest_total = math.floor(min(n / share for n, share in zip(sizes, file_shares, strict=True)) + 1e-9)
    total = largest_total if mixture.n_rows is None else mixture.n_rows
    exact_numbers = [total * part for part in file_shares]
    numbers = [math.floor(x + 1e-9) for x in exact_numbers]
    by_remainder = sorted(range(len(file_shares)), key=lambda i: (numbers[i] - exact_numbers[i], i))
    for i in by_remainder[: total - sum(numbers)]:
        numbers[i] += 1
    if mixture.n_rows is None:  # rounding up may ask for a row more than there is
        numbers = [min(n, size) for n, size in zip(numbers, sizes, strict=True)]
    problems = [
        Problem(content.shown, f"{size:,} rows", f"{n:,} for its share", step.format(largest_total))
        for content, n, size in zip(files, numbers, sizes, strict=True)
        if n > size and not mixture.replacement
    ]
    found, share_step = "a share that draws no row", "draw more, or leave the file out"
    problems += [
        Problem(content.shown, found, "one at least", share_step)
        for content, n in zip(files, numbers, strict=True)
        if not n and mixture.weights
    ]
    refuse(problems)
    return numbers


class RowIds:
    """Ids of all rows, and those that are written already; 1 and "1" are one id."""

    def __init__(self, rows: Iterable[Row]) -> None:
        existing_ids = [ident for row in rows if isinstance(ident := row.fields.get("id"), str | int)]
        self._known, self._written = set(map(str, existing_ids)), set[str]()
        self._next = count(1 + max((ident for ident in existing_ids if isinstance(ident, int)), default=0))
        self._copies: dict[str, Iterator[int]] = defaultdict(lambda: count(2))

    def give(self, ident: str | int) -> str | int:
        """Return an id that no other row has: itself, a number above all, or a text with a number."""
        if str(ident) not in self._written:
            self._written.add(str(ident))
            return ident
        if isinstance(ident, int):
            return next(n for n in self._next if str(n) not in self._known)
        return next(new_id for n in self._copies[ident] if (new_id := f"{ident}-{n}") not in self._known)


def sample(content: Rows, n_rows: int, balance: str | None, seed: int) -> list[EditedRow]:
    """Sample rows; balanced, with equal numbers of each value of a column (the first may have one more)."""
    classes: dict[str, list[int]] = {}
    for i, row in enumerate(content.rows):
        classes.setdefault(str(row.fields.get(balance)) if balance else "", []).append(i)
    if n_rows < len(classes):
        found, expected = f"{n_rows} for {len(classes)} values of {balance!r}", "one of each at least"
        raise UserError("--rows", found, expected, f"--rows {len(classes)}")
    n_each, n_extra = divmod(n_rows, len(classes))
    n_by_class = {name: n_each + (i < n_extra) for i, name in enumerate(sorted(classes))}
    n_most = min(map(len, classes.values())) * len(classes)
    where, problems = f"{content.shown}, --balance {balance}" if balance else content.shown, list[Problem]()
    for name, n in n_by_class.items():
        if n > len(classes[name]):
            found = pluralize(len(classes[name]), "row") + (f" of the class {name!r}" if balance else "")
            problems.append(Problem(where, found, f"at least {n:,} to draw from", f"--rows {n_most} at most"))
    refuse(problems)
    indices = {i for name, n in n_by_class.items() for i in draw(classes[name], n, f"{seed}/{name}")}
    return [EditedRow(row) if i in indices else drop(row, NOT_DRAWN) for i, row in enumerate(content.rows)]


def draw(indices: Sequence[int], n: int, seed: str, *, replacement: bool = False) -> list[int]:
    """Draw n of some indices, in their order; with replacement one may be drawn several times."""
    rng = random.Random(seed)
    return sorted(rng.choices(indices, k=n) if replacement else rng.sample(indices, len(indices))[:n])


def refuse_no_rows(n_rows: int) -> None:
    """Refuse to draw fewer than one row."""
    if n_rows < 1:
        raise UserError("--rows", f"{n_rows}", "at least 1", "name how many rows to draw")
