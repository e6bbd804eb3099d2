"""Guess of the question and answer columns by their names and texts, and of closed sets of labels.

Invariant: a guess shows every text that the question depends on, and is refused if two columns may answer.
"""

import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from harness.data import text_files
from harness.data.column_roles import (
    ANSWERS,
    CONTEXTS,
    QUESTIONS,
    TELLING,
    column_options,
    columns_of,
    find_by_name,
    find_head,
    is_id,
    name_in,
)
from harness.data.text_files import Row, Rows
from harness.data.turns import HISTORY, SYSTEMS, list_history
from harness.errors import UserError, refuse

_OTHER_QUESTIONS = (
    *("nl", "problem", "goal", "dialogue", "dialog", "conversation", "review", "review_body", "body"),
    "tweet",
    *("comment", "description", "document", "article", "passage", "story", "context", "source", "src"),
    *("claim", "utterance", "utt"),
)
_FREE_ANSWERS = ("answer", "output", "response")  # with one of these columns, a category is not the answer
_ANSWERING = {"agent", "ai", "assistant", "bot", "chatbot", "gpt", "model", "operator", "support"}
_SAID = {"message", "text", "utterance", "content"}
_OTHER_ANSWERS = (
    *("summary", "highlights", "translation", "solution", "sql", "code", "entities", "spans"),
    *("reply", "completion", "decision", "sentiment", "stars", "rating", "score", "grade", "tgt"),
    *("answers", "labels", "tags", "topics", "categories", "genres", "keywords", "keyphrases", "paraphrases"),
)
_COMPARED = ("sentence", "question", "text", "s", "document", "premise", "title")
_TITLES = ("title", "subject", "headline", "heading")
# Keys of an object that hold its texts.
_TEXTS = ("text", "texts", "contexts", "sentences", "passages", "spans", "input_text", "value")
_PAIRED = re.compile(r"(.*?)[ _-]?([12ab])", re.IGNORECASE)
# Columns that hold labels, and columns whose numbers are not labels.
_LABELS = {
    *("label", "labels", "intent", "category", "class", "decision", "sentiment", "emotion", "polarity"),
    *("queue", "team", "department", "topic", "tag", "tags", "type", "priority", "severity", "urgency"),
    *("status", "stars", "star", "rating", "ratings", "score", "grade", "verdict", "stance", "tone"),
}
_QUANTITIES = {
    *("price", "cost", "amount", "total", "sum", "fee", "salary", "income", "age", "count", "quantity"),
    *("year", "weight", "height", "length", "distance", "duration", "minutes", "hours", "days"),
}
_LABEL_WORDS = {
    *("yes", "no", "maybe", "unknown", "true", "false", "positive", "negative", "neutral", "mixed"),
    *("entailment", "contradiction", "spam", "ham", "low", "medium", "high", "pass", "fail"),
}
MOST_LABELS, ROWS_A_LABEL, LONGEST_LABEL = 200, 5, 60
_WIDEST_SCALE = 10  # largest range of numbers that are steps of a scale
SQL = re.compile(
    r"\s*(?:select|with|insert|update|delete)\s.*?\b(?:from|into|set|as)\b", re.IGNORECASE | re.DOTALL
)


