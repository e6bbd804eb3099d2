"""Guess of the columns that ask and answer by their names and texts, and whether what answers are labels.

Invariant: a guess shows every text that a question is known to stand on, and is refused where two may answer.
"""

import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from harness.data.cells import (
    ColumnCells,
    count_cells,
    find_mixed_columns,
    is_object,
    read_flag,
    text_of_cell,
)
from harness.data.columns import (
    ANSWERS,
    CONTEXTS,
    QUESTIONS,
    TELLING,
    column_options,
    columns_of,
    find_answer,
    find_by_name,
    find_head,
    is_id,
    is_reply,
    name_in,
)
from harness.data.examples import FIELD
from harness.data.text_files import Row, Rows
from harness.data.turns import HISTORY, SYSTEMS, list_history
from harness.errors import Problem, UserError

_OTHER_QUESTIONS = (
    *("nl", "problem", "goal", "dialogue", "dialog", "conversation", "review", "review_body"),
    *("body", "tweet"),
    *("comment", "description", "document", "article", "passage", "story", "context", "source", "src"),
    *("claim", "utterance", "utt"),
)
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
# Columns that hold labels, and those whose numbers are none.
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
_WIDEST_SCALE = 10  # between the ends of numbers that are steps
SQL = re.compile(
    r"\s*(?:select|with|insert|update|delete)\s.*?\b(?:from|into|set|as)\b", re.IGNORECASE | re.DOTALL
)


def guess_columns(content: Rows, columns: set[str], fields: dict[str, str]) -> dict[str, str]:
    """Guess which columns ask and which answers; where they stand within objects, the parts of these.

    Names decide; of two columns the one that varies less answers, of two that vary alike the later one.
    Objects, which are read as JSON, and lists answer by their name alone. What a bot or an agent said, such
    as `bot_message`, answers where no column does by its name.

    `fields` holds templates for `prompt` and `reference` as far as they are known; so does what comes back.

    Raises:
        UserError: no column is clearly the question, or none the answer; a column that is so by its name
            mixes lists and texts.
    """
    try:
        return _guess(content, columns, fields, {})
    except UserError:
        flat, places = _flatten(content, columns)
        if not places:
            raise
        texts = {name for name in columns & {*flat.rows[0].fields} if not is_id(name)}
        words = (str(row.fields.get(name)) for name in texts for row in content.rows)
        if find_by_name(texts, QUESTIONS) or any(" " in text.strip() for text in words):
            raise  # of an object next to a question no part is known to be the whole answer
        found = _guess(flat, texts | places.keys(), fields, places)
        if not places.keys() & {*FIELD.findall(found["prompt"])}:
            raise
    return {key: _name_whole(template, places) for key, template in found.items()}


def _flatten(content: Rows, columns: Iterable[str]) -> tuple[Rows, dict[str, str]]:
    """Write the parts of objects as columns, by their names where only one has it; and where each stands."""
    nested = [c for c in columns if all(isinstance(row.fields.get(c), dict) for row in content.rows)]
    whole = {name: f"{c}.{name}" for row in content.rows for c in sorted(nested) for name in row.fields[c]}
    taken = Counter(name for c in nested for name in {n for row in content.rows for n in row.fields[c]})
    others = content.names - {*nested}
    if not nested or any(n > 1 for n in taken.values()) or others & whole.keys():
        return content, {}
    rows = [
        row._replace(
            fields={
                name: value
                for column, held in row.fields.items()
                for name, value in (held if column in nested else {column: held}).items()
            }
        )
        for row in content.rows
    ]
    return content._replace(rows=rows), whole


def _name_whole(template: str, places: Mapping[str, str]) -> str:
    """Name in a template the parts of objects by where they stand: `{text}` as `{data.text}`."""
    return FIELD.sub(lambda field: f"{{{places.get(field[1], field[1])}}}", template)


