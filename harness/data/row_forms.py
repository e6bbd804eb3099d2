"""Questions with choices as public sets have them, and rows that prefer an answer.

Invariant: the form of answers (the choice itself, its label as in ARC, its place from 0 as in MMLU or from 1)
is a property of all rows of a task: the one that fits every row. If two forms fit and give different
choices, nothing is read until the task says which (`answers_are`). An answer is better only if its rating is
higher; equal ratings make no pair.
Source: Cui et al. 2023, UltraFeedback, https://arxiv.org/abs/2310.01377 (some of its `overall_score` are
wrong, so `fine-grained_score` comes first); Köpf et al. 2023, OpenAssistant Conversations,
https://arxiv.org/abs/2304.07327; https://platform.openai.com/docs/guides/direct-preference-optimization
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import takewhile
from string import ascii_uppercase
from typing import Any, NamedTuple

from harness.data.text_files import Row, find_known_fields, is_plain
from harness.data.turns import FIX_ROW, Turns, add_system, read_turns, user_turns
from harness.errors import Problem, UserError
from harness.records import Message, normalize, parse_json

CHOICE_QUESTIONS = (
    *("question", "query", "question_stem", "ctx", "sentence", "goal", "problem", "premise"),
    "text",
)
RIGHT = (
    *("answerKey", "gold", "answer", "answer_idx", "answer_index"),
    *("correct", "correct_answer", "correct_idx", "correct_index", "label", "cop", "best_answer"),
)
_SURE = tuple(name for name in RIGHT if name not in ("gold", "correct", "label", "cop"))
CHOICES = ("choices", "options", "endings")
_MARKED = re.compile(r"(?:op|opt|option|choice|sol|solution|ending|answer)[ _-]?([a-h]|[0-8])")
_WRONG = re.compile(r"(?:distractor|(?:incorrect|wrong)(?:[ _-]?(?:answer|option|choice))?)[ _-]?[a-d\d]?")
_ITSELF, _LABELS, _FROM_0, _FROM_1 = "choices", "labels", "places from 0", "places from 1"
_NUMBERS, _WORDS = (_ITSELF, _FROM_0, _FROM_1), (_ITSELF, _LABELS)
_WAYS = "write answers_are: {}, or {}, under fields: of the task, or the texts of the choices into the file"
_NUMBER = re.compile(r"-?\d{1,9}(?:\.0+)?")


class AnswerForms(NamedTuple):
    """Forms of numeric answers, and of all others, in the order of trying; `problems` if ambiguous."""

    numbers: tuple[str, ...] = _NUMBERS
    words: tuple[str, ...] = _WORDS
    has_numbers: bool = False
    problems: tuple[Problem, ...] = ()


ANY_FORM = AnswerForms()


class _Answer(NamedTuple):
    where: str
    column: str
    written: object
    is_number: bool
    choices: dict[str, str]  # the choice that it names in each form


def has_choices(fields: set[str]) -> bool:
    """Tell whether rows of these fields are questions with choices."""
    filled = dict.fromkeys(fields, "…")
    has_list = bool(fields & {*CHOICES}) or len(list_choice_columns(filled)) > 1
    return has_list and bool(find_column(filled, CHOICE_QUESTIONS)) and bool(find_column(filled, RIGHT))


def find_column(fields: Mapping[str, Any], usual_names: Iterable[str]) -> str | None:
    """Find the column of the first known name with a value; `Correct Answer` counts as `correct_answer`."""
    filled_names = [name for name in fields if fields[name] is not None]
    name_by_spelling = {name.lower().replace(" ", "_"): name for name in reversed(filled_names)}
    columns = (name if name in filled_names else name_by_spelling.get(name) for name in usual_names)
    return next((name for name in columns if name), None)


def list_choice_columns(fields: Mapping[str, Any]) -> list[str]:
    """List the columns of a row's choices: a list, letters or numbers, or the right and the wrong answers."""
    if list_columns := [name for name in CHOICES if fields.get(name) is not None][:1]:
        return list_columns
    filled_columns = [name for name, value in fields.items() if value not in (None, "")]
    lettered = list(takewhile(filled_columns.__contains__, ascii_uppercase))
    column_by_mark = {mark[1]: name for name in filled_columns if (mark := _MARKED.fullmatch(name.lower()))}
    marked = [column_by_mark[mark] for mark in sorted(column_by_mark)]
    wrong_columns = [name for name in filled_columns if _WRONG.fullmatch(name.lower())]
    right_column = find_column(fields, ("correct_answer", "best_answer", "answer")) if wrong_columns else None
    forms = [lettered, marked, [right_column, *sorted(wrong_columns)] if right_column else []]
    return next((columns for columns in forms if len(columns) > 1), [])


