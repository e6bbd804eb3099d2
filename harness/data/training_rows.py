"""Rows that a candidate trains on in place of the target's: of other files, or mixed.

Invariant: no row asks what the target evaluates; the same files, shares and seed give the same rows.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import count

from harness.data import TaskItems, contamination, read_split, readers, splits
from harness.data import examples as items_of
from harness.data.edit.mix import RowMixture, draw, row_numbers
from harness.data.examples import Notes, SourcedExample
from harness.data.text_files import Row, Rows, display_path
from harness.errors import Problem, UserError, gather, refuse
from harness.formatting import percent, pluralize
from harness.spec import Mix, Recipe, Task


def load_training_rows(
    task: Task, items: TaskItems, train: Sequence[str], mix: Mix | None, seed: int, *, pairs: bool = False
) -> TaskItems:
    """Return the items of a task with other rows to train on: those of `train`, or drawn as `mix` says.

    With `pairs` they are preference pairs in place of the task's. Rows that ask what is evaluated are treated
    as the task's own are; those that were set aside from the task's training rows are left out, and counted.
    No more rows than the task's limit are kept.

    Raises:
        UserError: a file cannot be used, has contaminated rows, or is too small for its share.
    """
    notes, problems = Notes([], []), list[Problem]()
    files: list[list[SourcedExample]] = []
    for path in mix.paths if mix else train:
        n_problems = len(problems)
        with gather(problems):
            content = readers.read(path, "train")
            if pairs:
                read = items_of.pairs(task, content, notes)
            else:
                read = read_split(task, content, "train", notes, items.documents, problems).examples
            if read or len(problems) == n_problems:  # of rows that cannot be read nothing more is known
                files.append(_drop_contaminated(task, items, read, path, notes))
    refuse(problems)
    if mix:  # of every file its share, in the order of each
        contents = [
            Rows(readers.display_path(path), "", [Row(row.where, {}) for row in file])
            for path, file in zip(mix.paths, files, strict=True)
        ]
        mixture = RowMixture(mix.weights, mix.temperature or 1.0, mix.rows, mix.replacement, seed=seed)
        numbers = row_numbers(contents, mixture, "rows: {} in mix:, or replacement: true")
        files = [
            [file[i] for i in draw(range(len(file)), n, f"{seed}/{place}", replacement=mix.replacement)]
            for place, (file, n) in enumerate(zip(files, numbers, strict=True))
        ]
    rows = _distinct_ids([row for file in files for row in file])
    limit = None if pairs else task.data.limits.train
    kept = splits.draw(rows, limit, random.Random(f"{seed}/{task.name}/train"))
    part = "pairs" if pairs else "train"
    return replace(
        items,
        train=items.train if pairs else kept,
        pairs=kept if pairs else (),
        removed=tuple(dict.fromkeys(notes.removed)),
        read_as=tuple(dict.fromkeys(notes.read_as)),
        overlap=(),
        places={**items.places, **{f"{part}/{row.example.id}": row.where for row in rows}},
    )


def _drop_contaminated(
    task: Task, items: TaskItems, rows: list[SourcedExample], path: str, notes: Notes
) -> list[SourcedExample]:
    shown, choice = readers.display_path(path), task.kind == "choice"
    aside = {"validation": task.data.validation is None, "test": bool(task.data.all or task.data.folds)}
    written = [row for split, of in items.evaluated.items() if not aside[split] for row in of]
    held = [row for split, of in items.evaluated.items() if aside[split] for row in of]
    left = contamination.drop_contaminated(task, rows, written, shown, notes, choice)
    kept = contamination.drop_related(left, held, choice)
    if n := len(left) - len(kept):
        notes.removed.append(f"{shown}: {pluralize(n, 'row')} left out, set aside for validation or test")
    own = [row for row in kept if not row.origins]
    whole, kept = kept, splits.keep_with_origins(kept, own, [*written, *held])
    notes.removed.extend(splits.describe_augmented_left_out(whole, kept, shown))
    if not kept and whole:
        said = f"only rows made from rows that are evaluated (this is the first of {len(whole):,})"
        expected, step = "rows made from training rows", "augment those instead"
        raise UserError(Problem(whole[0].where, said, expected, step))
    if not kept:
        raise UserError(contamination.phrase_only_evaluated(shown, "rows"))
    return kept


def _distinct_ids(rows: Sequence[SourcedExample]) -> list[SourcedExample]:
    """Number the rows of one id: files may share ids, and a row may be drawn twice; one row is one item."""
    taken, times, out = {row.example.id for row in rows}, Counter[str](), list[SourcedExample]()
    for row in rows:
        ident = row.example.id
        times[ident] += 1
        if times[ident] > 1:
            name = next(name for k in count(times[ident]) if (name := f"{ident}-{k}") not in taken)
            taken.add(name)
            row = SourcedExample(replace(row.example, id=name), row.where)
        out.append(row)
    return out


def describe_source(recipe: Recipe) -> str:
    """Name the source of a recipe's training rows, with the requested shares of a mixture."""
    weights = recipe.mix.weights if recipe.mix else None
    if recipe.mix and weights:
        named = zip(shown_paths(recipe), weights, strict=True)
        return " + ".join(f"{percent(share)} % {file}" for file, share in named)
    hot = f" at temperature {recipe.mix.temperature:g}" if recipe.mix and recipe.mix.temperature else ""
    return f"{' + '.join(shown_paths(recipe))}{hot}" or "the target's rows"


def shown_paths(recipe: Recipe) -> list[str]:
    """List the files of a recipe's own training rows as they are shown; none where they are the target's."""
    return [display_path(path) for path in (recipe.mix.paths if recipe.mix else recipe.train)]