def _guess(
    content: Rows, columns: set[str], fields: dict[str, str], places: Mapping[str, str]
) -> dict[str, str]:
    cells = {c: [v for row in content.rows if (v := row.fields.get(c)) is not None] for c in columns}
    plain = {c for c, values in cells.items() if all(text_of_cell(value) is not None for value in values)}
    replies = {c for c in plain if is_reply(c)}
    sql = {c for c in plain if all(SQL.match(str(value)) for value in cells[c])}
    in_order = content.names
    parts = fields.get("prompt") or _join_pair([c for c in in_order if c in plain])
    prompt = parts or find_by_name(plain - replies - sql, QUESTIONS, ANSWERS)
    ids = {c for c in plain if is_id(c) and (c.lower() == "id" or len({*cells[c]}) == len(content.rows))}
    objects = {c for c in columns if all(is_object(value) for value in cells[c] if value != []) and cells[c]}
    lists = {c for c in columns - objects if _are_lists(cells[c])}
    nested = _find_nested(cells)
    prompt = prompt or nested[0]
    query = f"{{{min(sql)}}}" if len(sql) == 1 and len(plain) > 1 else nested[1]
    answers = fields.get("reference") or query
    shown = {*columns_of(prompt, in_order)}
    free = (plain | objects | lists) - shown - {*SYSTEMS}
    answers = answers or find_answer(free) or find_by_name(free, _OTHER_ANSWERS, _OTHER_QUESTIONS)
    if answers is None and len(replies) == 1 and f"{{{min(replies)}}}" != prompt:
        answers = f"{{{min(replies)}}}"
    prompt = prompt or find_by_name(plain - replies - sql - {name_in(answers)}, _OTHER_QUESTIONS)
    if not (prompt and answers) and (mixed := _list_mixed(content)):
        raise UserError(mixed)
    if prompt and not parts:
        whole = add_contexts(prompt, name_in(answers), content.rows)
        titles = {*columns_of(whole, in_order)} - {*columns_of(prompt, in_order)}
        others = plain - titles - ids - {*columns_of(prompt, in_order)}
        if answers is None and len(titles) == 1 and not others:
            answers, whole = f"{{{titles.pop()}}}", prompt
        prompt = whole
    taken = {*columns_of(prompt, in_order), name_in(answers)}
    if any(find_head(c).removesuffix("s") in (*QUESTIONS, *ANSWERS) for c in columns - plain - objects):
        taken |= plain  # what asks or answers is a list, so what is left does not
    if prompt is None and any(map(may_ask, objects)):
        taken |= plain
    taken |= ids | {*SYSTEMS}
    left = sorted(
        (c for c in reversed([*in_order]) if c in plain and c not in taken),
        key=lambda column: len({str(row.fields.get(column)) for row in content.rows}),
    )
    if answers is None and left and len(left) + bool(prompt) == 2:
        answers = f"{{{left.pop(0)}}}"
    if prompt is None and len(left) == 1:
        prompt = add_contexts(f"{{{left.pop()}}}", name_in(answers), content.rows)
    if prompt and answers:
        return {**fields, "prompt": prompt, "reference": answers}
    lacking = " and ".join(what for what, found in (("question", prompt), ("answer", answers)) if not found)
    found = f"columns {', '.join(sorted(columns)) or 'without values'}, none of them clearly the {lacking}"
    step = _advise_columns(content, prompt, answers, in_order, places)
    raise UserError(Problem(content.shown, found, "a known layout, or to be told", step))


