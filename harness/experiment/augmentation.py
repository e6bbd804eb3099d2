"""Augmentation of training rows: paraphrases, back-translations, or new questions with answers.

Invariant: evaluated rows are never shown to the model, and no new row has an evaluated question. A paraphrase
changes only the question and the id. Paraphrases that change a number, add or lose a negation, or lose the
words of the answer are dropped, as are rows that repeat or contradict another row. The same model, texts,
prompts and seed give one result.
Source: back-translation by Sennrich et al. 2016, https://arxiv.org/abs/1511.06709, and Yu et al. 2018,
https://arxiv.org/abs/1804.09541, section 3; Self-Instruct, Wang et al. 2023,
https://arxiv.org/abs/2212.10560, section 2.2 (here only rows are shown, no new questions).
"""

import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import count as count_up
from itertools import product
from typing import Any, Literal, NamedTuple

from harness.data import contamination, formats
from harness.data.column_roles import CONTEXT, Roles, read_question_and_answers
from harness.data.contamination import overlaps
from harness.data.edit.changes import Change, EditedRow, PlacedText, label_places, put_text
from harness.data.edit.dedup import dedup, stand_on_same
from harness.data.edit.mix import draw
from harness.data.edit.save import Edit
from harness.data.examples import read_example
from harness.data.guessed_columns import label_set
from harness.data.near_duplicates import THRESHOLD, are_alike, near_duplicates
from harness.data.row_forms import list_choices
from harness.data.splits import AUGMENTED, ORIGIN, SOURCE, is_augmented
from harness.data.text_files import Row, Rows
from harness.errors import UserError
from harness.evaluation import costs, seed_of
from harness.evaluation.session import MeasuredTask
from harness.experiment import writers
from harness.formatting import count, pluralize
from harness.progress import Progress
from harness.records import Limits, Message, count_negations, fold_text, match_label

NEW_QUESTION = "Write a question with its answer, of the same kind as the others but about something else."
SHOWN = 4  # rows in a prompt
CUT = "was cut at --max-new-tokens"
_NUMBER = re.compile(r"(?:(?<!\w)[-−])?\d+(?:[.,:]\d+)*")
_USER = ("user", "human", "prompter")
_SAID = ("content", "value", "text")
_MARK = re.compile(r"^[\W_]*(question|answer)[*_ ]{0,3}:[*_]{0,2}", re.IGNORECASE | re.MULTILINE)


class WrittenQuestion(NamedTuple):
    """Question that a model wrote for a row; `failure` is the reason if it failed, `of` the row it repeats.

    A new question has all its `fields`; `shown` holds the other questions that the model saw.
    """

    text: str
    failure: str = ""
    of: str = ""
    fields: Mapping[str, Any] | None = None
    shown: tuple[str, ...] = ()

    def put(self, fields: Mapping[str, Any], original: PlacedText) -> dict[str, Any]:
        """Return the fields of the new row."""
        return {**(self.fields or put_text(fields, original.keys, self.text))}


def find_question(row: Row, roles: Roles) -> PlacedText | None:
    """Find the question of a row: its first question column, the user's last turn, or a tree's root."""
    if is_augmented(row):
        return None
    for column in roles.questions:
        value = row.fields.get(column)
        if isinstance(value, str) and value.strip() and column != CONTEXT:
            return PlacedText(value, (column,))
        if isinstance(value, list):
            turns = [(i, turn) for i, turn in enumerate(value) if isinstance(turn, dict)]
            of_user = [(i, turn) for i, turn in turns if {*_USER} & {turn.get("role"), turn.get("from")}]
            turn_index, last = of_user[-1] if of_user else (0, {})
            key = next((name for name in _SAID if isinstance(last.get(name), str)), "")
            return PlacedText(last[key], (column, turn_index, key)) if key and last[key].strip() else None
        if isinstance(value, dict):
            text, replies = value.get("text"), value.get("replies")
            is_question = value.get("role") in _USER and isinstance(replies, list) and replies
            is_asked = is_question and isinstance(text, str) and text.strip()
            return PlacedText(str(text), (column, "text")) if is_asked else None
    return None


class SeedRow(NamedTuple):
    """Row to show: question, answer, the setting that shown rows must share, and labels (empty: any text)."""

    row: Row
    question: PlacedText
    answer: PlacedText
    setting: tuple[str, ...]
    labels: tuple[str, ...]


