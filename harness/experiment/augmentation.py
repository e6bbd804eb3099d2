"""Augmentation of training rows: paraphrases, translations there and back, or new questions with answers.

Invariant: evaluated rows are never shown to the model, and no new row has an evaluated question. The same
model, texts, prompts and seed give the same rows.
Source: back-translation by Sennrich et al. 2016, https://arxiv.org/abs/1511.06709, and Yu et al. 2018,
https://arxiv.org/abs/1804.09541, section 3; Self-Instruct, Wang et al. 2023,
https://arxiv.org/abs/2212.10560, section 2.2 (here only rows are shown, no new questions).
"""

import random
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any, Literal, NamedTuple

from harness.data import contamination, formats
from harness.data.columns import Roles, read_question_and_answers
from harness.data.contamination import overlaps
from harness.data.edit.augment import WrittenQuestion, augment, find_question
from harness.data.edit.changes import Change, EditedRow, PlacedText, label_places, put_text
from harness.data.edit.mix import draw
from harness.data.examples import read_example
from harness.data.guessed_columns import label_set
from harness.data.multiple_choice import list_choices
from harness.data.text_files import Row, Rows
from harness.errors import Problem, UserError
from harness.evaluation import costs, seed_of
from harness.evaluation.session import MeasuredTask
from harness.experiment import writers
from harness.formatting import count, pluralize
from harness.progress import Progress
from harness.records import Limits, Message, Output, fold_text, match_label

NEW_QUESTION = "Write a question with its answer, of the same kind as the others but about something else."
SHOWN = 4  # rows in a prompt
CUT = "was cut at --max-new-tokens"
_MARK = re.compile(r"^[\W_]*(question|answer)[*_ ]{0,3}:[*_]{0,2}", re.IGNORECASE | re.MULTILINE)


class SeedRow(NamedTuple):
    """Row to be shown: question, answer, what shown rows must share, and the labels (none for any text)."""

    row: Row
    question: PlacedText
    answer: PlacedText
    setting: tuple[str, ...]
    labels: tuple[str, ...]


class ShownRows(NamedTuple):
    """Rows shown to a model: the row that the new one will follow, and others of the same setting."""

    seed: SeedRow
    others: tuple[SeedRow, ...]

    def messages(self, prompt: str) -> tuple[Message, ...]:
        """Write a conversation in which the model has already written the rows."""
        context, labels = self.seed.setting[0], self.seed.labels
        about = [f"All questions are about this text:\n{context}"] if context else []
        about += [f"Each answer is one of: {'; '.join(labels)}"] if labels else []
        turns: list[Message] = []
        for one in (*self.others, self.seed):
            said = f"Question: {one.question.text.strip()}\nAnswer: {one.answer.text.strip()}"
            turns += [{"role": "user", "content": prompt}, {"role": "assistant", "content": said}]
        first: Message = {"role": "user", "content": "\n\n".join((*about, prompt))}
        return (first, *turns[1:], {"role": "user", "content": prompt})

    def read(self, text: str, *, cut: bool) -> WrittenQuestion:
        """Take the first question and its answer out of a text that a model wrote.

        If no shown row has an empty line, only what precedes the first one is read.
        """
        seed, marks = self.seed, [*_MARK.finditer(text)]
        names = [mark[1].lower() for mark in marks]
        ends = [*(mark.start() for mark in marks[1:]), len(text)]
        at = next((i for i in range(1, len(marks)) if names[i - 1 : i + 1] == ["question", "answer"]), 0)
        if cut and (not at or ends[at] == len(text)):
            return WrittenQuestion("", CUT)
        question, answer = (text[marks[i].end() : ends[i]].strip() for i in (at - 1, at)) if at else ("", "")
        shown = "\n".join(
            of.text.strip() for one in (seed, *self.others) for of in (one.question, one.answer)
        )
        if "\n\n" not in shown:
            question, answer = (part.partition("\n\n")[0].strip() for part in (question, answer))
        if not question or not answer:
            return WrittenQuestion("", "lacks a question or its answer" if text.strip() else "is empty")
        label = match_label(answer, seed.labels) if seed.labels else answer
        if label is None:
            return WrittenQuestion("", "has an answer that is none of the labels")
        answered: Any = seed.row.fields
        for key in seed.answer.keys:
            answered = answered[key]
        if type(answered) is int and not re.fullmatch(r"-?\d+", label):
            return WrittenQuestion("", "has an answer that is not a whole number, as its row has")
        own = {"id", seed.question.keys[0], seed.answer.keys[0]}
        fields = {
            name: value
            for name, value in put_text(seed.row.fields, seed.question.keys, question).items()
            if name in own or all(one.row.fields.get(name) == value for one in self.others)
        }
        fields = put_text(fields, seed.answer.keys, int(label) if type(answered) is int else label)
        texts = tuple(one.question.text for one in self.others)
        return WrittenQuestion(question, fields=fields, shown=texts)


