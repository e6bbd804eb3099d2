"""Seeded draws: which rows are set aside for validation or test, and which of many are used.

Invariant: rows of one cluster, and rows that ask the same, are never on both sides of a split; what is drawn
keeps the order of the file, and a smaller draw is part of a larger one. An augmented row is trained on where
the rows are that it was made from, or left out: it is never set aside. Rows of one cluster, and rows that ask
the same, are in one fold; a label of a closed set is in every fold. A group moves only where a class would
lack otherwise, and as few rows as can be: that there is no better way is proven, never guessed, for the
integer program is solved to its end.
Source: set covering as an integer program, Karp 1972; solved by HiGHS, Huangfu & Hall 2018
"""

import json
import random
from collections import Counter, defaultdict, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np

from harness.data.contamination import key
from harness.data.examples import SourcedExample, SourceText
from harness.data.readers import file_of
from harness.data.text_files import Row
from harness.errors import Problem, UserError, as_argument, refuse
from harness.formatting import pluralize
from harness.records import Example, digest, fold_text, parse_json

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
    if folds:  # keep the order of strata, and take each row from the fold that is furthest behind its share
        fold_of = [folds[row.example.id] for row in rows]
        left: dict[str, dict[int, deque[int]]] = defaultdict(lambda: defaultdict(deque))
        for index in order:
            left[strata[index]][fold_of[index]].append(index)
        sizes, taken, drawn = Counter(fold_of), Counter[int](), list[int]()
        for index in order:
            held = left[strata[index]]
            fold = min((f for f in held if held[f]), key=lambda f: (taken[f] / sizes[f], f))
            taken[fold] += 1
            drawn.append(held[fold].popleft())
        order = drawn
    chosen = set(order[:limit])
    return tuple(row.example for i, row in enumerate(rows) if i in chosen)


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
    return join([(("cluster", e.cluster), ("question", key(e, with_choices))) for e in examples])


def cluster_repeats(rows: Sequence[SourcedExample]) -> tuple[list[SourcedExample], int]:
    """Give rows that ask the same in other clusters one cluster, and count those that join another's.

    A question that stands twice is no second item: an interval would be too narrow by it.
    """
    out, n = list(rows), 0
    for group in join([(("cluster", e.cluster), ("question", _fold_question(e))) for e, *_ in rows]):
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


def join(marks: Sequence[Sequence[tuple[str, str]]]) -> list[list[int]]:
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


# Columns of an augmented row; the last, the texts that it was made from, is what tells it from others.
SOURCE, AUGMENTED, ORIGIN = "source", "augmented", "augmented_from"


def is_augmented(row: Row) -> bool:
    """Tell whether a model made a row from another one."""
    return bool(row.fields.get(ORIGIN))


def phrase_only_augmented(shown: str) -> Problem:
    """Phrase rows that were all made from rows which are not there."""
    expected, step = "the rows that they were made from as well", "put these into the same file"
    return Problem(shown, "only augmented rows", expected, step)


def write_origins(texts: Sequence[str]) -> str:
    """Write the texts that a row was made from: one as it is, several as a list in JSON."""
    return texts[0] if len(texts) == 1 else json.dumps(texts, ensure_ascii=False)


def _read_origins(written: Any) -> list[str]:
    with suppress(ValueError):
        found = parse_json(written) if str(written).startswith('["') else None
        if isinstance(found, list) and all(isinstance(text, str) for text in found):
            return found
    return [str(written or "")]


def origins(rows: Sequence[Row]) -> dict[str, tuple[SourceText, ...]]:
    """Map the places of augmented rows to what they were made from: rows that hold their original texts."""
    made = [row for row in rows if is_augmented(row)]
    if not made:
        return {}
    places: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        for text in set() if is_augmented(row) else set(_texts(row.fields)):
            places[text].append(row.where)
    places.pop("", None)
    return {
        row.where: tuple(
            SourceText(text, tuple(places.get(fold_text(text), ())))
            for text in _read_origins(row.fields[ORIGIN])
        )
        for row in made
    }


def keep_with_origins(
    rows: Sequence[SourcedExample],
    kept: Collection[SourcedExample],
    evaluated: Sequence[SourcedExample],
    *,
    without_original: bool = True,
) -> list[SourcedExample]:
    """Return the rows that are kept, and the augmented ones whose original is kept, in the order of the file.

    One whose original is not among the rows stays where `without_original` says so, unless that is evaluated;
    where rows were set aside, one like its original may be among them. None asks what is evaluated: an
    original that is not in the file is so too if a prompt begins or ends with it, as with a context.
    """
    if not any(row.origins for row in rows):
        return list(kept)
    places = {row.where for row in kept}
    questions = {key(row.example) for row in evaluated}

    left: list[SourcedExample] = []
    for row in rows:
        stays = row.where in places
        if row.origins:
            stays = all(
                (of.places or without_original) and places.issuperset(of.places) for of in row.origins
            )
        if stays and row.origins:
            texts = {*(fold_text(of.text) for of in row.origins), key(row.example)}
            lost = tuple(fold_text(of.text) for of in row.origins if not of.places)
            is_asked = not questions.isdisjoint(texts)
            stays = not (is_asked or any(q.endswith(lost) or q.startswith(lost) for q in questions if lost))
        left += [row] if stays else []
    return left


def describe_augmented_left_out(
    before: Sequence[SourcedExample], after: Sequence[SourcedExample], where: str
) -> list[str]:
    """Say how many augmented rows were left out, and why; empty of none."""
    left = {row.where for row in after}
    gone = [row.origins for row in before if row.origins and row.where not in left]
    alone = sum(not all(of.places for of in origins) for origins in gone)
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
        n_groups = pluralize(len(groups), "group")
        found = f"{pluralize(len(rows), 'row')} in {n_groups} of one cluster or question"
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

    `where` is what lacks labels that some fold does not have; empty where it need not have all of them.

    Raises:
        UserError: there are fewer groups of rows than folds, or a label that some fold lacks.
    """
    dealt = deal(rows, k, random.Random(f"{task}/folds"), with_choices)
    if any(_find_missing_labels(dealt, where)):
        dealt = spread_labels(rows, dealt, with_choices)
    refuse(_find_missing_labels(dealt, where) if where else ())
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
            apart = "outside of validation, in rows that can be parted"
            expected = f"at least {len(dealt)} of each label {apart}"
            step = "add rows of it, join it with another label, or lower folds"
            yield Problem(where, found, expected, step)


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
    every = range(len(classes))
    return _solve(classes, sizes, drawn, n_parts, few) or _solve(classes, sizes, drawn, n_parts, every)


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
    needs = [(part, name) for part in range(n_parts) for name in names]
    rows = {need: i for i, need in enumerate(needs)}
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
