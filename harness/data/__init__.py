"""Rows to examples: read, check, remove leaks, set validation aside, draw.

Invariant: a task, its files and a seed give the same items in the same order; no training
row and no preference pair asks what an evaluated split asks.
"""

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Literal, NamedTuple, ParamSpec, TypeVar

from harness.data import items, leaks, rows, splits
from harness.data.items import Kept, Sourced
from harness.data.leaks import Leak, check_leaks, suite_leaks
from harness.errors import Problem, UserError
from harness.records import Document, Example, digest
from harness.spec import Task

__all__ = ["Leak", "TaskItems", "check_leaks", "load_task", "suite_leaks", "task_version"]

Split = Literal["train", "validation", "test"]

_Given = ParamSpec("_Given")
_Made = TypeVar("_Made")


@dataclass(frozen=True, slots=True)
class TaskItems:
    """The items of a task; `removed` says in sentences which rows were left out and why.

    A pair's `references` hold the chosen answer, its `rejected` the other one.
    """

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    pairs: tuple[Example, ...]
    documents: tuple[Document, ...]
    removed: tuple[str, ...]


class _Files(NamedTuple):
    """What the files hold, each example with its place; a split without a file is empty."""

    train: list[Sourced]
    validation: list[Sourced]
    test: list[Sourced]
    pairs: list[Sourced]
    documents: list[Document]
    removed: list[str]


def load_task(task: Task, seed: int) -> TaskItems:
    """Read the files of a task and prepare its splits.

    Raises:
        UserError: with the problems of all files at once, or with the leaks between them.
    """
    files = _without_leaks(task, _read(task))
    train, validation = files.train, files.validation
    if train and not validation:
        train, validation = splits.set_aside(train, _rng(task, seed, "set aside"), task.kind == "choice")
    limits = task.data.limits
    n_test = min((n for n in (limits.test, task.limit) if n is not None), default=None)
    return TaskItems(
        train=splits.draw(train, limits.train, _rng(task, seed, "train")),
        validation=splits.draw(validation, limits.validation, _rng(task, seed, "validation")),
        test=splits.draw(files.test, n_test, _rng(task, seed, "test")),
        pairs=tuple(sourced.example for sourced in files.pairs),
        documents=tuple(files.documents),
        removed=tuple(files.removed),
    )


def task_version(task: Task, items: TaskItems, split: Split | None = None) -> str:
    """Digest what a score on this task depends on: its definition and its items, no paths.

    With `split` only that split's items count (and the rows that shots are taken from), so
    that more training rows do not make a new test.
    """
    definition = task.model_dump(exclude={"data", "limit"})
    content = asdict(replace(items, removed=()))
    if split is not None:
        content = {split: content[split], "shots": content["train"] if task.num_fewshot else ()}
    return digest([definition, content])


def _rng(task: Task, seed: int, purpose: str) -> random.Random:
    return random.Random(f"{seed}/{task.name}/{purpose}")


def _read(task: Task) -> _Files:
    """Read every file, going on after a bad one, so that all problems come at once."""
    problems: list[Problem] = []
    removed: list[str] = []
    train, validation, test = (
        _tried(problems, Kept([], []), _split, task, getattr(task.data, split), split, removed)
        for split in ("train", "validation", "test")
    )
    pairs = _tried(problems, [], _pairs, task)
    documents = _tried(problems, [], _documents, task)
    if not problems:
        problems += items.unused_labels(task, (train, validation, test))
        problems += items.unknown_documents((train, validation, test), documents) if documents else []
    if problems:
        raise UserError(problems)
    return _Files(train.examples, validation.examples, test.examples, pairs, documents, removed)


def _tried(
    problems: list[Problem],
    otherwise: _Made,
    make: Callable[_Given, _Made],
    *args: _Given.args,
    **kwargs: _Given.kwargs,
) -> _Made:
    """Return what `make` returns; where it refuses, keep its problems and go on."""
    try:
        return make(*args, **kwargs)
    except UserError as error:
        problems.extend(error.problems)
        return otherwise


def _split(task: Task, path: str | None, split: str, removed: list[str]) -> Kept:
    if path is None:
        return Kept([], [])
    content = rows.read(path, split)
    kept = items.examples(task, content)
    if kept.outside:
        removed.append(items.removed_labels(task, content, kept))
    return kept


def _pairs(task: Task) -> list[Sourced]:
    return items.pairs(task, rows.read(task.data.pairs, "train")) if task.data.pairs else []


def _documents(task: Task) -> list[Document]:
    return items.documents(rows.read(task.data.documents, "train")) if task.data.documents else []


def _without_leaks(task: Task, files: _Files) -> _Files:
    """Refuse training rows and pairs that are evaluated, or leave them out and say so.

    Raises:
        UserError: rows leak and the task does not say that they are to be removed, or no row is left.
    """
    evaluated = [*files.validation, *files.test]
    found = {
        "train": check_leaks(files.train, evaluated, task.kind == "choice"),
        "pairs": check_leaks(files.pairs, evaluated),
    }
    where = {split: rows.shown_path(getattr(task.data, split) or "") for split in found}
    if task.data.leaks == "refuse" and any(found.values()):
        next_step = "remove the row, or set leaks: remove in data: of the task"
        raise UserError(
            [p for split, leaked in found.items() for p in leaks.problems(leaked, where[split], next_step)]
        )
    removed = [leaks.removed(leaked, where[split]) for split, leaked in found.items() if leaked]
    train, pairs = _keep(files.train, found["train"]), _keep(files.pairs, found["pairs"])
    if files.train and not train:
        raise UserError(Problem(where["train"], "only rows that are evaluated too", "other training rows"))
    return files._replace(train=train, pairs=pairs, removed=[*files.removed, *removed])


def _keep(training: list[Sourced], leaked: list[Leak]) -> list[Sourced]:
    gone = {leak.training.where for leak in leaked}
    return [sourced for sourced in training if sourced.where not in gone]
