"""Augmentation of training rows by rewordings: paraphrases, or translations there and back.

Invariant: no row that is evaluated is reworded, and no rewording asks what is evaluated, exactly or by the
measures of the contamination check. The same model, texts, prompts and seed give the same rows, from the
answer book where it was requested before; nothing is requested any more once the answers have cost what they
may. Source: back-translation by Sennrich et al. 2016, https://arxiv.org/abs/1511.06709; there and back, to
augment training rows, by Yu et al. 2018, https://arxiv.org/abs/1804.09541, section 3.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from harness.data import contamination, formats
from harness.data.columns import Roles, read_question_and_answers
from harness.data.contamination import overlaps
from harness.data.edit import Change, EditedRow, draw
from harness.data.edit.augment import QuestionText, Rewording, augment, find_question
from harness.data.examples import read_example
from harness.data.text_files import Row, Rows
from harness.errors import Problem, UserError
from harness.evaluation import costs, seed_of
from harness.evaluation.session import Session
from harness.experiment import writers
from harness.formatting import count, pluralize
from harness.progress import Progress
from harness.records import Limits, Message, Output, fold_text

By = Literal["paraphrase", "back-translation"]
TEXT = "{text}"
PARAPHRASE = (
    "Write the text below in other words. Keep its meaning, its language, and every name and number. "
    f"Answer with the new text alone.\n\n{TEXT}"
)
TRANSLATE = f"Translate the text below into {{language}}. Answer with the translation alone.\n\n{TEXT}"
_QUOTES = {'"': '"', "“": "”", "'": "'", "«": "»"}


class Rewriting(NamedTuple):
    """Prompts of a rewording, one after the other, each with the answer to the one before, and their draw.

    So many `variants` are drawn of each text, at a temperature, by a seed; at 0 there is one.
    `max_new_tokens` are those of an answer, `max_cost` is what all may cost in USD, None for anything.
    """

    by: By
    prompts: tuple[str, ...]
    variants: int = 1
    temperature: float = 0.7
    top_p: float = 1.0
    max_new_tokens: int = 128
    seed: int = 0
    max_cost: float | None = None


def _write_prompt(how: Rewriting, text: str, variant: int, prompt: str, last: str) -> writers.PromptRequest:
    message: Message = {"role": "user", "content": prompt.replace(TEXT, last)}
    drawn = how.temperature > 0
    limits = Limits(how.max_new_tokens, (), how.temperature, how.top_p if drawn else 1.0)
    return writers.PromptRequest((message,), limits, seed_of(how.seed, text, variant) if drawn else None)


def _read(output: Output) -> Rewording:
    """Take a text out of an answer: without quotes around it, and none that failed or was cut."""
    if output.finish_reason == "error":
        return Rewording("", f"failed: {output.error}" if output.error else "failed")
    if output.finish_reason == "length":
        return Rewording("", "was cut at --max-new-tokens")
    text = output.text.strip()
    if len(text) > 1 and _QUOTES.get(text[0]) == text[-1]:
        text = text[1:-1].strip()
    return Rewording(text, "" if text else "is empty")


class EvaluatedQuestions(NamedTuple):
    """Questions that are evaluated with the place of each, and how a row of training is read to compare.

    Letter case and spaces aside, as both are given here.
    """

    questions: Mapping[str, str]
    question_of: Callable[[Row], str]


class Augmentation(NamedTuple):
    """Rows to be reworded: those that are, by index with their text, and why some of the others are not."""

    content: Rows
    roles: Roles
    texts: Mapping[int, QuestionText]
    left: tuple[Change, ...]
    evaluated: tuple[EvaluatedQuestions, ...]


def choose_rows(
    content: Rows, roles: Roles, evaluated: Sequence[EvaluatedQuestions], n_rows: int | None, seed: int
) -> Augmentation:
    """Choose the rows to reword: all that ask in a text and are not evaluated, or a draw of so many.

    Raises:
        UserError: there is none.
    """
    found = {i: one for i, row in enumerate(content.rows) if (one := find_question(row, roles))}
    evaluated_at = {
        i: next((at for of in evaluated if (at := of.questions.get(of.question_of(content.rows[i])))), "")
        for i in found
    }
    left = [
        Change(content.rows[i].where, "reported", ("not reworded: it is evaluated",), at)
        for i, at in evaluated_at.items()
        if at
    ]
    able = [i for i, at in evaluated_at.items() if not at]
    chosen = able if n_rows is None else draw(able, min(n_rows, len(able)), f"{seed}/augment")
    if not chosen:
        n = pluralize(len(content.rows), "row")
        found_text, step = (
            f"{n}, none with a question as a text of its own",
            "name the column: --prompt COLUMN",
        )
        if layout := formats.recognise(content.rows):
            found_text = f"{n} of the layout {layout.name} ({layout.form})"
            step = "write the question as a text in prompt, or as turns in messages"
        if left:
            found_text = (
                f"{n}, {count(len(left))} of them evaluated, and none of the others has a question as a text"
            )
            step = "name rows to train on, or another file --against"
        raise UserError(
            Problem(content.shown, found_text, "a row to train on, with a question as a text", step)
        )
    return Augmentation(content, roles, {i: found[i] for i in chosen}, tuple(left), tuple(evaluated))


def plan(of: Augmentation, writer: writers.Writer, how: Rewriting) -> writers.WriterPlan:
    """Count what the rewordings take, before anything is sent."""
    texts = [one.text for one in of.texts.values()]
    book = writers.AnswerBook(writer.folder, writer.identity)
    first = [_write_prompt(how, text, i, how.prompts[0], text) for text in texts for i in range(how.variants)]
    known = sum(book.find(one.key) is not None for one in first)
    n = len(first) * len(how.prompts)
    own = sum(costs.tokens(how.prompts[0].replace(TEXT, text)) + writers.CHAT_TOKENS for text in texts)
    later = sum(costs.tokens(prompt) + writers.CHAT_TOKENS + how.max_new_tokens for prompt in how.prompts[1:])
    read = how.variants * (own + later * len(texts))
    generated = n * how.max_new_tokens
    return writers.WriterPlan(n, known, read, generated, writer.planned(read, generated))


def make_rows(
    of: Augmentation, writer: writers.Writer, how: Rewriting, progress: Progress, *, in_columns: bool
) -> tuple[list[EditedRow], writers.WriterUsage]:
    """Reword the chosen rows; return every row, beside it those made from it, and what they took.

    Raises:
        CandidateFailed: the model cannot be asked, or has cost what it may.
        UserError: none of the rewordings can be used.
    """
    texts = [one.text for one in of.texts.values()]
    budgeted = writers.BudgetedWriter(writer, how.max_cost, progress)
    wanted = [(text, i) for text in texts for i in range(how.variants)]
    latest: list[Rewording] = [Rewording(text) for text, _ in wanted]
    for number, prompt in enumerate(how.prompts, start=1):
        able = [k for k, one in enumerate(latest) if not one.failure]
        requests = [_write_prompt(how, wanted[k][0], wanted[k][1], prompt, latest[k].text) for k in able]
        label = f"{how.by} by {writer.name}"
        label += f", step {number} of {len(how.prompts)}" if len(how.prompts) > 1 else ""
        for k, output in zip(able, budgeted.answers(requests, label), strict=True):
            latest[k] = _read(output)
    made = [tuple(latest[k : k + how.variants]) for k in range(0, len(latest), how.variants)]
    spent = budgeted.usage
    rewordings = _mark_contaminated(of, made)
    outcomes = augment(of.content.rows, of.roles, rewordings, by=how.by, in_columns=in_columns)
    changes = [outcome.change for outcome in outcomes if outcome.change]
    if not any(change.kind == "added" for change in changes):
        reasons = "; ".join(dict.fromkeys(change.reason for change in changes))
        found = f"{pluralize(len(changes), 'rewording')}, and none can be used: {reasons}"
        step = "another model, a higher --temperature, or --instruction"
        raise UserError(Problem("harness data augment", found, "rows in other words", step))
    left = {change.where: change for change in of.left}
    told = [
        outcome
        if outcome.change or outcome.row is None
        else outcome._replace(change=left.get(outcome.row.where))
        for outcome in outcomes
    ]
    return told, spent


def find_evaluated(session: Session) -> EvaluatedQuestions:
    """Return what is evaluated: validation and test of the target, and the items of all other tasks."""
    task = session.target.task
    own = writers.list_evaluated(session)
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
    of: Augmentation, made: Sequence[Sequence[Rewording]]
) -> dict[int, tuple[Rewording, ...]]:
    flat = [(i, k) for i, found in zip(of.texts, made, strict=True) for k in range(len(found))]
    by_row = {i: list(found) for i, found in zip(of.texts, made, strict=True)}
    fit = [(i, k) for i, k in flat if not by_row[i][k].failure]
    rows = [of.content.rows[i] for i, _ in fit]
    rows = [
        row._replace(fields=of.texts[i].put(row.fields, by_row[i][k].text))
        for row, (i, k) in zip(rows, fit, strict=True)
    ]
    for evaluated in of.evaluated:
        questions = [evaluated.question_of(row) for row in rows]
        places = list(evaluated.questions.values())
        alike = [
            (one.training, places[one.evaluated]) for one in overlaps(questions, list(evaluated.questions))
        ]
        same = [(n, evaluated.questions[q]) for n, q in enumerate(questions) if q in evaluated.questions]
        for place, at in [*alike, *same]:
            i, k = fit[place]
            by_row[i][k] = Rewording("", f"is evaluated: {at}")
    return {i: tuple(found) for i, found in by_row.items()}
