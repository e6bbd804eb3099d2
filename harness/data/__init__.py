"""Tasks as data: rows read, checked, decontaminated, split and sampled; and their version.

Invariant: a task, its files and a seed give the same items in the same order; no training row, of the task or
of a candidate's own files, and no preference pair has the prompt of an evaluated split.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from harness.cache import memo
from harness.data import contamination, formats, readers, splits
from harness.data import examples as items_of
from harness.data.contamination import find_contaminated_rows, suite_contamination
from harness.data.edit import mix as mixing
from harness.data.examples import Notes, SourcedExample
from harness.data.splits import assign_folds
from harness.data.text_files import ColumnCells, Row, Rows, count_cells, find_mixed_columns
from harness.data.unused import find_unused, name_columns, name_keys, name_media, offer_contexts
from harness.errors import Problem, UserError, did_you_mean, gather, refuse
from harness.formatting import percent, pluralize
from harness.provenance import versions_of
from harness.records import Document, Example, digest, drop_defaults
from harness.spec import DATA_FILES, Mix, Recipe, Task, metric_name

Split = Literal["train", "validation", "test"]
PartName = Literal["train", "validation", "test", "pairs"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

# Keys of a task that only affect how its answers are judged.
SCORING = ("metrics", "primary", "truncated_scores", "chance", "margin", "bounds", "description")

# Metrics of ratings: a fold that lacks a step of the scale still shows how far answers are off.
OF_RATINGS = ("mean_absolute_error", "within_one", "weighted_kappa")


@dataclass(frozen=True, slots=True)
class TaskItems:
    """Items of a task; `removed` describes in sentences which rows were left out and why.

    A pair's `references` hold the chosen answer, its `rejected` the other one. `read_as` describes the layout
    of each file; `overlap` names training rows that may paraphrase evaluated ones. `places` maps `train/ID`
    to the row's place. `evaluated` has all validation and test rows before limits. `folds` maps ids of
    training rows to the fold, from 1, that tests them; then `train` and `test` have the same rows.
    """

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    pairs: tuple[Example, ...]
    documents: tuple[Document, ...]
    removed: tuple[str, ...]
    read_as: tuple[str, ...] = ()
    overlap: tuple[str, ...] = ()
    places: Mapping[str, str] = field(default_factory=dict, repr=False)
    evaluated: Mapping[Split, Sequence[SourcedExample]] = field(default_factory=dict, repr=False)
    folds: Mapping[str, int] = field(default_factory=dict, repr=False)

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks on the files: how they were read, and what was left out."""
        return (*self.read_as, *self.removed, *self.overlap)

    def without_test(self) -> "TaskItems":
        """Return the items of the shipped weights: the rows of all folds for training, none for testing."""
        return replace(self, test=(), folds={}, evaluated={**self.evaluated, "test": ()})

    def in_fold(self, fold: int) -> "TaskItems":
        """Return the items of one fold: its rows for testing, and unrelated rows and pairs for training."""
        tested = [row for row in self.evaluated["test"] if self.folds[row.example.id] == fold]
        train = tuple(e for e in self.train if self.folds[e.id] != fold)
        test = tuple(e for e in self.test if self.folds[e.id] == fold)
        unrelated = contamination.drop_related(self.list_sourced("pairs"), tested)
        pairs, evaluated = tuple(pair.example for pair in unrelated), {**self.evaluated, "test": tested}
        return replace(self, train=train, test=test, pairs=pairs, folds={}, evaluated=evaluated)

    def list_sourced(self, part: PartName) -> list[SourcedExample]:
        """List the examples of a split, or the pairs, with their places."""
        examples: tuple[Example, ...] = getattr(self, part)
        return [SourcedExample(e, self.places.get(f"{part}/{e.id}", f"{part} row {e.id}")) for e in examples]


class _Files(NamedTuple):
    """Content of a task's files; a split without a file is empty. `folds` are as in `TaskItems`."""

    train: list[SourcedExample]
    validation: list[SourcedExample]
    test: list[SourcedExample]
    pairs: list[SourcedExample]
    documents: list[Document]
    notes: Notes
    folds: Mapping[str, int] = {}