class ShownRows(NamedTuple):
    """Rows shown to a model: the seed row of the new one, and others of the same setting."""

    seed: SeedRow
    others: tuple[SeedRow, ...]

    def messages(self, prompt: str) -> tuple[Message, ...]:
        """Return a conversation in which the model has already written the rows."""
        context, labels = self.seed.setting[0], self.seed.labels
        about = [f"All questions are about this text:\n{context}"] if context else []
        about += [f"Each answer is one of: {'; '.join(labels)}"] if labels else []
        turns: list[Message] = []
        for row in (*self.others, self.seed):
            written = f"Question: {row.question.text.strip()}\nAnswer: {row.answer.text.strip()}"
            turns += [{"role": "user", "content": prompt}, {"role": "assistant", "content": written}]
        first: Message = {"role": "user", "content": "\n\n".join((*about, prompt))}
        return (first, *turns[1:], {"role": "user", "content": prompt})

    def read(self, text: str, *, cut: bool) -> WrittenQuestion:
        """Extract the first question and its answer from a text that a model wrote."""
        seed, marks = self.seed, [*_MARK.finditer(text)]
        names = [mark[1].lower() for mark in marks]
        ends = [*(mark.start() for mark in marks[1:]), len(text)]
        at = next((i for i in range(1, len(marks)) if names[i - 1 : i + 1] == ["question", "answer"]), 0)
        if cut and (not at or ends[at] == len(text)):
            return WrittenQuestion("", CUT)
        question, answer = (text[marks[i].end() : ends[i]].strip() for i in (at - 1, at)) if at else ("", "")
        samples = [text.text.strip() for row in (seed, *self.others) for text in (row.question, row.answer)]
        if not any("\n\n" in text for text in samples):
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
        own, fields = {"id", seed.question.keys[0], seed.answer.keys[0]}, dict[str, Any]()
        for name, value in put_text(seed.row.fields, seed.question.keys, question).items():
            if name in own or all(row.row.fields.get(name) == value for row in self.others):
                fields[name] = value
        fields = put_text(fields, seed.answer.keys, int(label) if type(answered) is int else label)
        return WrittenQuestion(question, fields=fields, shown=tuple(row.question.text for row in self.others))


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
        """Phrase for the text that a model writes."""
        return "a new question" if self.by == "new-questions" else "a rewording"


def _request(how: Rewriting, text: str, variant: int, messages: tuple[Message, ...]) -> writers.PromptRequest:
    is_sampled = how.temperature > 0
    limits = Limits(how.max_new_tokens, (), how.temperature, how.top_p if is_sampled else 1.0)
    return writers.PromptRequest(messages, limits, seed_of(how.seed, text, variant) if is_sampled else None)


class EvaluatedQuestions(NamedTuple):
    """Evaluated questions, folded, with their locations, and the function that reads a training row's."""

    questions: Mapping[str, str]
    question_of: Callable[[Row], str]