def find_seeds(
    rows: Sequence[Row], roles: Roles, questions: Mapping[int, PlacedText], labels: tuple[str, ...]
) -> dict[int, SeedRow]:
    """Return the rows that can be shown, by index."""
    seeds: dict[int, SeedRow] = {}
    for i, question in questions.items():
        row = rows[i]
        asked, choices = read_question_and_answers(row, roles), list_choices(row.fields)[1]
        answers = [one for one in label_places(row.fields, roles) if one.keys[0] in roles.answers]
        is_whole = asked.question.strip() == question.text.strip()  # no turns before, no second column
        if len(answers) != 1 or not answers[0].text.strip() or not is_whole:
            continue
        own_labels = tuple(map(str, choices)) if asked.choices else labels
        if match_label(answers[0].text, own_labels) is None:
            own_labels = ()
        if asked.choices and not own_labels:  # a letter or a number, which says nothing to a model
            continue
        setting = (asked.context, asked.system, asked.choices, asked.tools)
        seeds[i] = SeedRow(row, question, answers[0], setting, own_labels)
    free = [seed for seed in seeds.values() if not seed.labels]
    texts = [seed.answer.text for seed in free], [seed.question.text for seed in free]
    known = label_set(texts[0], roles.answers[0], texts[1]) if free else ()
    return {i: seed if seed.labels else seed._replace(labels=known) for i, seed in seeds.items()}


By = Literal["paraphrase", "back-translation", "new-questions"]
TEXT = "{text}"
PARAPHRASE = (
    "Write the text below in other words. Keep its meaning, its language, and every name and number. "
    f"Answer with the new text alone.\n\n{TEXT}"
)
TRANSLATE = f"Translate the text below into {{language}}. Answer with the translation alone.\n\n{TEXT}"
_QUOTES = {'"': '"', "“": "”", "'": "'", "«": "»"}


class Rewriting(NamedTuple):
    """Prompts, each applied to the previous answer, with sampling settings.

    `variants` are sampled per row; at temperature 0 there is one. `max_cost` is in USD, None for no limit.
    """

    by: By
    prompts: tuple[str, ...]
    variants: int = 1
    temperature: float = 0.7
    top_p: float = 1.0
    max_new_tokens: int = 128
    seed: int = 0
    max_cost: float | None = None

    @property
    def what(self) -> str:
        """What a model writes, in words."""
        return "a new question" if self.by == "new-questions" else "a rewording"


def _request(how: Rewriting, text: str, variant: int, messages: tuple[Message, ...]) -> writers.PromptRequest:
    drawn = how.temperature > 0
    limits = Limits(how.max_new_tokens, (), how.temperature, how.top_p if drawn else 1.0)
    return writers.PromptRequest(messages, limits, seed_of(how.seed, text, variant) if drawn else None)


def _ask(prompt: str, text: str) -> tuple[Message, ...]:
    return ({"role": "user", "content": prompt.replace(TEXT, text)},)


class EvaluatedQuestions(NamedTuple):
    """Evaluated questions, folded, with their places, and how to read a training row to compare."""

    questions: Mapping[str, str]
    question_of: Callable[[Row], str]


class Augmentation(NamedTuple):
    """Rows to start from: their texts by index, and the reasons why others are excluded.

    `shown` maps row and variant to the rows shown for a new question; empty for rewordings.
    """

    content: Rows
    roles: Roles
    texts: Mapping[int, PlacedText]
    shown: Mapping[tuple[int, int], ShownRows]
    left: tuple[Change, ...]
    evaluated: tuple[EvaluatedQuestions, ...]