def list_choices(fields: Mapping[str, Any]) -> tuple[list[str], Any]:
    """Return the labels of a row's choices, and the choices, a list if their form can be read."""
    choices: Any = next((fields[name] for name in CHOICES if fields.get(name) is not None), None)
    if isinstance(choices, str) and not is_plain(choices):
        with suppress(ValueError):  # JSON within a text, as in a CSV file
            choices = parse_json(choices)
    labels = list(ascii_uppercase)
    if choices is None:
        columns = list_choice_columns(fields)
        texts = [str(fields[name]) for name in columns]
        return labels, sorted(texts) if find_column(fields, RIGHT) in columns else texts
    if isinstance(choices, dict) and "text" in choices:
        return list(map(str, choices.get("label") or labels)), choices["text"]
    return (list(choices), list(choices.values())) if isinstance(choices, dict) else (labels, choices)


def read_choices(row: Row, forms: AnswerForms) -> tuple[object, list[str], object]:
    """Read a question, the texts to choose from, and the right one, which must be one of them."""
    fields = row.fields
    question = fields[find_column(fields, CHOICE_QUESTIONS) or ""]
    column, texts = find_column(fields, RIGHT) or "", _texts(row)
    if not isinstance(fields[column], str | int | float):
        return question, texts, fields[column]
    answer = _read_answer(row)
    tried_forms = forms.numbers if answer.is_number else forms.words
    right_choice = next((answer.choices[form] for form in tried_forms if form in answer.choices), None)
    if right_choice is None:
        expected = f"one of the {len(texts)} choices, as {' or '.join(tried_forms)}"
        raise UserError(row.where, f"{fields[column]!r} in {column!r}", expected, FIX_ROW)
    for name in _SURE:
        if name == column or fields.get(name) is None:
            continue
        other_answer = _read_answer(row, name)
        if other_answer.choices and right_choice not in other_answer.choices.values():
            written = f"{fields[column]!r} in {column!r}, which is {right_choice!r}"
            found = f"{other_answer.written!r} in {name!r}, and {written}"
            raise UserError(row.where, found, "columns that name one right choice", FIX_ROW)
    return question, texts, right_choice


def settle_forms(rows: Iterable[Row], stated_form: str | None = None) -> AnswerForms:
    """Find the form that fits all numbers, and the one that fits the other answers; or use `stated_form`."""
    answers: dict[bool, list[_Answer]] = {True: [], False: []}
    for row in rows:
        try:
            answer = _read_answer(row)
        except (UserError, KeyError):  # refused when it is read
            continue
        if answer.choices:
            answers[answer.is_number].append(answer)
    problems: list[Problem] = []
    numbers = (stated_form,) if stated_form in _NUMBERS else _settle(answers[True], _NUMBERS, problems)
    if not numbers:
        forms = _FROM_1, _FROM_0
        not_from_1, not_from_0 = (next(a for a in answers[True] if f not in a.choices) for f in forms)
        description = f"{not_from_1.written!r} in {not_from_1.column!r}, which is not a place from 1"
        found = f"{description}, and {not_from_0.written!r} in {not_from_0.where}, which is none from 0"
        expected = "places that count from 0, or from 1, in all rows"
        problems.append(Problem(not_from_1.where, found, expected, _WAYS.format(_FROM_0, _FROM_1)))
    words = (stated_form,) if stated_form in _WORDS else _settle(answers[False], _WORDS, problems)
    return AnswerForms(numbers or _NUMBERS, words or _WORDS, bool(answers[True]), tuple(problems))


def _settle(answers: Sequence[_Answer], forms: Sequence[str], problems: list[Problem]) -> tuple[str, ...]:
    """Return the form that fits all answers, several if it is ambiguous, () if there is none."""
    if not answers:
        return tuple(forms)
    possible_forms = [form for form in forms if all(form in answer.choices for answer in answers)]
    for other_form in possible_forms[1:]:
        form = possible_forms[0]
        unclear = next((a for a in answers if a.choices[other_form] != a.choices[form]), None)
        if unclear:
            n, choice, other_choice = len(answers), unclear.choices[form], unclear.choices[other_form]
            text = f"{unclear.written!r} in {unclear.column!r}, which is {choice!r} if answers are {form}"
            found = f"{text} and {other_choice!r} if they are {other_form}; none of {n:,} answers says which"
            expected = "answers that can be read in one way"
            problems.append(Problem(unclear.where, found, expected, _WAYS.format(form, other_form)))
            return tuple(possible_forms)
    return tuple(possible_forms[:1])