class Augmentation(NamedTuple):
    """Seed rows by index, rows `shown` for new questions, and the rows left out, with reasons."""

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
    """Choose the seed rows: all suitable rows that are not evaluated, or a sample of `n_rows`."""
    questions: dict[int, PlacedText] = {}
    changes: list[Change] = []
    for i, row in enumerate(content.rows):
        if question := find_question(row, roles):
            places = (e.questions.get(e.question_of(row)) for e in evaluated)
            if evaluated_at := next(filter(None, places), ""):
                changes.append(Change(row.where, "reported", ("not used: it is evaluated",), evaluated_at))
            else:
                questions[i] = question
    is_new, seeds = how.by == "new-questions", dict[int, SeedRow]()
    for i, question in questions.items() if is_new else ():
        row = content.rows[i]
        parsed, choices = read_question_and_answers(row, roles), list_choices(row.fields)[1]
        answers = [text for text in label_places(row.fields, roles) if text.keys[0] in roles.answers]
        is_whole = parsed.question.strip() == question.text.strip()  # no earlier turns, no second column
        if len(answers) != 1 or not answers[0].text.strip() or not is_whole:
            continue
        row_labels = tuple(map(str, choices)) if parsed.choices else labels
        if match_label(answers[0].text, row_labels) is None:
            row_labels = ()
        if parsed.choices and not row_labels:  # a letter or a number means nothing to a model
            continue
        setting = (parsed.context, parsed.system, parsed.choices, parsed.tools)
        seeds[i] = SeedRow(row, question, answers[0], setting, row_labels)
    if free := [seed for seed in seeds.values() if not seed.labels]:
        questions_of_free = (seed.question.text for seed in free)
        free_labels = label_set([seed.answer.text for seed in free], roles.answers[0], questions_of_free)
        seeds = {i: seed if seed.labels else seed._replace(labels=free_labels) for i, seed in seeds.items()}
    indices = list(seeds if is_new else questions)
    chosen = indices if n_rows is None else draw(indices, min(n_rows, len(indices)), f"{how.seed}/augment")
    if not chosen:
        layout = formats.recognise(content.rows)
        of_layout = f" of the layout {layout.name} ({layout.form})" if layout else ""
        form = "one answer as a text to one question" if questions else "a question as a text of its own"
        counts = f", {count(len(changes))} of them evaluated, and none of the others" if changes else ", none"
        found = f"{pluralize(len(content.rows), 'row')}{of_layout}{counts} with {form}"
        expected = "rows to train on, each with a question and an answer as a text"
        step = "name the columns: --prompt COLUMN --reference COLUMN, or other rows to train on"
        step = "write the question as a text in prompt, or as turns in messages" if layout else step
        raise UserError(content.shown, found, expected, step)
    # Each prompt shows other chosen rows of the same setting.
    alike = defaultdict[tuple[str, ...], list[int]](list)
    for i in chosen if seeds else ():
        alike[seeds[i].setting].append(i)
    shown_rows: dict[tuple[int, int], ShownRows] = {}
    for i, k in product(chosen if seeds else (), range(how.variants)):
        pool = alike[seeds[i].setting]
        sampled_indices = random.Random(f"{how.seed}/shown/{i}/{k}").sample(pool, min(SHOWN, len(pool)))
        other_seeds = [seeds[index] for index in sampled_indices if index != i]
        shown_rows[i, k] = ShownRows(seeds[i], tuple(other_seeds[: SHOWN - 1]))
    texts = {i: questions[i] for i in chosen}
    return Augmentation(content, roles, texts, shown_rows, tuple(changes), tuple(evaluated))


def _ask(prompt: str, text: str) -> tuple[Message, ...]:
    return ({"role": "user", "content": prompt.replace(TEXT, text)},)


