"""Rows as the chat templates of their bases write them, and special tokens in their texts.

Invariant: every row of every split is written once for each base before a model is loaded; problems are
remembered by rows and tokenizer.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from harness.cache import memo
from harness.data import PartName, readers
from harness.data.cells import cut_special, find_special
from harness.data.edit.row_files import name_output
from harness.data.text_files import cap_problems
from harness.errors import CandidateFailed, Problem, as_argument
from harness.evaluation import wrap_prompt
from harness.evaluation.candidates import ResolvedCandidate
from harness.evaluation.session import Fold, MeasuredTask, Session
from harness.formatting import pluralize
from harness.models import find_left_out
from harness.models.hub import ModelSource, chat_template, is_packed, list_special_tokens, load_tokenizer
from harness.prompting import PromptingContext, compose
from harness.provenance import versions_of
from harness.records import Message, digest

_PARTS: tuple[PartName, ...] = ("train", "validation", "test", "pairs")
_NO_ROW = "a row that its chat template writes"


class _Row(NamedTuple):
    """Conversation of a row, and the row's place."""

    messages: Sequence[Message]
    where: str


def find_unwritable_rows(
    tasks: Sequence[MeasuredTask], candidates: Iterable[ResolvedCandidate]
) -> Iterator[Problem]:
    """Yield the rows that the chat template of a candidate's base does not write, at most ten of a file."""
    bases = {
        base
        for one in candidates
        if one.method.makes_language_model and not one.is_remote
        for base in (one.base, one.trained_base)
        if not is_packed(base) and chat_template(base)
    }
    rows = [row for measured in tasks for row in _list_rows(measured)]
    texts = [list(row.messages) for row in rows]
    texts_digest = digest(texts) if bases else ""

    def try_rows(base: ModelSource) -> dict[str, str]:
        # What went wrong, by the place of the row.
        tokenizer, found = load_tokenizer(base), dict[str, str]()
        for place, messages in enumerate(texts):
            try:
                if role := find_left_out(tokenizer, messages):
                    found[str(place)] = f"a turn of {role!r} that the chat template leaves out"
            except CandidateFailed as error:
                found[str(place)] = error.reason
        return found

    for base in sorted(bases, key=lambda base: base.name) if rows else ():
        key = digest([base.template_digest, texts_digest, versions_of("tokenization")])
        reasons = memo("unwritable_rows", key, partial(try_rows, base))
        if len(reasons) == len(rows):  # of all of them once
            step = "correct its chat template, choose another base, or set chat_template: false on the tasks"
            yield Problem(f"base_model {base.name}", next(iter(reasons.values())), _NO_ROW, step)
            continue
        by_file: dict[str, list[Problem]] = {}
        for place, reason in reasons.items():
            where = rows[int(place)].where
            step = "change its turns to such as the template takes, remove the row, or choose another base"
            problem = Problem(where, f"{reason}, {base.name}'s", _NO_ROW, step)
            by_file.setdefault(readers.file_of(where), []).append(problem)
        for file, problems in by_file.items():
            yield from cap_problems(problems, file, "rows that the chat template does not write")


def _list_rows(measured: MeasuredTask) -> Iterator[_Row]:
    task = measured.task
    if not task.chat_template or task.lm_eval or task.kind == "bits_per_byte":
        return
    shots = {"few_shot": {"select": "fixed", "shots": task.num_fewshot}} if task.num_fewshot else {}
    step = compose(shots, PromptingContext(task, measured.items.train, (), 0))
    for part in _PARTS:
        for example, where, _ in measured.items.list_sourced(part):
            sampled = step(example) if part == "test" else example
            yield _Row(wrap_prompt(sampled, task.system, None).messages, where)


def cut_special_tokens(session: Session) -> Session:
    """Return a session whose answers and labels have no surrounding special tokens, with a note.

    End tokens are not part of an answer: generated answers are compared without them.
    """
    tokens = tuple(
        sorted({token for base in session.sources.values() for token in list_special_tokens(base)})
    )
    cut = partial(_cut_task, tokens=tokens, base=session.source.name)
    target, *others = map(cut, (session.target, *session.more_targets, *session.suites))
    notes = (note for _, own in (target, *others) for note in own)
    tasks, n_more = [task for task, _ in others], len(session.more_targets)
    folds = (
        Fold(cut(fold.target)[0], {key: cut(rows)[0] for key, rows in fold.training.items()})
        for fold in session.folds
    )
    return replace(
        session,
        target=_add_notes(target[0], notes),
        suites=tuple(tasks[n_more:]),
        more_targets=tuple(tasks[:n_more]),
        training={key: _add_notes(*cut(rows)) for key, rows in session.training.items()},
        folds=tuple(folds),
    )


def _add_notes(measured: MeasuredTask, notes: Iterable[str]) -> MeasuredTask:
    return measured._replace(items=replace(measured.items, overlap=(*measured.items.overlap, *notes)))


def _cut_task(measured: MeasuredTask, tokens: tuple[str, ...], base: str) -> tuple[MeasuredTask, list[str]]:
    """Return a task without special tokens around its answers, and a note if a row had any."""
    if measured.task.lm_eval:
        return measured, []
    found = {
        where: token
        for part in _PARTS
        for example, where, _ in measured.items.list_sourced(part)
        if (token := find_special((*example.references, *example.choices, example.rejected), tokens))
    }
    if not found:
        return measured, []

    def cut(text: str) -> str:
        return cut_special(text, tokens) or text

    parts: dict[str, Any] = {
        part: tuple(
            replace(
                example,
                references=tuple(map(cut, example.references)),
                choices=tuple(map(cut, example.choices)),
                rejected=cut(example.rejected),
            )
            for example in getattr(measured.items, part)
        )
        for part in _PARTS
    }
    return measured._replace(items=replace(measured.items, **parts)), [_describe_special(found, base)]


def _describe_special(rows: Mapping[str, str], base: str) -> str:
    first, token = next(iter(rows.items()))
    known = "" if all(find_special([token]) for token in rows.values()) else f" --base {as_argument(base)}"
    commands = [
        f"harness data clean {as_argument(file)} --out {as_argument(name_output({}, file, 'clean'))} "
        f"--special-tokens{known}"
        for file in dict.fromkeys(map(readers.file_of, rows))
    ]
    return (
        f"{pluralize(len(rows), 'row')} with special tokens in answers, such as {token!r} at {first}, are "
        f"trained and compared without those around them; next: {' && '.join(commands)}"
    )