def load_task(task: Task, seed: int) -> TaskItems:
    """Read the files of a task and prepare its splits; a UserError names the problems of all files."""
    problems: list[Problem] = []
    files = _read(task, problems)
    kept_rows = {"train": files.train, "pairs": files.pairs}
    evaluated_rows, is_choice = [*files.validation, *files.test], task.kind == "choice"
    for part, rows in kept_rows.items():
        source = readers.display_path(task.data.source(part) or "")
        with gather(problems):
            kept_rows[part] = contamination.drop_contaminated(
                task, rows, evaluated_rows, source, files.notes, is_choice and part == "train"
            )
    if files.train and not kept_rows["train"]:
        source = readers.display_path(task.data.source("train") or "")
        problems.append(contamination.phrase_only_evaluated(source, "rows"))
    refuse(problems)
    files = _split_up(task, files._replace(train=kept_rows["train"], pairs=kept_rows["pairs"]), seed)
    evaluated = {"validation": files.validation, "test": files.test}
    for part, rows in evaluated.items():
        evaluated[part], n_repeats = splits.cluster_repeats(rows)
        if n_repeats:
            source = readers.display_path(getattr(task.data, part) or task.data.source("train") or "")
            repeats = f"{pluralize(n_repeats, 'repeat')} of questions in {part}"
            files.notes.read_as.append(f"{source}: {repeats}; each question counts as one item")
    files = files._replace(validation=evaluated["validation"], test=evaluated["test"])
    parts = {part: getattr(files, part) for part in (*SPLITS, "pairs")}
    places = {f"{part}/{row.example.id}": row.where for part, rows in parts.items() for row in rows}
    limits = task.data.limits
    n_test = min((n for n in (limits.test, task.limit) if n is not None), default=None)
    return TaskItems(
        train=splits.draw(files.train, limits.train, _rng(task, seed, "train"), files.folds),
        validation=splits.draw(files.validation, limits.validation, _rng(task, seed, "validation")),
        test=splits.draw(files.test, n_test, _rng(task, seed, "test"), files.folds),
        pairs=tuple(sourced.example for sourced in files.pairs),
        documents=tuple(files.documents),
        removed=tuple(dict.fromkeys(files.notes.removed)),
        read_as=tuple(dict.fromkeys(files.notes.read_as)),
        places=places,
        evaluated={"validation": files.validation, "test": files.test},
        folds=files.folds,
    )


def load_rows(task: Task, path: str) -> tuple[Example, ...]:
    """Read all rows of one file for training; a UserError names the problems of all rows at once."""
    problems: list[Problem] = []
    sourced_rows = read_split(task, readers.read(path, "train"), "train", Notes([], []), [], problems)
    refuse(problems)
    return tuple(sourced.example for sourced in sourced_rows)


def part_of(items: TaskItems, share: float, seed: int) -> TaskItems:
    """Return the items with a share of the training rows and pairs; shares are nested."""

    def draw(examples: Sequence[Example], purpose: str) -> tuple[Example, ...]:
        sourced = [SourcedExample(example, "") for example in examples]
        return splits.draw(sourced, round(share * len(sourced)), random.Random(f"{seed}/part of {purpose}"))

    return replace(items, train=draw(items.train, "train"), pairs=draw(items.pairs, "pairs"))


def task_version(task: Task, items: TaskItems, split: Split | None = None) -> str:
    """Digest what the answers to this task depend on: its definition and its items, without paths.

    With `split` only that split's items count, and the rows that shots are taken from.
    """
    definition = task.model_dump(exclude={"data", "limit", *SCORING}, exclude_defaults=True)
    parts = ("train", "validation", "test", "pairs") if split is None else (split, "train")
    content = {name: list(map(drop_defaults, getattr(items, name))) for name in parts}
    if split is not None:
        shots = content["train"] if task.num_fewshot else []
        return digest([definition, {split: content[split], "shots": shots}])
    return digest([definition, {**content, "documents": items.documents, "removed": ()}])


def _rng(task: Task, seed: int, purpose: str) -> random.Random:
    return random.Random(f"{seed}/{task.name}/{purpose}")


def _read(task: Task, problems: list[Problem]) -> _Files:
    """Read all usable content of every file, so that all problems are raised at once."""
    data, notes = task.data, Notes([], [])
    documents, pairs = list[Document](), list[SourcedExample]()
    with gather(problems):
        documents = items_of.documents(readers.read(data.documents, "train")) if data.documents else []
    contents: dict[Split, readers.Rows] = {}
    for split, path in zip(SPLITS, (data.source("train"), data.validation, data.test), strict=True):
        with gather(problems):
            contents |= {split: readers.read(path, split)} if path else {}
    rows = [row for content in contents.values() for row in content.rows]
    by_split: dict[Split, list[SourcedExample]] = {split: [] for split in SPLITS}
    for split, content in contents.items():
        with gather(problems):
            by_split[split] = read_split(task, content, split, notes, documents, problems, rows)
    problems[:] = dict.fromkeys(problems)
    with gather(problems):
        pairs = items_of.pairs(task, readers.read(data.pairs, "train"), notes) if data.pairs else []
    read_rows = [row for split in SPLITS for row in by_split[split]]
    ids = {document.id for document in documents}
    id_errors, expected = list[Problem](), "the id of a document"
    for where, name in ((row.where, name) for row in read_rows for name in row.example.documents):
        if ids and name not in ids:
            id_errors.append(Problem(where, f"unknown document {name!r}", expected, did_you_mean(name, ids)))
    problems += readers.cap_problems(id_errors, "documents", "unknown documents")
    return _Files(by_split["train"], by_split["validation"], by_split["test"], pairs, documents, notes)


