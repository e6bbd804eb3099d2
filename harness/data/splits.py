"""Seeded draws: rows set aside for validation or test, folds, and samples.

Invariant: rows of one cluster, and rows that ask the same, are in one part and one fold; a sample keeps the
order of the file, and a smaller one is part of a larger one. Augmented rows are never set aside, and trained
on only with their originals. The fewest rows move so that no class is missing, by an integer program.
Source: set covering as an integer program, Karp 1972; solved by HiGHS, Huangfu & Hall 2018
"""

import random
from collections import Counter, defaultdict, deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np

from harness.data.contamination import key
from harness.data.examples import SourcedExample, SourcedRows, SourceText
from harness.data.text_files import Row
from harness.errors import Problem, UserError, refuse
from harness.formatting import pluralize
from harness.records import Example, digest, fold_text, parse_json

SHARE = 0.2


def set_aside(
    rows: SourcedRows, rng: random.Random, with_choices: bool = False, share: float = SHARE, *, leave: int = 1
) -> tuple[list[SourcedExample], list[SourcedExample]]:
    """Split rows into training and another split (a share of them, at least one) by whole groups."""
    groups = groups_of([row.example for row in rows], with_choices)
    if len(groups) <= leave:
        n = "one cluster or question" if len(groups) == 1 else f"{len(groups)} clusters or questions"
        found, expected = f"training rows of {n} only", f"at least {leave + 1} clusters and questions"
        step = "name files for train, validation and test, or the columns that tell the questions apart"
        raise UserError(rows[0].where, found, expected, step)
    quota = max(round(share * len(rows)), min(map(len, groups)))
    chosen_indices: set[int] = set()
    n_left = len(groups)
    for group in _spread([stratum_of([rows[i].example for i in group]) for group in groups], rng):
        if n_left > leave and len(chosen_indices) + len(groups[group]) <= quota:
            chosen_indices.update(groups[group])
            n_left -= 1
    kept_rows = [row for i, row in enumerate(rows) if i not in chosen_indices]
    return kept_rows, [row for i, row in enumerate(rows) if i in chosen_indices]


def draw(
    rows: SourcedRows, limit: int | None, rng: random.Random, folds: Mapping[str, int] = MappingProxyType({})
) -> tuple[Example, ...]:
    """Draw at most `limit` examples, every label (or slice) by its share, in the order of the file.

    `folds` maps ids to folds; each fold is drawn by its share as well.
    """
    if limit is None or limit >= len(rows):
        return tuple(row.example for row in rows)
    strata = [stratum_of([row.example]) for row in rows]
    order = _spread(strata, rng)
    if folds:  # each row of a stratum comes from the fold that is furthest below its share
        fold_of = [folds[row.example.id] for row in rows]
        remaining: dict[str, dict[int, deque[int]]] = defaultdict(lambda: defaultdict(deque))
        for index in order:
            remaining[strata[index]][fold_of[index]].append(index)
        sizes, n_taken, drawn_order = Counter(fold_of), Counter[int](), list[int]()
        for index in order:
            by_fold = remaining[strata[index]]
            fold = min((f for f in by_fold if by_fold[f]), key=lambda f: (n_taken[f] / sizes[f], f))
            n_taken[fold] += 1
            drawn_order.append(by_fold[fold].popleft())
        order = drawn_order
    chosen_indices = set(order[:limit])
    return tuple(row.example for i, row in enumerate(rows) if i in chosen_indices)


def stratum_of(group: Sequence[Example]) -> str:
    """Return the most frequent label of a group, or its slice if it has no labels."""
    labels = [e.references[0] if e.choices and e.references else e.slice for e in group]
    return Counter(labels).most_common(1)[0][0]


def _spread(strata: Sequence[str], rng: random.Random) -> list[int]:
    """Order indices at random so that every prefix has each stratum by its share."""
    # Systematic sampling: the j-th of n members of a stratum goes to (j + u) / n, with a random start u.
    members: dict[str, list[int]] = {}
    for index, stratum in enumerate(strata):
        members.setdefault(stratum, []).append(index)
    positions: list[tuple[float, int]] = []
    for _, indices in sorted(members.items()):
        rng.shuffle(indices)
        start = rng.random()
        positions += [((j + start) / len(indices), index) for j, index in enumerate(indices)]
    return [index for _, index in sorted(positions)]


