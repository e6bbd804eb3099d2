"""Rows as the tokenizers of their bases write them: whether each can be, and special tokens in their texts.

Invariant: every row of every split is written once for each base before a model is loaded. The same rows and
tokenizer give the same problems, which are remembered.
"""

from collections.abc import Iterable, Iterator, Sequence
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
_FIRST = 20  # items that are written with a candidate's own system text and shots
_NO_ROW = "a row that its chat template writes"


class _OwnTokens(NamedTuple):
    """Special tokens of the bases of an experiment, and the name of its first base."""

    tokens: tuple[str, ...]
    base: str


class _Row(NamedTuple):
    """Conversation of a row, and the row's place."""

    messages: Sequence[Message]
    where: str


def find_unwritable_rows(
    tasks: Sequence[MeasuredTask], seed: int, candidates: Iterable[ResolvedCandidate]
) -> Iterator[Problem]:
    """Yield the rows that the chat template of a candidate's base does not write, at most ten of a file.

    The first of the tasks is the target.
    """
    candidates = list(candidates)
    bases = {
        base
        for one in candidates
        if one.method.makes_language_model and not one.is_remote
        for base in (one.base, one.trained_base)
        if not is_packed(base) and chat_template(base)
    }
    rows = [row for measured in tasks for row in _list_rows(measured)]
    if rows and tasks[0].task.chat_template:
        rows += [row for one in candidates for row in _prompt_first_items(tasks[0], seed, one)]
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


def _prompt_first_items(target: MeasuredTask, seed: int, candidate: ResolvedCandidate) -> Iterator[_Row]:
    """Yield the first items of the target as a candidate's prompts, with its system text and number of shots.

    Fixed shots are used: which rows are shots changes no turn, and a search for near ones takes time.
    """
    recipe, task, items = candidate.trials[0].source, target.task, target.items
    few = recipe.prompting.get("few_shot")
    shots = {} if few is None else {"few_shot": {**few, "select": "fixed"}}
    if recipe.system is None and not shots:
        return
    step = compose(shots, PromptingContext(task, items.train, (), seed))
    system = recipe.system if recipe.system is not None else task.system
    for example in (*items.validation, *items.test)[:_FIRST]:
        prompt = wrap_prompt(step(example), system, None)
        yield _Row(prompt.messages, f"candidate {candidate.name}: the prompt of item {example.id}")


def _list_rows(measured: MeasuredTask) -> Iterator[_Row]:
    """Yield the conversations of a task's rows in all splits; none for a task read as plain text."""
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
    bases = session.sources.values()
    tokens = tuple(sorted({token for base in bases for token in list_special_tokens(base)}))
    own = _OwnTokens(tokens, session.source.name)
    notes: list[str] = []
    suites = [_cut_task(measured, own, notes) for measured in session.suites]
    more = [_cut_task(measured, own, notes) for measured in session.more_targets]
    target = _cut_task(session.target, own, notes)
    items = replace(target.items, overlap=(*target.items.overlap, *notes))
    training = {}
    for key, measured in session.training.items():
        own_notes: list[str] = []
        made = _cut_task(measured, own, own_notes)
        noted = replace(made.items, overlap=(*made.items.overlap, *own_notes))
        training[key] = made._replace(items=noted)
    return replace(
        session,
        target=target._replace(items=items) if notes else target,
        suites=tuple(suites),
        more_targets=tuple(more),
        training=training,
        folds=tuple(
            Fold(
                _cut_task(fold.target, own, []),
                {key: _cut_task(measured, own, []) for key, measured in fold.training.items()},
            )
            for fold in session.folds
        ),
    )


def _cut_task(measured: MeasuredTask, own: _OwnTokens, notes: list[str]) -> MeasuredTask:
    """Strip special tokens from the answers of a task's rows, and note the affected rows."""
    if measured.task.lm_eval:
        return measured
    found: dict[str, dict[str, str]] = {"answers": {}, "prompts": {}}
    for part in _PARTS:
        for example, where, _ in measured.items.list_sourced(part):
            answers = (*example.references, *example.choices, example.rejected)
            if token := find_special(answers, own.tokens):
                found["answers"][where] = token
            elif token := find_special((turn["content"] for turn in example.messages), own.tokens):
                found["prompts"][where] = token
    for what, rows in found.items():
        notes += [_describe_special(what, rows, own)] if rows else []
    shown = readers.display_path(measured.task.data.documents or "")
    documents = {
        f"{shown}:{d.id}": token
        for d in measured.items.documents
        if (token := find_special((d.title, d.text), own.tokens))
    }
    notes += [_describe_special("documents", documents, own)] if documents else []
    if not found["answers"]:
        return measured

    def cut(text: str) -> str:
        return cut_special(text, own.tokens) or text

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
    return measured._replace(items=replace(measured.items, **parts))


def _describe_special(what: str, rows: dict[str, str], own: _OwnTokens) -> str:
    first, token = next(iter(rows.items()))
    meant = "read as text, and end no turn"
    if what == "answers":
        meant = "trained and compared without those around them"
    is_known = all(find_special([token]) for token in rows.values())
    known = "" if is_known else f" --base {as_argument(own.base)}"
    commands = [
        f"harness data clean {as_argument(file)} --out {as_argument(name_output({}, file, 'clean'))} "
        f"--special-tokens{known}"
        for file in dict.fromkeys(map(readers.file_of, rows))
    ]
    held = f"{pluralize(len(rows), 'row')} with special tokens in {what}, such as {token!r} at {first}"
    return f"{held}, are {meant}; next: {' && '.join(commands)}"