def choose_rows(
    content: Rows,
    roles: Roles,
    evaluated: Sequence[EvaluatedQuestions],
    n_rows: int | None,
    how: Rewriting,
    labels: tuple[str, ...] = (),
) -> Augmentation:
    """Choose the rows to start from: all suitable rows that are not evaluated, or a sample of `n_rows`."""
    found = {i: one for i, row in enumerate(content.rows) if (one := find_question(row, roles))}
    evaluated_at = {
        i: next((at for of in evaluated if (at := of.questions.get(of.question_of(content.rows[i])))), "")
        for i in found
    }
    left = [
        Change(content.rows[i].where, "reported", ("not used: it is evaluated",), at)
        for i, at in evaluated_at.items()
        if at
    ]
    able = {i: found[i] for i, at in evaluated_at.items() if not at}
    seeds = find_seeds(content.rows, roles, able, labels) if how.by == "new-questions" else {}
    indices = list(seeds if how.by == "new-questions" else able)
    chosen = indices if n_rows is None else draw(indices, min(n_rows, len(indices)), f"{how.seed}/augment")
    if not chosen:
        raise UserError(_phrase_none(content, how, len(left), able))
    # For each row and variant, other chosen rows of the same setting are shown.
    alike = defaultdict[tuple[str, ...], list[int]](list)
    for i in chosen if seeds else ():
        alike[seeds[i].setting].append(i)
    shown: dict[tuple[int, int], ShownRows] = {}
    for i, k in product(chosen if seeds else (), range(how.variants)):
        pool = alike[seeds[i].setting]
        drawn = random.Random(f"{how.seed}/shown/{i}/{k}").sample(pool, min(SHOWN, len(pool)))
        others = [seeds[other] for other in drawn if other != i]
        shown[i, k] = ShownRows(seeds[i], tuple(others[: SHOWN - 1]))
    return Augmentation(content, roles, {i: found[i] for i in chosen}, shown, tuple(left), tuple(evaluated))


def _phrase_none(content: Rows, how: Rewriting, n_evaluated: int, able: Mapping[int, PlacedText]) -> Problem:
    n = pluralize(len(content.rows), "row")
    expected = "a row to train on, with a question as a text"
    found = f"{n}, none with a question as a text of its own"
    step = "name the column: --prompt COLUMN"
    if layout := formats.recognise(content.rows):
        found = f"{n} of the layout {layout.name} ({layout.form})"
        step = "write the question as a text in prompt, or as turns in messages"
    if n_evaluated:
        found = (
            f"{n}, {count(n_evaluated)} of them evaluated, and none of the others has a question as a text"
        )
        step = "name rows to train on, or another file --against"
    if able and how.by == "new-questions":
        found = f"{n}, none with one answer as a text to one question"
        expected = "rows to show, each with a question and an answer"
        step = "name the answer's column: --reference COLUMN, or --by paraphrase"
    return Problem(content.shown, found, expected, step)


def _first_requests(of: Augmentation, how: Rewriting) -> dict[tuple[int, int], writers.PromptRequest]:
    asked = {
        at: shown.messages(how.prompts[0]) if (shown := of.shown.get(at)) else _ask(how.prompts[0], text.text)
        for i, text in of.texts.items()
        for at in ((i, k) for k in range(how.variants))
    }
    return {(i, k): _request(how, of.texts[i].text, k, messages) for (i, k), messages in asked.items()}


def plan(of: Augmentation, writer: writers.Writer, how: Rewriting) -> writers.WriterPlan:
    """Count what the new rows take, before anything is sent."""
    first, later = writers.plan_requests(writer, [*_first_requests(of, how).values()]), how.prompts[1:]
    read = sum(costs.tokens(prompt) + costs.CHAT_TOKENS + how.max_new_tokens for prompt in later)
    read = first.read + read * first.requests
    generated = first.generated + len(later) * first.requests * how.max_new_tokens
    return writers.WriterPlan(
        first.requests * len(how.prompts), first.known, read, generated, writer.planned(read, generated)
    )


def _read(of: Augmentation, at: tuple[int, int], output: Output) -> WrittenQuestion:
    cut = output.finish_reason == "length"
    if output.finish_reason == "error":
        return WrittenQuestion("", f"failed: {output.error}" if output.error else "failed")
    if shown := of.shown.get(at):
        return shown.read(output.text, cut=cut)
    if cut:
        return WrittenQuestion("", CUT)
    text = output.text.strip()
    if len(text) > 1 and _QUOTES.get(text[0]) == text[-1]:
        text = text[1:-1].strip()
    return WrittenQuestion(text, "" if text else "is empty")