def prepare_rows(
    chosen: Augmentation, writer: writers.Writer, how: Rewriting, progress: Progress, *, in_columns: bool
) -> writers.PreparedRequests[writers.MadeRows]:
    """Estimate requests, tokens and cost of the new rows; nothing is sent until `send` is called."""
    (prompt, *later), requests = how.prompts, dict[tuple[int, int], writers.PromptRequest]()
    for (i, text), k in product(chosen.texts.items(), range(how.variants)):
        shown_rows = chosen.shown.get((i, k))
        messages = shown_rows.messages(prompt) if shown_rows else _ask(prompt, text.text)
        requests[i, k] = _request(how, text.text, k, messages)
    first = writers.plan_requests(writer, [*requests.values()])
    n_later = sum(costs.tokens(prompt) + costs.CHAT_TOKENS + how.max_new_tokens for prompt in later)
    read = first.read + n_later * first.requests
    generated = first.generated + len(later) * first.requests * how.max_new_tokens
    n_requests = first.requests * len(how.prompts)
    plan = writers.WriterPlan(n_requests, first.known, read, generated, writer.planned(read, generated))

    def write_rows() -> writers.MadeRows:  # all rows, each followed by the rows made from it
        budgeted = writers.BudgetedWriter(writer, how.max_cost, progress)
        written, asked = dict[tuple[int, int], WrittenQuestion](), requests
        for number in range(1, len(how.prompts) + 1):
            label = f"{how.by} by {writer.name}"
            label += f", step {number} of {len(how.prompts)}" if len(how.prompts) > 1 else ""
            for at, output in zip(asked, budgeted.answers([*asked.values()], label), strict=True):
                cut, text = output.finish_reason == "length", output.text.strip()
                if output.finish_reason == "error":
                    written[at] = WrittenQuestion("", f"failed: {output.error}" if output.error else "failed")
                elif shown_rows := chosen.shown.get(at):
                    written[at] = shown_rows.read(output.text, cut=cut)
                elif cut:
                    written[at] = WrittenQuestion("", CUT)
                else:
                    is_quoted = len(text) > 1 and _QUOTES.get(text[0]) == text[-1]
                    text = text[1:-1].strip() if is_quoted else text
                    written[at] = WrittenQuestion(text, "" if text else "is empty")
            asked = {
                (i, k): _request(how, chosen.texts[i].text, k, _ask(how.prompts[number], answer.text))
                for (i, k), answer in written.items()
                if number < len(how.prompts) and not answer.failure
            }
        # Texts with an evaluated question count as failed.
        rows = chosen.content.rows
        fit = [at for at, answer in written.items() if not answer.failure]
        new_fields = [written[i, k].put(rows[i].fields, chosen.texts[i]) for i, k in fit]
        new_rows = [rows[i]._replace(fields=new) for (i, _), new in zip(fit, new_fields, strict=True)]
        for evaluated in chosen.evaluated:
            questions = [evaluated.question_of(row) for row in new_rows]
            keys, places = list(evaluated.questions), list(evaluated.questions.values())
            same = [(n, evaluated.questions[q]) for n, q in enumerate(questions) if q in evaluated.questions]
            for n, where in [*((o.training, places[o.evaluated]) for o in overlaps(questions, keys)), *same]:
                written[fit[n]] = WrittenQuestion("", "is evaluated", where)
        by_row: dict[int, list[WrittenQuestion]] = {i: [] for i in chosen.texts}
        for (i, _), answer in written.items():
            by_row[i].append(answer)
        outcomes = augment(rows, chosen.roles, by_row, by=how.by, text_kind=how.what, in_columns=in_columns)
        changes = [outcome.change for outcome in outcomes if outcome.change]
        if not any(change.kind == "added" for change in changes):
            reasons = "; ".join(dict.fromkeys(change.reason for change in changes))
            found = f"{pluralize(len(changes), how.what.split(' ', 1)[1])}, and none can be used: {reasons}"
            step = "another model, or a higher --temperature"
            raise UserError("harness data augment", found, "rows to train on", step)
        left_out = {change.where: change for change in chosen.left}
        for index, (row, change) in enumerate(outcomes):
            if row is not None and change is None:
                outcomes[index] = EditedRow(row, left_out.get(row.where))
        used: dict[str, Any] = {"with": writer.name, "who_answers": dict(writer.identity), **how._asdict()}
        del used["max_cost"]
        used["evaluated"] = sum(len(evaluated.questions) for evaluated in chosen.evaluated)
        edit = Edit("augment", used, (), cost_usd=budgeted.usage.cost_usd)
        return writers.MadeRows(edit, outcomes, spent=budgeted.usage)

    return writers.PreparedRequests(plan, write_rows)


def find_evaluated(tasks: Sequence[MeasuredTask]) -> EvaluatedQuestions:
    """Return the evaluated rows of all tasks; the first one is the target."""
    task = tasks[0].task
    choice = task.kind == "choice"

    def question_of(row: Row) -> str:
        layout = formats.layout_of(task, Rows(row.where, "", [row]))
        return contamination.key(read_example(task, layout, row), choice)

    rows = reversed(writers.list_evaluated(tasks))
    questions = {contamination.key(row.example, choice): row.where for row in rows}
    return EvaluatedQuestions(questions, question_of)


def read_evaluated(content: Rows, roles_of_test: Roles, roles: Roles) -> EvaluatedQuestions:
    """Return the questions that a file evaluates, compared with the raw fields of rows."""

    def fold(row: Row, columns: Roles) -> str:
        return fold_text(read_question_and_answers(row, columns).whole)

    questions = {fold(row, roles_of_test): row.where for row in reversed(content.rows)}
    return EvaluatedQuestions(questions, lambda row: fold(row, roles))