def guess_columns(content: Rows, columns: set[str], fields: dict[str, str]) -> dict[str, str]:
    """Guess which columns ask and which one answers, besides the known templates in `fields`.

    Names decide; of two other columns the one with fewer values answers, or the later one. Objects and lists
    answer by their name alone; messages of a bot or an agent (`bot_message`) answer if no column does by its
    name. Columns that are not clearly question or answer are refused.
    """
    cells = {c: [v for row in content.rows if (v := row.fields.get(c)) is not None] for c in columns}
    scalars = {c for c, values in cells.items() if None not in map(text_files.text_of_cell, values)}
    words = {c: re.findall(r"[^\W_]+", c.lower()) for c in scalars}
    replies = {c for c, parts in words.items() if {*parts[-1:]} & _SAID and _ANSWERING & {*parts[:-1]}}
    sql = {c for c in scalars if all(SQL.match(str(value)) for value in cells[c])}
    in_order = content.names
    pair = fields.get("prompt") or _join_pair([c for c in in_order if c in scalars])
    prompt = pair or find_by_name(scalars - replies - sql, QUESTIONS, ANSWERS)
    ids = {c for c in scalars if is_id(c) and (c.lower() == "id" or len({*cells[c]}) == len(content.rows))}
    objects = {c for c in columns if cells[c] and all(text_files.is_object(v) for v in cells[c] if v != [])}
    list_like = {c for c in columns - objects if any(cells[c]) and all(isinstance(v, list) for v in cells[c])}
    lists = {c for c in list_like if None not in (text_files.text_of_cell(e) for v in cells[c] for e in v)}
    nested = _find_nested(cells)
    prompt = prompt or nested[0]
    query = f"{{{min(sql)}}}" if len(sql) == 1 and len(scalars) > 1 else nested[1]
    answers = fields.get("reference") or query
    free_columns = (scalars | objects | lists) - {*columns_of(prompt, in_order)} - {*SYSTEMS}
    if answers is None:
        answers = find_by_name(free_columns, ANSWERS)
        if name_in(answers).lower() == "category":
            named_columns = {column for column in free_columns if find_head(column) in _FREE_ANSWERS}
            answers = find_by_name(named_columns, _FREE_ANSWERS) or answers
    answers = answers or find_by_name(free_columns, _OTHER_ANSWERS, _OTHER_QUESTIONS)
    if answers is None and len(replies) == 1 and f"{{{min(replies)}}}" != prompt:
        answers = f"{{{min(replies)}}}"
    prompt = prompt or find_by_name(scalars - replies - sql - {name_in(answers)}, _OTHER_QUESTIONS)
    if not (prompt and answers):
        counts: dict[str, text_files.ColumnCells] = {}
        for row in content.rows:
            text_files.count_cells(counts, row)
        usual_cells = {name: n for name, n in counts.items() if find_by_name({name}, (*QUESTIONS, *ANSWERS))}
        refuse(text_files.find_mixed_columns(usual_cells))
    if prompt and not pair:
        whole_prompt = add_contexts(prompt, name_in(answers), content.rows)
        titles = {*columns_of(whole_prompt, in_order)} - {*columns_of(prompt, in_order)}
        other_columns = scalars - titles - ids - {*columns_of(prompt, in_order)}
        if answers is None and len(titles) == 1 and not other_columns:
            answers, whole_prompt = f"{{{titles.pop()}}}", prompt
        prompt = whole_prompt
    taken_columns = {*columns_of(prompt, in_order), name_in(answers), *ids, *SYSTEMS}
    # If a list is named like a question or answer, or an object like a question, no plain column is used.
    by_name = (*QUESTIONS, *ANSWERS)
    is_list = any(find_head(c).removesuffix("s") in by_name for c in columns - scalars - objects)
    if is_list or (prompt is None and any(map(may_ask, objects))):
        taken_columns |= scalars
    remaining_columns = sorted(
        (c for c in reversed([*in_order]) if c in scalars and c not in taken_columns),
        key=lambda column: len({str(row.fields.get(column)) for row in content.rows}),
    )
    if answers is None and remaining_columns and len(remaining_columns) + bool(prompt) == 2:
        answers = f"{{{remaining_columns.pop(0)}}}"
    if prompt is None and len(remaining_columns) == 1:
        prompt = add_contexts(f"{{{remaining_columns.pop()}}}", name_in(answers), content.rows)
    if prompt and answers:
        return {**fields, "prompt": prompt, "reference": answers}
    roles = " and ".join(role for role, value in (("question", prompt), ("answer", answers)) if not value)
    found = f"columns {', '.join(sorted(columns)) or 'without values'}, none of them clearly the {roles}"
    step = _advise_columns(content, prompt, answers)
    raise UserError(content.shown, found, "a known layout, or to be told", step)