def _texts(row: Row) -> list[str]:
    texts = list_choices(row.fields)[1]
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        name = next((name for name in CHOICES if row.fields.get(name) is not None), "A")
        expected = "a list of texts, {label: text}, or {text: [...], label: [...]}, also as JSON in a text"
        raise UserError(row.where, f"{name!r} of another form", expected, FIX_ROW)
    return [text.strip() for text in texts]


def _read_answer(row: Row, column: str = "") -> _Answer:
    texts, column = _texts(row), column or find_column(row.fields, RIGHT) or ""
    labels, raw_answer = list_choices(row.fields)[0], row.fields[column]
    value = (str(raw_answer).lower() if isinstance(raw_answer, bool) else str(raw_answer)).strip()
    matching_texts = [text for text in texts if text == value]
    matching_texts = matching_texts or [text for text in texts if normalize(text) == normalize(value)]
    choices = {_ITSELF: matching_texts[0]} if len(matching_texts) == 1 else {}
    is_own_label = value in labels
    is_number = _NUMBER.fullmatch(value) is not None and not is_own_label
    if is_number:
        number = int(value.partition(".")[0])
        index_by_form = {_FROM_0: number, _FROM_1: number - 1}
        choices |= {form: texts[index] for form, index in index_by_form.items() if 0 <= index < len(texts)}
    elif (label := value if is_own_label else value.strip("(). ").upper()) in labels[: len(texts)]:
        choices[_LABELS] = texts[labels.index(label)]
    return _Answer(row.where, column, raw_answer, is_number, choices)


RATED, TREE = {"instruction", "completions"}, {"message_tree_id", "prompt"}
PREFERRED = {"input", "preferred_output", "non_preferred_output"}
_SCORES = ("fine-grained_score", "overall_score", "rating", "score")
# Turns that end with a question, and the answers with their scores, the best first; -inf: not rated.
RatedConversation = tuple[list[Message], list[tuple[str, float]]]


def best_answer(row: Row, context_apart: bool = False) -> dict[str, Any]:
    """Read a row as an item whose reference is the best answer; for a tree, the last on the best path."""
    messages, answers = _read_rated(row) if row.fields.keys() >= RATED else _tree(row)[-1]
    return {"messages": messages, "references": [answers[0][0].strip()]}


def _read_rated(row: Row) -> RatedConversation:
    completions = row.fields["completions"]
    if not isinstance(completions, list) or not all(isinstance(c, dict) for c in completions):
        raise misfit(row, "'completions' of another form", "a list of {response, overall_score}")
    answers: list[tuple[str, float]] = []
    for completion in completions:
        rating = next((completion[name] for name in _SCORES if completion.get(name) is not None), None)
        try:
            score = -math.inf if rating is None else float(rating)
        except (TypeError, ValueError):
            score = math.nan
        if rating is not None and not math.isfinite(score):
            raise misfit(row, f"the rating {rating!r}", "a number")
        answers.append((str(completion.get("response") or ""), score))
    question = str(row.fields["instruction"])
    if not question.strip():
        raise misfit(row, "an empty question", "a text")
    return [{"role": "user", "content": question}], _best_first(row, answers)


def _tree(row: Row) -> list[RatedConversation]:
    """Follow the best reply from the root of an OASST tree; return every question answered on that path."""
    message, turns = row.fields["prompt"], list[Message]()
    conversations: list[RatedConversation] = []
    while message is not None:
        if not isinstance(message, dict) or not isinstance(message.get("text"), str):
            raise misfit(row, "a message of another form", "{text, role, replies}, as OASST writes trees")
        if message.get("deleted"):
            raise misfit(row, "a question that was deleted", "one that is there")
        is_answer = message.get("role") == "assistant"
        turns = [*turns, {"role": "assistant" if is_answer else "user", "content": message["text"]}]
        replies = message.get("replies") or []
        if not isinstance(replies, list) or not all(isinstance(reply, dict) for reply in replies):
            raise misfit(row, "replies of another form", "a list of messages")
        replies = sorted((reply for reply in replies if not reply.get("deleted")), key=_rank)
        if replies and not is_answer:
            ranked = [(str(reply.get("text") or ""), -_rank(reply)) for reply in replies]
            conversations.append((turns, _best_first(row, ranked)))
        message = replies[0] if replies else None
    if not conversations:
        raise misfit(row, "a tree without an answer", "a reply of the assistant")
    return conversations


def _rank(message: Mapping[str, Any]) -> float:
    """Return the rank of a reply, 0 for the best, infinity without a rank."""
    rank = message.get("rank")
    return float(rank) if isinstance(rank, int | float) else math.inf


