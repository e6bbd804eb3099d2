"""Contamination: training rows with the prompt of an evaluated row.

Invariant: two prompts are the same when `records.fold_text` makes their texts and choices equal; the check
sees nothing else, so paraphrases pass.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from harness.data.examples import Notes, SourcedExample
from harness.data.text_files import cap_problems
from harness.errors import Problem, UserError
from harness.formatting import pluralize
from harness.records import Example, fold_text
from harness.spec import Task


class ContaminatedRow(NamedTuple):
    """A training row and the evaluated row that asks the same."""

    training: SourcedExample
    evaluated: SourcedExample


def key(example: Example, with_choices: bool = False) -> str:
    """Fold what an example asks: its turns and, where they belong to the question, its choices.

    The key of an item that is only read is its text.
    """
    turns = [m["content"] for m in example.messages if m["role"] != "system"] or list(example.references)
    return "\n".join(map(fold_text, (*turns, *sorted(example.choices) * with_choices)))


def find_contaminated_rows(
    training: Iterable[SourcedExample], evaluated: Iterable[SourcedExample], with_choices: bool = False
) -> list[ContaminatedRow]:
    """List the training rows that an evaluated row repeats, each with the first that does."""
    training = list(training)
    first: dict[str, SourcedExample] = {}
    for row in evaluated if training else ():
        first.setdefault(key(row.example, with_choices), row)
    first.pop("", None)
    keyed = ((row, key(row.example, with_choices)) for row in training)
    return [ContaminatedRow(row, first[question]) for row, question in keyed if question in first]


def drop_contaminated(
    task: Task,
    training: list[SourcedExample],
    evaluated: Iterable[SourcedExample],
    where: str,
    notes: Notes,
    with_choices: bool = False,
) -> list[SourcedExample]:
    """Leave out the training rows that an evaluated row repeats, and say so.

    Raises:
        UserError: there are some, and the task does not say that they are to be dropped.
    """
    found = find_contaminated_rows(training, evaluated, with_choices)
    if found and task.data.contamination == "error":
        step = "remove the row, or set contamination: drop in data: of the task"
        raise UserError(problems(found, where, step))
    if found:
        places = ", ".join(row.training.where.removeprefix(where).lstrip(": ") for row in found[:10])
        more = ", …" if len(found) > 10 else ""
        notes.removed.append(
            f"{where}: {pluralize(len(found), 'row')} dropped, evaluated too ({places}{more})"
        )
    gone = {row.training.where for row in found}
    return [row for row in training if row.where not in gone]


def drop_related(
    training: Iterable[SourcedExample], evaluated: Sequence[SourcedExample], with_choices: bool = False
) -> list[SourcedExample]:
    """Return the training rows that neither ask, nor are of a cluster of, what is evaluated."""
    training = list(training)
    gone = {row.training.where for row in find_contaminated_rows(training, evaluated, with_choices)}
    clusters = {row.example.cluster for row in evaluated if row.example.cluster != row.example.id}
    return [row for row in training if row.where not in gone and row.example.cluster not in clusters]


def suite_contamination(
    train: Sequence[Example | SourcedExample], others: Mapping[str, Sequence[Example]]
) -> list[Problem]:
    """List the training rows that an item of another task repeats; `others` maps tasks to items.

    A row whose place is known is named by it, another one by its id.
    """
    training = [
        row if isinstance(row, SourcedExample) else SourcedExample(row, f"training row {row.id}")
        for row in train
    ]
    items = [SourcedExample(e, f"{task} item {e.id}") for task, found in others.items() for e in found]
    return problems(find_contaminated_rows(training, items), "training", "remove it from the training rows")


def problems(rows: Sequence[ContaminatedRow], where: str, next_step: str) -> list[Problem]:
    """Phrase contaminated rows as problems, at most ten of them shown."""
    expected, found = "no training row that is evaluated", list[Problem]()
    for row in rows:
        said = f"{_excerpt(row)}, the question of {row.evaluated.where} too"
        found.append(Problem(row.training.where, said, expected, next_step))
    return cap_problems(found, where, "training rows that are evaluated")


def phrase_only_evaluated(shown: str, what: str) -> Problem:
    """Phrase training `what`, rows or pairs, of which none is left beside what is evaluated."""
    step = "train on another file, or test on another"
    return Problem(shown, f"only {what} that are evaluated too", f"other training {what}", step)


def _excerpt(row: ContaminatedRow) -> str:
    prompt = " ".join(row.training.example.prompt.split())
    return repr(prompt if len(prompt) <= 60 else f"{prompt[:59]}…")