def groups_of(examples: Sequence[Example], with_choices: bool = False) -> list[list[int]]:
    """Join the indices of examples that share a cluster or a question, in the order of the file."""
    return join([(("cluster", e.cluster), ("question", key(e, with_choices))) for e in examples])


def cluster_repeats(rows: SourcedRows) -> tuple[list[SourcedExample], int]:
    """Give rows with the same question the same cluster, and count the rows whose cluster is replaced."""
    clustered_rows, n_replaced = list(rows), 0
    for group in join([(("cluster", e.cluster), ("question", _fold_question(e))) for e, *_ in rows]):
        members = [rows[i].example for i in group]
        if len({e.cluster for e in members}) == 1:
            continue
        # Not an id: other files and tasks may have the same one.
        written_clusters = (e.cluster for e in members if e.cluster != e.id)
        cluster = next(written_clusters, f"question {digest(_fold_question(members[0]))}")
        for i in group:
            clustered_rows[i] = rows[i]._replace(example=replace(rows[i].example, cluster=cluster))
        n_replaced += len({e.cluster for e in members}) - 1
    return clustered_rows, n_replaced


def _fold_question(example: Example) -> str:
    """Fold the whole question of an example, with its system message and choices."""
    system = [m["content"] for m in example.messages if m["role"] == "system"]
    return "\n".join([*map(fold_text, system), key(example, with_choices=True)])