def label_set(answers: Iterable[str], column: str = "", questions: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the sorted labels if answers are a closed set of few and short ones, else ().

    Five rows per label on average are enough. If the column is named like labels, such as `queue`, or all
    labels are words such as yes and no, half of the rows must share theirs with another row. Names and steps
    of a scale need two rows each and three on average, unless most `questions` end with a question mark.
    """
    counts = Counter(answers)
    n, head = counts.total(), find_head(column)
    is_short = all(0 < len(label) <= LONGEST_LABEL and "\n" not in label for label in counts)
    if not is_short or not 2 <= len(counts) <= MOST_LABELS or head in _QUANTITIES:
        return ()
    is_enough = len(counts) * ROWS_A_LABEL <= n
    # Steps are whole and half numbers of a small range.
    are_names_or_steps = all(len(label.split()) <= 4 for label in counts)
    if any(re.match(r"\W*\d", label) for label in counts):
        steps = [float(label) for label in counts if re.fullmatch(r"-?\d+(\.[05]0*)?", label)]
        are_names_or_steps = len(steps) == len(counts) and max(steps) - min(steps) <= _WIDEST_SCALE
    if are_names_or_steps:
        is_named = head in _LABELS or column.lower().startswith(("is_", "has_"))
        if is_named or {label.lower().rstrip(".") for label in counts} <= _LABEL_WORDS:
            is_enough |= 2 * sum(count for count in counts.values() if count > 1) >= n
        elif sum(1 if text.rstrip().endswith("?") else -1 for text in questions) <= 0:
            is_enough |= min(counts.values()) > 1 and 3 * len(counts) <= n
    return tuple(sorted(counts)) if is_enough else ()


def may_ask(column: str) -> bool:
    """Tell by its name whether a column may hold questions."""
    return find_head(column) in (*QUESTIONS, *_OTHER_QUESTIONS)


def may_answer(column: str) -> bool:
    """Tell by its name whether a column may hold answers."""
    return find_head(column) in (*ANSWERS, *_OTHER_ANSWERS)


def _join_pair(names: Sequence[str]) -> str | None:
    """Write the template of two texts that are compared, each after its name; None if there are none."""
    pairs = [("premise", "hypothesis")] if {"premise", "hypothesis"} <= {*names} else []
    stem_by_name = {name: match[1] for name in names if (match := _PAIRED.fullmatch(name))}
    stems = {name: stem for name, stem in stem_by_name.items() if find_head(stem) in _COMPARED}
    pairs += [(a, b) for a, b in pairwise(sorted(stems)) if stems[a] == stems[b]]
    lines = [f"{spell(name).capitalize()}: {{{name}}}" for name in (pairs[0] if len(pairs) == 1 else ())]
    return "\n".join(lines) or None


def spell(column: str) -> str:
    """Write a column's name as words: `answerKind` as answer kind."""
    return " ".join(re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", column)).lower() or column


def add_contexts(prompt: str, answer: str, rows: Sequence[Row]) -> str:
    """Put the contexts of a question before it: columns with such names, and titles that differ."""
    names = dict.fromkeys(name for row in rows for name in row.fields)
    turns = {HISTORY} if any(map(list_history, rows)) else set()  # turns before the question
    used_columns = {*columns_of(prompt, names), answer.partition(".")[0], *turns}
    parts = []
    for name in (name for name in names if name not in used_columns and not is_id(name)):
        values = [row.fields.get(name) for row in rows]
        is_whole = all(value not in (None, "", [], {}) for value in values)
        is_title = name.lower() in _TITLES and len({str(value) for value in values}) > 0.6 * len(values)
        if is_whole and (is_title or find_head(name) in CONTEXTS):
            parts.append(f"{{{_name_texts(name, values)}}}")
    return "\n\n".join([*parts, prompt])


def _name_texts(name: str, values: Sequence[Any]) -> str:
    """Name the texts of a column; if it holds objects, by the key of the texts: `context.contexts`."""
    keys = [key for key in _TEXTS if all(isinstance(value, dict) and key in value for value in values)]
    return f"{name}.{keys[0]}" if keys else name


def _find_nested(cells: Mapping[str, Sequence[Any]]) -> tuple[str | None, str | None]:
    """Find a text in two languages, or accepted answers, within one column: `answers_spans.spans`."""
    for name, values in cells.items():
        keys = [*values[0]] if values and all(isinstance(value, dict) for value in values) else []
        if len(keys) == 2 and name.startswith("translation"):
            return f"{{{name}.{keys[0]}}}", f"{{{name}.{keys[1]}}}"
        inner = _name_texts(name, values) if name.lower().startswith("answer") else name
        if inner != name:
            return None, f"{{{inner}}}"
    return None, None


NAME_THEM = "name them: "


def _advise_columns(content: Rows, prompt: str | None, answers: str | None) -> str:
    """Write the options that read a file: texts ask; a column of labels, or else the last text, answers."""
    cells = {name: [row.fields.get(name) for row in content.rows] for name in content.names}
    flags = [name for name, values in cells.items() if None not in map(text_files.read_flag, values)]
    if answers is None and len(flags) > 1:
        advice = f'write those that apply as a list, such as "labels": ["{flags[0]}"]'
        return f"the columns {', '.join(flags)} say yes or no each: {advice}"
    texts: dict[str, list[str]] = {}
    for name, values in cells.items():
        are_texts = all(isinstance(value, str | int | float) and value != "" for value in values)
        if are_texts and not is_id(name) and name not in SYSTEMS:
            texts[name] = [str(value) for value in values]
    used_columns = {*columns_of(prompt, texts), *columns_of(answers, texts)}
    unused = [name for name in texts if name not in used_columns]
    labels = [name for name in unused if label_set(texts[name], name)]
    if answers is None and (candidates := labels or unused[-1:] if prompt or len(unused) > 1 else labels):
        answers = f"{{{candidates[0]}}}"
        unused = [name for name in unused if name not in candidates]
    queries = [n for n in unused if 2 * sum(" " in text for text in texts[n]) > len(texts[n])]
    queries = [n for n in queries if find_head(n) not in TELLING] or (unused[:1] if prompt is None else [])
    prompt = "\n\n".join([*filter(None, [prompt]), *(f"{{{name}}}" for name in queries)])
    if not (prompt and answers):
        return "a text that asks and one that answers in each row; lists of labels joined to one, as in a; b"
    reference = answers if "." in answers else answers[1:-1]
    return NAME_THEM + shlex.join(column_options(prompt, reference)).replace("\n", "\\n")
