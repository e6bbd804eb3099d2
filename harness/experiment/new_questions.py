"""New questions with their answers, written by a model that was shown a few rows of one kind.

Invariant: a row is shown only together with rows on the same context, system prompt, choices and tools, and
only where it has one question and one answer as texts of their own. What was cut, lacks a part, or has an
answer that is none of the labels makes no row. A new row keeps those fields of its row that all shown rows
share. The same rows and seed show the same.
Source: Wang et al. 2023, Self-Instruct, https://arxiv.org/abs/2212.10560, section 2.2; here rows alone are
shown, no new question, so a request does not depend on another's answer.
"""

import random
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from harness.data.columns import Roles, read_question_and_answers
from harness.data.edit.augment import QuestionText, WrittenQuestion
from harness.data.edit.changes import WrittenAnswer, label_places, put_answer
from harness.data.guessed_columns import label_set
from harness.data.multiple_choice import list_choices
from harness.data.text_files import Row
from harness.records import Message, match_label

NEW_QUESTION = "Write a question with its answer, of the same kind as the others but about something else."
SHOWN = 4  # rows in a prompt
CUT = "was cut at --max-new-tokens"
_MARK = re.compile(r"^[\W_]*(question|answer)[*_ ]{0,3}:[*_]{0,2}", re.IGNORECASE | re.MULTILINE)


class SeedRow(NamedTuple):
    """A row to be shown: its question and its answer, and what other rows must share to be shown with it.

    `labels` are what a new answer can be; empty for any text.
    """

    row: Row
    question: QuestionText
    answer: WrittenAnswer
    setting: tuple[str, ...]
    labels: tuple[str, ...]


class ShownRows(NamedTuple):
    """Rows that a model is shown: the one that the new row stands beside, and others of its setting."""

    seed: SeedRow
    others: tuple[SeedRow, ...]

    def messages(self, prompt: str) -> tuple[Message, ...]:
        """Write a conversation in which the model has written the rows already, the row's own last."""
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

        Where no shown row has an empty line, what follows one is what the model says about the row.
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
        own = {"id", seed.question.column, seed.answer.keys[0]}
        fields = {
            name: value
            for name, value in seed.question.put(seed.row.fields, question).items()
            if name in own or all(one.row.fields.get(name) == value for one in self.others)
        }
        fields = put_answer(fields, seed.answer.keys, int(label) if type(answered) is int else label)
        texts = tuple(one.question.text for one in self.others)
        return WrittenQuestion(question, fields=fields, shown=texts)


def find_seeds(
    rows: Sequence[Row], roles: Roles, questions: Mapping[int, QuestionText], labels: tuple[str, ...]
) -> dict[int, SeedRow]:
    """Return the rows that can be shown, by index; `labels` are those of the task, if any."""
    seeds = {
        i: seed for i, question in questions.items() if (seed := _find_seed(rows[i], roles, question, labels))
    }
    free = [seed for seed in seeds.values() if not seed.labels]
    texts = [seed.answer.text for seed in free], [seed.question.text for seed in free]
    known = label_set(texts[0], roles.answers[0], texts[1]) if free else ()
    return {i: seed if seed.labels else seed._replace(labels=known) for i, seed in seeds.items()}


def _find_seed(row: Row, roles: Roles, question: QuestionText, labels: tuple[str, ...]) -> SeedRow | None:
    of, choices = read_question_and_answers(row, roles), list_choices(row.fields)[1]
    answers = [one for one in label_places(row.fields, roles) if one.keys[0] in roles.answers]
    is_whole = of.question.strip() == question.text.strip()  # without turns before, or a second column
    if len(answers) != 1 or not answers[0].text.strip() or not is_whole:
        return None
    labels = tuple(map(str, choices)) if of.choices else labels
    if match_label(answers[0].text, labels) is None:
        labels = ()
    if of.choices and not labels:  # a letter or a number, which says nothing to a model
        return None
    return SeedRow(row, question, answers[0], (of.context, of.system, of.choices, of.tools), labels)


def draw_shown(
    seeds: Mapping[int, SeedRow], chosen: Sequence[int], n_variants: int, seed: int
) -> dict[tuple[int, int], ShownRows]:
    """Draw for each chosen row and variant the others of its setting, chosen too, that are shown with it."""
    alike = defaultdict[tuple[str, ...], list[int]](list)
    for i in chosen:
        alike[seeds[i].setting].append(i)

    def draw(i: int, variant: int) -> ShownRows:
        pool = alike[seeds[i].setting]
        drawn = random.Random(f"{seed}/shown/{i}/{variant}").sample(pool, min(SHOWN, len(pool)))
        return ShownRows(seeds[i], tuple(seeds[other] for other in drawn if other != i)[: SHOWN - 1])

    return {(i, k): draw(i, k) for i in chosen for k in range(n_variants)}