def read_split(
    task: Task,
    content: readers.Rows,
    split: Split,
    notes: Notes,
    documents: Sequence[Document],
    problems: list[Problem],
    all_rows: Sequence[readers.Row] | None = None,
) -> list[SourcedExample]:
    """Read a split and add problems of its rows to `problems`; augmented rows to evaluate are refused."""
    origins = splits.origins(content.rows)
    if origins and split != "train":
        found, expected = f"an augmented row ({splits.ORIGIN}: …) in {split}", "augmented rows only in train"
        step = "remove the row, or name the file under train:"
        augmented = [Problem(where, found, expected, step) for where in origins]
        raise UserError(readers.cap_problems(augmented, content.shown, "augmented rows"))
    if task.data.turns == "all" and split == "train":
        content = formats.every_turn(content)
    sourced_rows = items_of.examples(task, content, notes, documents, problems, all_rows)
    unused = find_unused(task, content, sourced_rows)
    sentences = (offer_contexts(unused), name_media(unused), name_columns(unused), name_keys(unused))
    notes.read_as.extend(f"{content.shown}: {sentence}" for sentence in sentences if sentence)
    return [row._replace(origins=origins.get(row.where, ())) for row in sourced_rows]


def _split_up(task: Task, files: _Files, seed: int) -> _Files:
    """Hold out the splits without a file: test rows or folds of all rows, validation of training rows."""
    # Test rows and folds do not depend on the seed, so every seed is judged on the same items.
    validation, test, is_choice, k = files.validation, files.test, task.kind == "choice", task.data.folds
    source = readers.display_path(task.data.source("train") or "")
    train = [row for row in files.train if not row.origins]
    if k:
        if augmented := [row for row in files.train if row.origins]:
            found, step = f"{len(augmented):,} augmented rows, and folds: {k}", "name the rows without them"
            raise UserError(augmented[0].where, found, "rows that can be tested on", step)
        if not validation:
            train, validation = splits.set_aside(train, random.Random(f"{task.name}/validation"), is_choice)
        is_rating = any(metric_name(metric) in OF_RATINGS for metric in task.metrics)
        folds = assign_folds(task.name, train, k, "" if is_rating else f"{source}, folds: {k}", is_choice)
        sizes, n = sorted(Counter(folds.values()).values()), len(folds)
        size = f"{sizes[0]:,}" if sizes[0] == sizes[-1] else f"{sizes[0]:,} to {sizes[-1]:,}"
        files.notes.read_as.append(
            f"{source}: {len(validation):,} rows for validation, and {len(sizes)} folds of {size} rows, each "
            f"answered by what was made without it, of some {n - n // len(sizes):,}; "
            f"what is shipped is made of all {n:,}"
        )
        pairs = _drop_set_aside(task, files, validation)
        return files._replace(train=train, validation=validation, test=train, pairs=pairs, folds=folds)
    if files.train and not train and not (validation and test):
        raise UserError(splits.phrase_only_augmented(source))
    if task.data.all:
        train, test = splits.set_aside(train, random.Random(f"{task.name}/test"), is_choice, leave=2)
    if train and not validation:
        train, validation = splits.set_aside(train, _rng(task, seed, "set aside"), is_choice)
    evaluated = [*validation, *test]
    set_aside = bool(task.data.all) or len(validation) > len(files.validation)
    train = splits.keep_with_origins(files.train, train, evaluated, without_original=not set_aside)
    files.notes.removed.extend(splits.describe_augmented_left_out(files.train, train, source))
    if task.data.all:
        counts = f"{len(train):,} to train on, {len(validation):,} for validation, {len(test):,} for test"
        cluster_note = ", by cluster" if any(row.example.cluster != row.example.id for row in train) else ""
        files.notes.read_as.append(f"{source}: split into {counts}{cluster_note}")
    pairs = _drop_set_aside(task, files, evaluated)
    return files._replace(train=train, validation=validation, test=test, pairs=pairs)


def _drop_set_aside(task: Task, files: _Files, evaluated: list[SourcedExample]) -> list[SourcedExample]:
    """Drop pairs that share a question or cluster with held-out rows; note their number."""
    unrelated = contamination.drop_related(files.pairs, evaluated)
    source = readers.display_path(task.data.pairs or "")
    if n := len(files.pairs) - len(unrelated):
        files.notes.removed.append(f"{source}: {n:,} pairs left out, set aside for validation or test")
    if files.pairs and not unrelated:
        raise UserError(contamination.phrase_only_evaluated(source, "pairs"))
    return unrelated