def augment(
    rows: Sequence[Row],
    roles: Roles,
    written: Mapping[int, Sequence[WrittenQuestion]],
    *,
    by: str,
    text_kind: str = "a rewording",
    in_columns: bool = False,
) -> list[EditedRow]:
    """Return every row unchanged, followed by the rows made from it; `written` is keyed by row index."""
    is_taken = any(SOURCE in row.fields for row in rows if not is_augmented(row))
    marks, known_ids = {} if is_taken else {SOURCE: AUGMENTED}, {row.fields.get("id") for row in rows}
    parsed_rows = [read_question_and_answers(row, roles) for row in rows]
    answers = [set(filter(None, map(fold_text, qa.answers))) for qa in parsed_rows]
    times = Counter(answer for row_answers in answers for answer in row_answers)
    labels = {answer for answer, n in times.items() if n > 1}
    # The index of the original, the new row, its problem (empty if none), and the row it repeats.
    made_rows = list[tuple[int, Row, str, str]]()
    for i, questions in written.items():
        row = rows[i]
        if (original := find_question(row, roles)) is None:
            continue
        for question in questions:
            fields, texts = question.put(row.fields, original), [original.text, *question.shown]
            origin = json.dumps(texts, ensure_ascii=False) if question.shown else original.text
            fields |= {**marks, ORIGIN: origin}
            ident = row.fields.get("id")
            if isinstance(ident, int):  # a new id of the same type
                fields["id"] = 1 + max(number for number in known_ids if isinstance(number, int))
            elif ident is not None:
                names = (f"{ident}-augmented-{k}" for k in count_up(1))
                fields["id"] = next(name for name in names if name not in known_ids)
            known_ids.add(fields.get("id"))
            why_not = question.failure
            if question.fields is None and not why_not:
                why_not = _unfit(question.text, original.text, answers[i] - labels)
            made_rows.append((i, Row(row.where, fields), why_not, question.of))
    # A new row may repeat or contradict an earlier one.
    usable_rows = [row._replace(where=f"{row.where}, new") for _, row, why_not, _ in made_rows if not why_not]
    judged = iter(_judge(rows, usable_rows, roles))
    by_row: dict[int, list[EditedRow]] = defaultdict(list)
    for i, row, why_not, repeats in made_rows:
        change = Change(row.where, "dropped", (f"{text_kind} that {why_not}",), repeats)
        if not why_not:
            verdict = next(judged)
            change = Change(row.where, "added", (f"a row by {by}",))
            if verdict and verdict.kind == "dropped":
                change = verdict._replace(where=row.where, reasons=(f"{text_kind}: {verdict.reason}",))
        fields = {**dict.fromkeys(rows[i].fields if in_columns else ()), **row.fields}
        by_row[i].append(EditedRow(row._replace(fields=fields) if change.kind == "added" else None, change))
    outcomes: list[EditedRow] = []
    new = (*marks, ORIGIN) if in_columns else ()
    for i, row in enumerate(rows):
        empty = {name: None for name in new if name not in row.fields}
        outcomes += [EditedRow(row._replace(fields=row.fields | empty)), *by_row[i]]
    return outcomes


def _judge(rows: Sequence[Row], fit: Sequence[Row], roles: Roles) -> list[Change | None]:
    """Check new rows with `dedup`, and for other answers to nearly the same question."""
    # Without origins, because originals stay even if another row repeats them.
    every = [*rows, *(row._replace(fields=row.fields | {ORIGIN: ""}) for row in fit)]
    parsed_rows = [read_question_and_answers(row, roles) for row in every]

    def same(i: int, j: int) -> bool:
        return stand_on_same(parsed_rows[i], parsed_rows[j])

    changes = [outcome.change for outcome in dedup(every, roles, conflicts="drop")]
    for kept_index, similar_rows in near_duplicates([qa.question for qa in parsed_rows], same=same):
        for i, similarity in similar_rows:
            if changes[i] is None:
                reason = ("another answer to nearly the same question",)
                changes[i] = Change(every[i].where, "dropped", reason, every[kept_index].where, similarity)
    return changes[len(rows) :]


def _unfit(text: str, original: str, spans: Collection[str]) -> str:
    """Return the reason why a paraphrase cannot keep its original's answer; empty if it can."""
    if not text.strip():
        return "is empty"
    if fold_text(text) == fold_text(original) or are_alike(text, original, THRESHOLD):
        return "repeats its original"
    if Counter(_NUMBER.findall(text)) != Counter(_NUMBER.findall(original)):
        return "has other numbers than its original"
    negates, original_negates = (count_negations(whole) > 0 for whole in (text, original))
    if negates != original_negates:
        return "has a negation that its original lacks" if negates else "lacks the negation of its original"
    for span in spans:
        held = [re.search(rf"(?<!\w){re.escape(span)}(?!\w)", fold_text(whole)) for whole in (original, text)]
        if held[0] and not held[1]:
            return "lacks the answer, which its original holds"
    return ""
