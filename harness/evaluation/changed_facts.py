"""Facts that change after a release: the items whose right answer is another, and the documents that say so.

Invariant: nothing is trained for them. A candidate answers them as it is, and with the new documents where it
retrieves; an item whose answer the target's rows already hold is refused, for it has not changed, and so is
one that a candidate's own training rows hold.
"""

import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import get_args

from harness import plugins
from harness.data import Notes, SourcedExample, Split, TaskItems, readers, splits, task_version
from harness.data import examples as items_of
from harness.data.contamination import key
from harness.data.readers import Rows
from harness.errors import Problem, UserError
from harness.evaluation.rows.row_sets import RowSet, prompting_step, target_sets
from harness.evaluation.session import ChangedFacts, MeasuredTask, Session
from harness.records import Document, Example, fold_text
from harness.spec import Recipe, Task
from harness.training import Weights

OUTDATED = "outdated"  # the field of what was right before


def read_changes(task: Task, items: TaskItems, training: Iterable[TaskItems] = ()) -> ChangedFacts | None:
    """Read the items and documents of a task that changed; None where it names none.

    `training` holds what candidates train on in place of the target's rows.

    Raises:
        UserError: a file cannot be used, an item has the answer that it had, or is trained on.
    """
    if task.data.changes is None:
        return None
    path = task.data.changes.documents
    documents = tuple(items_of.documents(readers.read(path, "train"))) if path else items.documents
    content = readers.read(task.data.changes.test, "test")
    unusable: list[Problem] = []
    kept = items_of.examples(task, content, Notes([], []), documents, unusable).examples
    problems = [
        Problem(
            row.where,
            said,
            "an item whose right answer is another now",
            "remove it, or correct its reference",
        )
        for row, said in _find_answered(
            kept, [row for part in get_args(Split) for row in items.list_sourced(part)]
        )
    ]
    problems += [
        Problem(row.where, said, "an item that no candidate trains on", "remove it from the training rows")
        for row, said in _find_answered(kept, [row for of in training for row in of.list_sourced("train")])
    ]
    problems += items_of.unknown_documents([items_of.SplitExamples(kept, [])], documents) if documents else []
    capped = readers.cap_problems(problems, content.shown, "items that cannot be used")
    if unusable or capped:
        raise UserError([*unusable, *capped])
    n = min((n for n in (task.data.limits.test, task.limit) if n is not None), default=None)
    drawn = splits.draw(kept, n, random.Random(f"{task.name}/changes"))
    return ChangedFacts(
        drawn, documents, _earlier_answers(content, kept, [*items.train, *items.validation, *items.test])
    )


def _find_answered(
    kept: Sequence[SourcedExample], known: Sequence[SourcedExample]
) -> Iterator[tuple[SourcedExample, str]]:
    """Yield the items whose question has the same answer in other rows, and which row that is."""
    answers = {
        (key(row.example), fold_text(answer)): row for row in known for answer in row.example.references
    }
    for row in kept:
        same = (answers.get((key(row.example), fold_text(answer))) for answer in row.example.references)
        if of := next(filter(None, same), None):
            yield row, f"{row.example.references[0]!r}, which {of.where} answers too"


def _earlier_answers(
    content: Rows, kept: Sequence[SourcedExample], known: Sequence[Example]
) -> dict[str, tuple[str, ...]]:
    """Map changed items to what was right before: as their rows say, else as the target's own rows do."""
    fields = {row.where: row.fields.get(OUTDATED) for row in content.rows}
    before = {key(example): example.references for example in reversed(known)}
    found: dict[str, tuple[str, ...]] = {}
    for row in kept:
        said = fields[row.where]
        own = said if isinstance(said, list) else [said]
        texts = tuple(str(one) for one in own if one is not None and str(one).strip())
        found[row.example.id] = texts or before.get(key(row.example), ())
    return {name: answers for name, answers in found.items() if answers}


def retrieves(recipe: Recipe) -> bool:
    """Tell whether a recipe puts passages of the documents into its prompts."""
    return any(
        "documents" in getattr(plugins.load("prompting", name), "NEEDS", ()) for name in recipe.prompting
    )


def task_before_refresh(session: Session) -> MeasuredTask:
    """Return the changed items as candidates answer them with the documents that there were."""
    return _make_changed_part(session, "changed", session.target.items.documents)


def task_after_refresh(session: Session) -> MeasuredTask:
    """Return the changed items as candidates that retrieve answer them with the new documents."""
    changed = session.changed
    return _make_changed_part(session, "refreshed", changed.documents if changed else ())


def _make_changed_part(session: Session, name: str, documents: tuple[Document, ...]) -> MeasuredTask:
    target, changed = session.target, session.changed
    task = target.task.model_copy(update={"name": f"{target.task.name}-{name}"})
    items = replace(target.items, test=changed.items if changed else (), documents=documents)
    versions = {**target.versions, "test": task_version(task, items, "test")}
    return target._replace(task=task, items=items, versions=versions)


def list_changed_sets(session: Session, recipe: Recipe, weights: Weights, seed: int) -> list[RowSet]:
    """List the changed items as a candidate answers them, and with the new documents where it retrieves."""
    if session.changed is None:
        return []
    wanted = [
        task_before_refresh(session),
        *([task_after_refresh(session)] if _is_refreshed(session, recipe) else []),
    ]
    return [target_sets(replace(session, target=m), recipe, weights, seed)[1] for m in wanted]


def _is_refreshed(session: Session, recipe: Recipe) -> bool:
    if session.changed is None or not retrieves(recipe):
        return False
    return session.changed.documents != session.target.items.documents


def index_figures(session: Session, recipe: Recipe, seed: int) -> Mapping[str, float]:
    """Measure how long a candidate's index of the new documents takes to build, in seconds."""
    if not _is_refreshed(session, recipe):
        return {}
    refreshed = replace(session, target=task_after_refresh(session))
    start = time.perf_counter()
    prompting_step(refreshed, recipe, seed)
    return {"index_s": time.perf_counter() - start}