def version_of_test(task: Task, seed: int) -> str:
    """Return the version of a task's test items by the current content of its files; it is cached."""
    files = [Path(path) for part in DATA_FILES if (path := getattr(task.data, part))]
    if not all(file.is_file() for file in files):
        return task_version(task, load_task(task, seed), "test")
    content = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    key = digest([task.model_dump(mode="json", exclude_defaults=True), content, seed, versions_of("data")])
    return str(memo("versions", key, lambda: task_version(task, load_task(task, seed), "test")))


def load_training_rows(
    task: Task, items: TaskItems, train: Sequence[str], mix: Mix | None, seed: int, *, pairs: bool = False
) -> TaskItems:
    """Return the items of a task with other training rows: those of `train`, or sampled by `mix`.

    With `pairs` they replace the task's preference pairs. Rows that the task holds out are dropped.
    """
    notes, problems, is_choice = Notes([], []), list[Problem](), task.kind == "choice"
    is_held_out = {"validation": task.data.validation is None, "test": bool(task.data.all or task.data.folds)}
    own_files = [row for split in items.evaluated if not is_held_out[split] for row in items.evaluated[split]]
    held_out = [row for split in items.evaluated if is_held_out[split] for row in items.evaluated[split]]
    files: list[list[SourcedExample]] = []
    for path in mix.paths if mix else train:
        n_problems, source = len(problems), readers.display_path(path)
        with gather(problems):
            content = readers.read(path, "train")
            if pairs:
                file_rows = items_of.pairs(task, content, notes)
            else:
                file_rows = read_split(task, content, "train", notes, items.documents, problems)
            if not file_rows and len(problems) > n_problems:
                continue
            rows = contamination.drop_contaminated(task, file_rows, own_files, source, notes, is_choice)
            unrelated = contamination.drop_related(rows, held_out, is_choice)
            if n := len(rows) - len(unrelated):
                left_out = f"{pluralize(n, 'row')} left out, set aside for validation or test"
                notes.removed.append(f"{source}: {left_out}")
            originals = [row for row in unrelated if not row.origins]
            files.append(splits.keep_with_origins(unrelated, originals, [*own_files, *held_out]))
            notes.removed.extend(splits.describe_augmented_left_out(unrelated, files[-1], source))
            if not files[-1]:
                raise UserError(contamination.phrase_only_evaluated(source, "rows"))
    refuse(problems)
    if mix:
        contents = [
            Rows(readers.display_path(path), "", [Row(row.where, {}) for row in file])
            for path, file in zip(mix.paths, files, strict=True)
        ]
        mixture = mixing.RowMixture(mix.weights, mix.temperature or 1.0, mix.rows, mix.replacement, seed=seed)
        numbers = mixing.row_numbers(contents, mixture, "rows: {} in mix:, or replacement: true")
        for index, (file, n) in enumerate(zip(files, numbers, strict=True)):
            indices = mixing.draw(range(len(file)), n, f"{seed}/{index}", replacement=mix.replacement)
            files[index] = [file[i] for i in indices]
    rows = [row for file in files for row in file]
    # Files may share ids, and a row may be drawn twice.
    ids = mixing.RowIds(Row(row.where, {"id": row.example.id}) for row in rows)
    for i, row in enumerate(rows):
        if (ident := str(ids.give(row.example.id))) != row.example.id:
            rows[i] = SourcedExample(replace(row.example, id=ident), row.where)
    limit = None if pairs else task.data.limits.train
    drawn_rows = splits.draw(rows, limit, random.Random(f"{seed}/{task.name}/train"))
    part = "pairs" if pairs else "train"
    places = {**items.places, **{f"{part}/{row.example.id}": row.where for row in rows}}
    read_as, removed = (tuple(dict.fromkeys(sentences)) for sentences in notes)
    items = replace(items, removed=removed, read_as=read_as, overlap=(), places=places)
    return replace(items, pairs=drawn_rows) if pairs else replace(items, train=drawn_rows, pairs=())


def describe_source(recipe: Recipe) -> str:
    """Name the source of a recipe's training rows, with the requested shares of a mixture."""
    weights = recipe.mix.weights if recipe.mix else None
    if recipe.mix and weights:
        file_shares = zip(shown_paths(recipe), weights, strict=True)
        return " + ".join(f"{percent(share)} % {file}" for file, share in file_shares)
    suffix = f" at temperature {recipe.mix.temperature:g}" if recipe.mix and recipe.mix.temperature else ""
    return f"{' + '.join(shown_paths(recipe))}{suffix}" or "the target's rows"


def shown_paths(recipe: Recipe) -> list[str]:
    """List the files of a recipe's own training rows for display; empty if it uses the target's."""
    return [readers.display_path(path) for path in recipe.row_paths]
