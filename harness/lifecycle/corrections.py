"""Training rows, pairs and test items made from users' feedback for an experiment's target.

Invariant: no training row or pair has the prompt of an evaluated item, and no test item that of a training
row; the rows of one sender are capped. A test item needs a file that names the person who marked it.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from harness import store
from harness.data import PartName, SourcedExample, readers
from harness.data.check.personal_data import redact
from harness.data.contamination import find_contaminated_rows, key, overlaps
from harness.data.edit.changes import EditedRow, drop
from harness.data.edit.save import Edit, digest_of
from harness.data.examples import FIELD
from harness.data.text_files import Row
from harness.errors import Problem, UserError, refuse
from harness.evaluation.session import MeasuredTask
from harness.experiment import writers
from harness.experiment.writers import MadeRows
from harness.lifecycle.feedback import mask_example
from harness.metrics import normalize
from harness.records import FEEDBACK_ORIGIN, Example, FeedbackRow, checksum
from harness.spec import Fields, Task
from harness.store import Store

_SENDERS_CAP = "more than --per-sender of one sender"
Kind = Literal["rows", "pairs"]
_Answers = dict[str, str]  # columns of a row except its question


def make_rows(
    kind: Kind, at: Store, tasks: Sequence[MeasuredTask], region: str, per_sender: int, out_file: str
) -> MadeRows:
    """Make training rows from stored corrections, or pairs of a preferred and a rejected answer.

    The first task is the target; rows that ask what a task evaluates are left out. `region` is the one whose
    forms of personal data are masked.
    """
    column = {"rows": "correction", "pairs": "preference"}[kind]
    prompt, reference = ("prompt", "") if kind == "pairs" else _columns(tasks[0].task)
    labels = {normalize(label): label for label in tasks[0].task.labels}
    rows = [row for row in store.read_feedback(at) if getattr(row, column)]
    if not rows:
        step = f"harness feedback add FILE, with a column {column}"
        raise UserError(f"harness feedback {kind}", f"no stored {column}", "at least one", step)

    def answers(row: FeedbackRow) -> _Answers | str:
        if kind == "pairs":
            pair = {"chosen": row.preference, "rejected": row.answer}
            return pair if row.preference != row.answer else "two equal answers"
        if labels and normalize(row.correction) not in labels:
            return "a correction that is not a label of the task"
        return {reference: labels.get(normalize(row.correction), row.correction)}

    evaluated = _mask_rows(region, writers.list_evaluated(tasks))
    leaks, n_of_sender = _find_leaks(rows, evaluated), Counter[str]()
    outcomes, kept_rows = list[EditedRow](), list[SourcedExample]()
    for row in reversed(rows):  # newest first
        row_answers = answers(row)
        if row.sender and n_of_sender[row.sender] >= per_sender and not isinstance(row_answers, str):
            row_answers = _SENDERS_CAP
        outcomes.append(_edit_row(row, prompt, row_answers, leaks, "asks what is evaluated"))
        if outcomes[-1].change is None:
            n_of_sender[row.sender] += 1
            kept_rows.append(_sourced(row))
    if not kept_rows:
        reasons = Counter(outcome.change.reasons[0] for outcome in outcomes if outcome.change)
        found = f"{len(rows):,} stored rows, all left out: {', '.join(reasons)}"
        step = "collect more feedback"
        raise UserError(f"harness feedback {kind}", found, "at least one row", step)
    part: PartName = "train" if kind == "rows" else "pairs"
    notes = writers.check_contamination(tasks, kept_rows, part, out_file)
    used = {
        "feedback": {path.parent.name: checksum(path) for path in store.feedback_files(at)},
        "per_sender": per_sender,
        "leak_check": writers.record_contamination(tasks, notes),
    }
    return MadeRows(Edit(kind, used, (), command=f"harness feedback {kind}"), outcomes, notes)


_Leaks = dict[str, tuple[str, str]]  # by id of a stored row: the place of the row that it repeats, and how


def _edit_row(row: FeedbackRow, prompt: str, answers: _Answers | str, leaks: _Leaks, leak: str) -> EditedRow:
    """Return a row with its answers, or drop it: for the reason given instead, a leak, or several turns."""
    source = Row(row.source, {})
    if row.row_id in leaks:
        where, how = leaks[row.row_id]
        return drop(source, f"{leak}{how}", where)
    if isinstance(answers, str):
        return drop(source, answers)
    question, groups = writers.write_question(_sourced(row).example)
    if prompt != "prompt":
        if "prompt" not in question:
            return drop(source, f"several turns, which the column {prompt!r} cannot hold")
        question = {"id": question["id"], prompt: question["prompt"]}
    origin = {name: getattr(row, name) for name in FEEDBACK_ORIGIN}
    return EditedRow(source._replace(fields={**question, **answers, **groups, **origin}))


def _find_leaks(rows: Sequence[FeedbackRow], other_rows: Sequence[SourcedExample]) -> _Leaks:
    sourced = [_sourced(row) for row in rows]
    questions, other_questions = ([key(row.example) for row in group] for group in (sourced, other_rows))
    pairs = overlaps(questions, other_questions)
    how = " in other words"
    leaks = {rows[pair.training].row_id: (other_rows[pair.evaluated].where, how) for pair in pairs}
    exact = find_contaminated_rows(sourced, other_rows)
    return leaks | {leak.training.example.id: (leak.evaluated.where, "") for leak in exact}


def _mask_rows(region: str, rows: Sequence[SourcedExample]) -> list[SourcedExample]:
    return [row._replace(example=mask_example(row.example, region)) for row in rows]


def make_test_items(at: Store, target: MeasuredTask, region: str, marks: str) -> MadeRows:
    """Make test items from stored rows that a person marked in a file with columns id and marked_by.

    The reference is the file's column `reference`, or the stored correction; personal data is masked.
    """
    (prompt, reference), by_id = _columns(target.task), {row.row_id: row for row in store.read_feedback(at)}
    problems, chosen = list[Problem](), list[tuple[FeedbackRow, str, str]]()
    for mark in readers.read(marks, "test").rows:
        cells = {name: str(value or "").strip() for name, value in mark.fields.items()}
        row = by_id.get(cells.get("id", ""))
        text = redact(cells.get("reference", ""), region)[0]
        text = text or (row.correction if row else "")
        missing = "no marked_by" if not cells.get("marked_by") else "no stored row of this id"
        if row is None or not cells.get("marked_by") or not text:
            found = "no reference, and no correction" if row and cells.get("marked_by") else missing
            expected = "the id of a stored row, who marked it, and its right answer"
            step = "fill in id, marked_by and reference, or leave the row out"
            problems.append(Problem(mark.where, found, expected, step))
        else:
            chosen.append((row, text, redact(cells["marked_by"])[0]))
    refuse(readers.cap_problems(problems, readers.display_path(marks), "marks that cannot be used"))
    trained_rows = _mask_rows(region, target.items.list_sourced("train"))
    trained = _find_leaks([row for row, _, _ in chosen], trained_rows)
    outcomes = [
        _edit_row(row, prompt, {reference: text, "marked_by": by}, trained, "asked in training too")
        for row, text, by in chosen
    ]
    used = {"marks": {"file": readers.display_path(marks), "sha256": digest_of(marks)}}
    return MadeRows(Edit("rows", used, (), command="harness feedback rows --test-items"), outcomes)


def _columns(task: Task) -> tuple[str, str]:
    if task.fields == Fields():
        return "prompt", "reference"
    matches = [FIELD.fullmatch(template) for template in (task.fields.prompt, task.fields.reference)]
    if None in matches:
        step = "make single columns of prompt and reference"
        template = f"fields: {task.fields.prompt!r} and {task.fields.reference!r}"
        raise UserError(f"task {task.name}", template, "single columns for feedback", step)
    prompt, reference = (match[1] for match in matches if match)
    return prompt, reference


def _sourced(row: FeedbackRow) -> SourcedExample:
    return SourcedExample(Example(row.row_id, row.conversation, cluster=row.sender), row.source)