def join(marks: Sequence[Sequence[tuple[str, str]]]) -> list[list[int]]:
    """Join the indices that share a mark, directly or through others, in their order."""
    parent = list(range(len(marks)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    first_index: dict[tuple[str, str], int] = {}
    for index, index_marks in enumerate(marks):
        for mark in index_marks:
            parent[root(index)] = root(first_index.setdefault(mark, index))
    groups: dict[int, list[int]] = {}
    for index in range(len(marks)):
        groups.setdefault(root(index), []).append(index)
    return list(groups.values())


# Columns of an augmented row: a source if rows have none, and the texts that it was made from.
SOURCE, AUGMENTED, ORIGIN = "source", "augmented", "augmented_from"


def is_augmented(row: Row) -> bool:
    """Tell whether a model made a row from another one."""
    return bool(row.fields.get(ORIGIN))


def phrase_only_augmented(shown_path: str) -> Problem:
    """Return the problem of a file with augmented rows only."""
    expected, step = "the rows that they were made from as well", "put these into the same file"
    return Problem(shown_path, "only augmented rows", expected, step)


def origins(rows: Sequence[Row]) -> dict[str, tuple[SourceText, ...]]:
    """Map the place of each augmented row to the texts that it was made from, with their places."""
    augmented = [row for row in rows if is_augmented(row)]
    places_by_text: dict[str, list[str]] = defaultdict(list)
    for row in rows if augmented else ():
        for text in set() if is_augmented(row) else set(_texts(row.fields)):
            places_by_text[text].append(row.where)
    places_by_text.pop("", None)
    result: dict[str, tuple[SourceText, ...]] = {}
    for row in augmented:
        origin_text = str(row.fields[ORIGIN])
        texts = [origin_text]
        with suppress(ValueError):  # several texts are a JSON list
            parsed = parse_json(origin_text) if origin_text.startswith('["') else None
            texts = parsed if isinstance(parsed, list) and all(isinstance(t, str) for t in parsed) else texts
        result[row.where] = tuple(SourceText(t, tuple(places_by_text.get(fold_text(t), ()))) for t in texts)
    return result


def keep_with_origins(
    rows: SourcedRows, kept_rows: SourcedRows, evaluated: SourcedRows, *, without_original: bool = True
) -> list[SourcedExample]:
    """Return the kept rows and the augmented ones whose originals are kept, in the order of the file.

    Rows whose originals are not in the file stay if `without_original`. No row or original is evaluated.
    """
    if not any(row.origins for row in rows):
        return list(kept_rows)
    kept_places = {row.where for row in kept_rows}
    questions = {key(row.example) for row in evaluated}

    def stays(row: SourcedExample) -> bool:
        if not row.origins:
            return row.where in kept_places
        if not all((o.places or without_original) and kept_places.issuperset(o.places) for o in row.origins):
            return False
        missing_texts = tuple(fold_text(origin.text) for origin in row.origins if not origin.places)
        if any(q.endswith(missing_texts) or q.startswith(missing_texts) for q in questions if missing_texts):
            return False
        return questions.isdisjoint({key(row.example), *(fold_text(origin.text) for origin in row.origins)})

    return [row for row in rows if stays(row)]


def describe_augmented_left_out(before: SourcedRows, after: SourcedRows, where: str) -> list[str]:
    """Return sentences on the augmented rows that were left out."""
    kept_places = {row.where for row in after}
    dropped_origins = [row.origins for row in before if row.origins and row.where not in kept_places]
    n_alone = sum(not all(origin.places for origin in origins) for origins in dropped_origins)
    reasons = {
        "made from rows that are evaluated": len(dropped_origins) - n_alone,
        "made from rows that are evaluated or not in the file": n_alone,
    }
    return [f"{where}: {pluralize(n, 'augmented row')} left out, {text}" for text, n in reasons.items() if n]


def _texts(value: Any) -> Iterator[str]:
    """Yield all texts of a value, without letter case and with single spaces."""
    if isinstance(value, str):
        yield fold_text(value)
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def deal(
    rows: SourcedRows, k: int, rng: random.Random, with_choices: bool = False
) -> list[list[SourcedExample]]:
    """Deal rows into k folds by whole groups, every label (or slice) by its share, in the order of the file.

    Two folds differ by at most the rows of the largest group; fewer groups than folds are a UserError.
    """
    groups = groups_of([row.example for row in rows], with_choices)
    if len(groups) < k:
        n_groups = pluralize(len(groups), "group")
        found = f"{pluralize(len(rows), 'row')} in {n_groups} of one cluster or question"
        step = f"fewer folds{f', at most {len(groups)}' if len(groups) > 1 else ''}, or more rows"
        raise UserError(rows[0].where if rows else "folds", found, f"at least {k}, one a fold", step)
    labels = [Counter(stratum_of([rows[i].example]) for i in group) for group in groups]
    n = Counter(stratum_of([row.example]) for row in rows)
    order, names, largest = list(range(len(groups))), sorted(n), max(map(len, groups))
    rng.shuffle(order)
    rng.shuffle(names)
    rank = {label: (n[label], i) for i, label in enumerate(names)}
    by_fold, sizes = [Counter[str]() for _ in range(k)], [0] * k
    fold_of: dict[int, int] = {}
    for group in sorted(order, key=lambda group: (-len(groups[group]), min(rank[x] for x in labels[group]))):
        group_labels, size = labels[group], len(groups[group])
        open_folds = [fold for fold in range(k) if sizes[fold] + size <= min(sizes) + largest]
        fold = min(
            open_folds,
            key=lambda f: (sum(by_fold[f][x] * m / n[x] ** 2 for x, m in group_labels.items()), sizes[f], f),
        )
        by_fold[fold].update(group_labels)
        sizes[fold] += size
        fold_of |= dict.fromkeys(groups[group], fold)
    return [[row for i, row in enumerate(rows) if fold_of[i] == fold] for fold in range(k)]


def spread_labels(
    rows: SourcedRows, parts: Sequence[SourcedRows], with_choices: bool = False
) -> list[list[SourcedExample]]:
    """Move the fewest rows between parts, by whole groups, so that each has every label, if possible."""
    part_of = {row.example.id: number for number, part in enumerate(parts) for row in part}
    groups = groups_of([row.example for row in rows], with_choices)
    drawn_parts = [part_of[rows[group[0]].example.id] for group in groups]
    labels, counts = labels_of(rows, groups), Counter[str]()
    for group_labels in labels:
        counts.update(group_labels)
    part_labels = {(part, name) for part, names in zip(drawn_parts, labels, strict=True) for name in names}
    lacking = {name for name in counts if any((part, name) not in part_labels for part in range(len(parts)))}
    new_parts = None
    if lacking and min(counts.values()) >= len(parts):
        few_groups = [g for g, group_labels in enumerate(labels) if lacking & group_labels]
        sizes, n_parts = list(map(len, groups)), len(parts)
        new_parts = _solve(labels, sizes, drawn_parts, n_parts, few_groups)
        new_parts = new_parts or _solve(labels, sizes, drawn_parts, n_parts, range(len(groups)))
    for number, group in zip(new_parts or drawn_parts, groups, strict=True):
        part_of |= {rows[i].example.id: number for i in group}
    return [[row for row in rows if part_of[row.example.id] == number] for number in range(len(parts))]


def labels_of(rows: SourcedRows, groups: Sequence[Sequence[int]]) -> list[set[str]]:
    """List the labels (or slices) of each group of rows."""
    return [{stratum_of([rows[i].example]) for i in group} for group in groups]


def assign_folds(
    task: str, rows: SourcedRows, k: int, where: str, with_choices: bool = False
) -> dict[str, int]:
    """Return the fold of every row by its id, from 1; a label that a fold lacks is refused at `where`."""
    folds = deal(rows, k, random.Random(f"{task}/folds"), with_choices)
    if any(_find_missing_labels(folds, where)):
        folds = spread_labels(rows, folds, with_choices)
    refuse(_find_missing_labels(folds, where) if where else ())
    return {row.example.id: fold for fold, rows in enumerate(folds, start=1) for row in rows}


def _find_missing_labels(folds: Sequence[SourcedRows], where: str) -> Iterator[Problem]:
    # Choices that differ from row to row are not labels.
    if len({frozenset(row.example.choices) for fold in folds for row in fold}) > 1:
        return
    counts = [Counter(r.example.references[0] for r in fold if r.example.choices) for fold in folds]
    for label, n in sorted(sum(counts, Counter[str]()).items()):
        lacking_folds = [str(fold) for fold, count in enumerate(counts, start=1) if not count[label]]
        if lacking_folds:
            found = f"{pluralize(n, 'row')} of the label {label!r}, none in fold {', '.join(lacking_folds)}"
            apart = "outside of validation, in rows that can be parted"
            expected = f"at least {len(folds)} of each label {apart}"
            step = "add rows of it, join it with another label, or lower folds"
            yield Problem(where, found, expected, step)


Classes = Sequence[Collection[str]]  # of each group


def _solve(
    classes: Classes, sizes: Sequence[int], parts: Sequence[int], n_parts: int, movable: Sequence[int]
) -> list[int] | None:
    """Move the fewest rows of some groups; the others stay in their drawn part."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array, eye_array, kron

    # One variable for each movable group and part, group by group.
    names = sorted({name for group in classes for name in group})
    fixed = {(parts[g], name) for g in {*range(len(classes))} - {*movable} for name in classes[g]}
    held = csr_array([[float(name in classes[g]) for g in movable] for name in names])  # (names, groups)
    part_order = [n * n_parts + part for part in range(n_parts) for n in range(len(names))]
    part_classes = csr_array(kron(held, eye_array(n_parts)))[part_order]
    needed = [float((part, name) not in fixed) for part in range(n_parts) for name in names]
    one_part_each = kron(eye_array(len(movable)), np.ones((1, n_parts)))
    cost = [float(sizes[g] * (part != parts[g])) for g in movable for part in range(n_parts)]
    limits = [LinearConstraint(part_classes, needed, np.inf), LinearConstraint(one_part_each, 1, 1)]
    solution = milp(cost, integrality=np.ones(len(cost)), bounds=Bounds(0, 1), constraints=limits)
    if solution.x is None:
        return None
    part_by_group = dict(zip(movable, solution.x.reshape(-1, n_parts).argmax(axis=1).tolist(), strict=True))
    return [part_by_group.get(g, part) for g, part in enumerate(parts)]