def _best_first(row: Row, answers: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    nonempty_answers = [answer for answer in answers if answer[0].strip()]
    if not nonempty_answers:
        raise misfit(row, "no answer", "at least one with a text")
    return sorted(nonempty_answers, key=lambda answer: -answer[1])


def misfit(row: Row, found: str, expected: str) -> UserError:
    """Return the error of a row that does not have the expected content."""
    return UserError(row.where, found, expected, FIX_ROW)


_SPEAKER = re.compile(r"\n\n(Human|Assistant):")
OWN_QUESTION = {"prompt", "messages"}


def read_pair(row: Row) -> Row:
    """Return a preference pair with its prompt as messages, and its two answers as texts.

    A rated row gives its best and its worst answer; a tree the first such pair on its best path.
    """
    filled_fields = find_known_fields(row)
    if filled_fields >= PREFERRED:
        question = row.fields["input"] if isinstance(row.fields["input"], dict) else {}
        tools = {"tools": question["tools"]} if "tools" in question else {}
        pair = {"chosen": row.fields["preferred_output"], "rejected": row.fields["non_preferred_output"]}
        row = row._replace(fields={**row.fields, "prompt": question.get("messages"), **pair, **tools})
    elif filled_fields >= RATED or filled_fields >= TREE:
        for messages, answers in [_read_rated(row)] if filled_fields >= RATED else _tree(row):
            scored_answers = [answer for answer in answers if answer[1] > -math.inf]
            if len({score for _, score in scored_answers}) > 1:
                pair = {"chosen": scored_answers[0][0].strip(), "rejected": scored_answers[-1][0].strip()}
                row = row._replace(fields={**row.fields, "messages": messages, **pair})
                break
        else:
            expected = "two answers, one rated higher than the other"
            raise misfit(row, "no two answers of different ratings", expected)
    if not {"chosen", "rejected"} <= find_known_fields(row):
        return row
    chosen, rejected = _conversation(row, "chosen"), _conversation(row, "rejected")
    if chosen is None or rejected is None:
        return _check_pair(name_question(row))
    if not chosen or not rejected:
        raise misfit(row, "an empty conversation", "turns")
    pairs = enumerate(zip(chosen, rejected, strict=False))
    n = next((i for i, (a, b) in pairs if a != b), min(len(chosen), len(rejected)))
    n -= n == len(chosen) == len(rejected)  # equal throughout: the last turn is the answer of both
    endings = chosen[n:], rejected[n:]
    if any(len(turns) > 1 or turns[0]["role"] != "assistant" for turns in endings if turns):
        expected = "chosen and rejected with the same turns up to one last answer each"
        raise misfit(row, "two conversations that part before the last answer", expected)
    texts = [turns[0]["content"] if turns else "" for turns in endings]
    fields = {**row.fields, "chosen": texts[0], "rejected": texts[1]}
    return _check_pair(name_question(row._replace(fields=fields | ({"messages": chosen[:n]} if n else {}))))


def is_transcript(text: str) -> bool:
    """Tell whether a text is a transcript of Human and Assistant."""
    return bool(_SPEAKER.match(f"\n\n{text.lstrip()[:12]}"))


def _conversation(row: Row, field: str) -> Turns | None:
    """Read a list of turns, or a transcript of Human and Assistant; None for another text."""
    value = row.fields[field]
    if isinstance(value, dict):  # LLaMA-Factory's: one turn, next to `conversations`
        return read_turns(row._replace(fields={field: [value]}), field)
    if isinstance(value, list):
        return read_turns(row, field)
    if not isinstance(value, str) or not is_transcript(value):
        return None
    parts = _SPEAKER.split(f"\n\n{value.lstrip()}")[1:]
    roles = ("user" if speaker == "Human" else "assistant" for speaker in parts[::2])
    return [{"role": role, "content": text.strip()} for role, text in zip(roles, parts[1::2], strict=True)]


def name_question(row: Row) -> Row:
    """Write a pair's question from another tool's field into our field `messages`."""
    fields = row.fields
    usual_names = "messages", "prompt", "conversations"
    turn_fields = (name for name in usual_names if fields.get(name) and not is_plain(fields[name]))
    parts = [fields.get("question") or fields.get("instruction"), fields.get("input")]
    text = fields.get("prompt") or "\n\n".join(str(part) for part in parts if part)
    if name := next(turn_fields, None):
        turns = add_system(read_turns(row, name), row)
    elif text and not is_plain(fields.get("messages")):
        turns = user_turns(str(text), row)
    else:
        return row
    return row._replace(fields={**fields, "messages": turns})


def _check_pair(pair: Row) -> Row:
    texts = {name: " ".join(str(pair.fields[name]).split()) for name in ("chosen", "rejected")}
    if texts["chosen"] == texts["rejected"]:
        raise misfit(pair, "two equal answers", "a chosen answer and another rejected one")
    if empty_side := next((name for name, text in texts.items() if not text), ""):
        raise misfit(pair, f"an empty {empty_side} answer", "a text")
    return pair