def make_rows(
    of: Augmentation, writer: writers.Writer, how: Rewriting, progress: Progress, *, in_columns: bool
) -> tuple[list[EditedRow], writers.WriterUsage]:
    """Let a model write rows; return all rows, each followed by those made from it, and their cost.

    Raises:
        CandidateFailed: the model cannot be asked, or the cost limit is reached.
    """
    budgeted = writers.BudgetedWriter(writer, how.max_cost, progress)
    requests, written = _first_requests(of, how), dict[tuple[int, int], WrittenQuestion]()
    for number in range(1, len(how.prompts) + 1):
        label = f"{how.by} by {writer.name}"
        label += f", step {number} of {len(how.prompts)}" if len(how.prompts) > 1 else ""
        outputs = budgeted.answers([*requests.values()], label)
        written |= {at: _read(of, at, output) for at, output in zip(requests, outputs, strict=True)}
        requests = {
            (i, k): _request(how, of.texts[i].text, k, _ask(how.prompts[number], one.text))
            for (i, k), one in written.items()
            if number < len(how.prompts) and not one.failure
        }
    spent = budgeted.usage
    by_row = _mark_contaminated(of, written)
    outcomes = augment(of.content.rows, of.roles, by_row, by=how.by, what=how.what, in_columns=in_columns)
    changes = [outcome.change for outcome in outcomes if outcome.change]
    if not any(change.kind == "added" for change in changes):
        reasons = "; ".join(dict.fromkeys(change.reason for change in changes))
        found = f"{pluralize(len(changes), how.what.split(' ', 1)[1])}, and none can be used: {reasons}"
        step = "another model, or a higher --temperature"
        raise UserError(Problem("harness data augment", found, "rows to train on", step))
    left = {change.where: change for change in of.left}
    told = [
        outcome
        if outcome.change or outcome.row is None
        else outcome._replace(change=left.get(outcome.row.where))
        for outcome in outcomes
    ]
    return told, spent


def find_evaluated(tasks: Sequence[MeasuredTask]) -> EvaluatedQuestions:
    """Return the evaluated rows of all tasks; the first one is the target."""
    task = tasks[0].task
    own = writers.list_evaluated(tasks)
    choice = task.kind == "choice"

    def question_of(row: Row) -> str:
        layout = formats.layout_of(task, Rows(row.where, "", [row]))
        return contamination.key(read_example(task, layout, row), choice)

    return EvaluatedQuestions(
        {contamination.key(row.example, choice): row.where for row in reversed(own)}, question_of
    )


def read_evaluated(content: Rows, roles_of_test: Roles, roles: Roles) -> EvaluatedQuestions:
    """Return what a file evaluates, compared with rows as they are written."""
    questions = {
        fold_text(read_question_and_answers(row, roles_of_test).whole): row.where
        for row in reversed(content.rows)
    }
    return EvaluatedQuestions(questions, lambda row: fold_text(read_question_and_answers(row, roles).whole))


def _mark_contaminated(
    of: Augmentation, written: Mapping[tuple[int, int], WrittenQuestion]
) -> dict[int, list[WrittenQuestion]]:
    """Return the written texts by row; those with an evaluated question have failed."""
    by_row: dict[int, list[WrittenQuestion]] = {i: [] for i in of.texts}
    for (i, _), one in written.items():
        by_row[i].append(one)
    fit = [(i, k) for (i, k), one in written.items() if not one.failure]
    own = of.content.rows
    rows = [own[i]._replace(fields=written[i, k].put(own[i].fields, of.texts[i])) for i, k in fit]
    for evaluated in of.evaluated:
        questions = [evaluated.question_of(row) for row in rows]
        places = list(evaluated.questions.values())
        alike = [
            (one.training, places[one.evaluated]) for one in overlaps(questions, list(evaluated.questions))
        ]
        same = [(n, evaluated.questions[q]) for n, q in enumerate(questions) if q in evaluated.questions]
        for place, at in [*alike, *same]:
            i, k = fit[place]
            by_row[i][k] = WrittenQuestion("", "is evaluated", at)
    return by_row