def label_set(answers: Iterable[str], column: str = "", questions: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the labels, sorted, where answers are a closed set of few and short ones; else nothing.

    Five rows a label are enough in the mean. In a column with the name of labels, such as `queue`, and of
    words such as yes and no, it is enough that half of the rows share theirs with another row. Names and
    steps of a scale need two rows each and three in the mean, unless most of the `questions` end with a
    question mark, so that a name may be an answer. Prices are no labels.
    """
    counts = Counter(answers)
    n, head = counts.total(), find_head(column)
    is_short = all(0 < len(label) <= LONGEST_LABEL and "\n" not in label for label in counts)
    if not is_short or not 2 <= len(counts) <= MOST_LABELS or head in _QUANTITIES:
        return ()
    enough = len(counts) * ROWS_A_LABEL <= n
    # Names have a few words each; steps are whole and half numbers of a small range.
    are_names_or_steps = all(len(label.split()) <= 4 for label in counts)
    if any(re.match(r"\W*\d", label) for label in counts):
        steps = [float(label) for label in counts if re.fullmatch(r"-?\d+(\.[05]0*)?", label)]
        are_names_or_steps = len(steps) == len(counts) and max(steps) - min(steps) <= _WIDEST_SCALE
    if are_names_or_steps:
        is_named = head in _LABELS or column.lower().startswith(("is_", "has_"))
        if is_named or {label.lower().rstrip(".") for label in counts} <= _LABEL_WORDS:
            enough |= 2 * sum(count for count in counts.values() if count > 1) >= n
        elif sum(1 if text.rstrip().endswith("?") else -1 for text in questions) <= 0:
            enough |= min(counts.values()) > 1 and 3 * len(counts) <= n
    return tuple(sorted(counts)) if enough else ()


def may_ask(column: str) -> bool:
    """Tell by the name of a column whether it may hold questions."""
    return find_head(column) in (*QUESTIONS, *_OTHER_QUESTIONS)


def may_answer(column: str) -> bool:
    """Tell by the name of a column whether it may hold answers."""
    return find_head(column) in (*ANSWERS, *_OTHER_ANSWERS)


def _join_pair(names: Sequence[str]) -> str | None:
    """Write the template of two texts that are compared, each behind its name; None where there are none."""
    pairs = [("premise", "hypothesis")] if {"premise", "hypothesis"} <= {*names} else []
    paired = {name: found[1] for name in names if (found := _PAIRED.fullmatch(name))}
    stems = {name: stem for name, stem in paired.items() if find_head(stem) in _COMPARED}
    pairs += [(one, other) for one, other in pairwise(sorted(stems)) if stems[one] == stems[other]]
    said = [f"{spell(name).capitalize()}: {{{name}}}" for name in (pairs[0] if len(pairs) == 1 else ())]
    return "\n".join(said) or None


def spell(column: str) -> str:
    """Write the name of a column as words: `answerKind` as answer kind."""
    return " ".join(re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", column)).lower() or column


def add_contexts(prompt: str, answer: str, rows: Sequence[Row]) -> str:
    """Put what a question is about in front of it: contexts by their names, and titles that differ."""
    names = dict.fromkeys(name for row in rows for name in row.fields)
    turns = {HISTORY} if any(map(list_history, rows)) else set()  # which stand before the question anyway
    shown = {*columns_of(prompt, names), answer.partition(".")[0], *turns}
    parts = []
    for name in (name for name in names if name not in shown and not is_id(name)):
        values = [row.fields.get(name) for row in rows]
        is_whole = all(value not in (None, "", [], {}) for value in values)
        is_title = name.lower() in _TITLES and len({str(value) for value in values}) > 0.6 * len(values)
        if is_whole and (is_title or find_head(name) in CONTEXTS):
            parts.append(f"{{{_name_texts(name, values)}}}")
    return "\n\n".join([*parts, prompt])


def _name_texts(name: str, values: Sequence[Any]) -> str:
    """Name the texts of a column, of objects the part that holds them: `context.contexts`."""
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


def _are_lists(values: Sequence[Any]) -> bool:
    are_lists = all(isinstance(value, list) for value in values)
    return are_lists and any(values) and all(text_of_cell(entry) is not None for v in values for entry in v)


def _advise_columns(
    content: Rows, prompt: str | None, answers: str | None, names: Iterable[str], places: Mapping[str, str]
) -> str:
    """Write the options that read a file: texts ask, a column of few values or the last text answers.

    Where no text is left, a list or an object asks or answers.
    """
    names = [*names]
    flags = [n for n in names if all(read_flag(row.fields.get(n)) is not None for row in content.rows)]
    if answers is None and len(flags) > 1:
        return (
            f"the columns {', '.join(flags)} say yes or no each: write those that apply as a list, "
            f'such as "labels": ["{flags[0]}"]'
        )
    texts: dict[str, list[str]] = {}
    for name in (name for name in names if not is_id(name) and name not in SYSTEMS):
        values = [row.fields.get(name) for row in content.rows]
        if all(isinstance(value, list) and len(value) == 1 for value in values):
            values = [value[0] if isinstance(value[0], str) else None for value in values if value]
        if all(isinstance(of, str | int | float) and of != "" for of in values):
            texts[name] = [str(value) for value in values]
    shown = {*columns_of(prompt, texts), *columns_of(answers, texts)}
    free = [name for name in texts if name not in shown]
    few = [name for name in free if label_set(texts[name], name)]
    if answers is None and (named := few or free[-1:] if prompt or len(free) > 1 else few):
        answers = f"{{{named[0]}}}"
        free = [name for name in free if name not in named]
    of_words = {n: sum(" " in text for text in texts[n]) > len(texts[n]) / 2 for n in free}
    taken = {*texts, *columns_of(prompt, names), *columns_of(answers, names)}
    held = [name for name in names if name not in taken and not is_id(name)]
    held = [n for n in held if all(isinstance(row.fields.get(n), list | dict) for row in content.rows)]
    if len(held) == 1 and (prompt or free) and not answers:
        answers = f"{{{held[0]}}}"
    long = [name for name in free if of_words[name] and find_head(name) not in TELLING]
    turns = [name for name in held if may_ask(name) and f"{{{name}}}" != answers]
    asking = long or ((turns[:1] or free[:1] or held[:1]) if prompt is None else [])
    prompt = "\n\n".join([*filter(None, [prompt]), *(f"{{{name}}}" for name in asking)])
    if not (prompt and answers):
        return "a text that asks and one that answers in each row; lists of labels joined to one, as in a; b"
    answers = _name_whole(answers, places)
    answers = answers if "." in answers else answers[1:-1]
    words = shlex.join(column_options(_name_whole(prompt, places), answers))
    return NAME_THEM + words.replace("\n", "\\n")


def _list_mixed(content: Rows) -> list[Problem]:
    cells: dict[str, ColumnCells] = {}
    for row in content.rows:
        count_cells(cells, row)
    usual = (*QUESTIONS, *ANSWERS)
    return find_mixed_columns({name: cells[name] for name in cells if find_by_name({name}, usual)})
