"""Clean rows: encoding fixed, one Unicode form, no trailing spaces, no row without question or answer.

Invariant: typography, HTML and letter case stay; cleaning clean rows changes nothing.
Source: Speer 2019, ftfy, https://doi.org/10.5281/zenodo.2591652; Unicode Standard Annex 15, form NFC.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from itertools import islice
from types import MappingProxyType
from typing import Any, NamedTuple

from harness.data import formats
from harness.data.column_roles import PAIRS, Roles, join_texts, read_question_and_answers
from harness.data.edit import changes
from harness.data.edit.mix import NEW_ID, RowIds
from harness.data.formats import THUMB_DOWN, Layout
from harness.data.guessed_columns import LONGEST_LABEL, MOST_LABELS, ROWS_A_LABEL, label_set
from harness.data.row_forms import CHOICES
from harness.data.row_traits import ScoreAnswers
from harness.data.text_files import Row, compile_special, cut_special, find_objects, names_labels
from harness.errors import UserError
from harness.formatting import pluralize

_SIGNS = "control characters or line ends fixed"
_LOST = "\ufffd"
_FIRST = 2_000  # rows that show whether answers are objects
_PRINTED = str.maketrans("", "", "\n\t")  # characters allowed besides those of str.isprintable


class CleaningOptions(NamedTuple):
    """Fixes of answers, labels and ids, besides those of all texts.

    `leading_spaces` strips white space before answers, `spellings` maps labels to their new spelling, `ids`
    replaces repeated ids. `special` removes the listed special tokens and those of known families. `low` maps
    the lines of rows to drop to the reason.
    """

    leading_spaces: bool = False
    spellings: Mapping[str, str] = MappingProxyType({})
    ids: RowIds | None = None
    special: tuple[str, ...] | None = None
    low: Mapping[int, str] = MappingProxyType({})


_NOTHING_MORE = CleaningOptions()


def clean(
    rows: Iterable[Row],
    roles: Roles,
    decisions: Mapping[int, changes.RowDecision] | None = None,
    *,
    layout: Layout | None = None,
    drop_lost: bool = False,
    options: CleaningOptions = _NOTHING_MORE,
) -> Iterator[changes.EditedRow]:
    """Clean row by row; `decisions` are applied first: they drop a row or replace its answer."""
    objects, rows = find_objects(() if layout else roles.answers, rows, _FIRST)
    for row in rows:
        decision = (decisions or {}).get(changes.line_of(row))
        if decision and decision.decision == "drop":
            yield changes.drop(row, "decided")
            continue
        reasons: dict[str, None] = {}
        fields = {name: _clean_value(v, name, reasons, options.special) for name, v in row.fields.items()}
        if decision and decision.decision == "relabel":
            places = (label.keys for label in changes.label_places(fields, roles) if label.text.strip())
            keys = next(places, (roles.answers[0],))
            fields = _relabel(row, fields, keys, decision.label, reasons)
        for text, keys in changes.list_written_answers(fields, roles) if options.leading_spaces else ():
            if text[:1].isspace():
                reasons[f"leading spaces cut in {keys[0]!r}"] = None
                fields = changes.put_text(fields, keys, text.lstrip())
        for text, keys in changes.label_places(fields, roles) if options.spellings else ():
            if label := options.spellings.get(text.strip()):
                fields = _relabel(row, fields, keys, label, reasons)
        cleaned = Row(row.where, fields)
        empty_columns = [name for name in roles.answers if cleaned.fields.get(name) == [] and layout is None]
        may_be_empty = any(name in objects or names_labels(name) for name in empty_columns)
        if reason := _unusable(cleaned, roles, layout, drop_lost=drop_lost, may_be_empty=may_be_empty):
            yield changes.drop(row, reason)
            continue
        if low_reason := options.low.get(changes.line_of(row)):
            yield changes.drop(row, low_reason)
            continue
        ident = cleaned.fields.get("id")
        if options.ids and isinstance(ident, str | int) and (new_id := options.ids.give(ident)) != ident:
            reasons[NEW_ID] = None
            cleaned = cleaned._replace(fields={**cleaned.fields, "id": new_id})
        change = changes.Change(row.where, "changed", tuple(reasons))
        yield changes.EditedRow(cleaned, change) if reasons else changes.EditedRow(row)


def spellings_in(rows: Iterable[Row], roles: Roles, source: str) -> dict[str, str]:
    """Map the rarer spellings of cleaned labels to the most frequent one; other answers are refused."""
    where, step = f"{source}, --spellings", "leave --spellings out, or name the column: --reference COLUMN"
    answers: list[str] = []
    for row in rows:  # the choices and the first answer of each column; for pairs, of the first column
        first_labels: dict[changes.Keys, str] = {}
        for text, keys in changes.label_places(row.fields, roles):
            column_keys = keys if keys[0] in CHOICES else keys[:1]
            if not first_labels.get(column_keys):
                first_labels[column_keys] = clean_text(text)[0].strip()
        answers += islice(filter(None, first_labels.values()), 1 if roles == PAIRS else None)
    if not answers:
        raise UserError(where, "no column that answers", "a column of labels", step)
    if not label_set(answers, roles.answers[0]):
        found = f"{pluralize(len(set(answers)), 'different answer')} of {pluralize(len(answers), 'row')}"
        limits = f"at most {MOST_LABELS} labels of at most {LONGEST_LABEL} characters"
        raise UserError(where, found, f"{limits}, each of {ROWS_A_LABEL} rows in the mean", step)
    return changes.commonest_spellings(changes.several_spellings(answers))


def low_quality(rows: Iterable[Row], roles: Roles, min_score: float, score: ScoreAnswers) -> dict[int, str]:
    """Map the lines of rows whose answer scores below `min_score` to the trait that sets the score."""
    qa_by_line = {changes.line_of(row): read_question_and_answers(row, roles) for row in rows}
    answered_lines = {line: qa for line, qa in qa_by_line.items() if qa.question and qa.answers}
    scores = zip(answered_lines, score([*answered_lines.values()]), strict=True)
    return {line: f"quality below {min_score:g}: {q.trait}" for line, q in scores if q.score < min_score}


def _relabel(
    row: Row, fields: dict[str, Any], keys: tuple[str | int, ...], label: str, reasons: dict[str, None]
) -> dict[str, Any]:
    column = keys[0]
    value: Any = fields
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else value[key]
    is_number = type(value) is int and re.fullmatch(r"-?\d+", label)
    if not is_number and not isinstance(value, str | None):
        found, expected = f"a {type(value).__name__} in {column!r}, to be relabelled {label!r}", "a text"
        raise UserError(row.where, found, expected, "change it in the file by hand")
    if value != (new_value := int(label) if is_number else label):
        reasons[f"relabelled in {column!r}"] = None
        fields = changes.put_text(fields, keys, new_value)
    return fields


def _unusable(row: Row, roles: Roles, layout: Layout | None, *, drop_lost: bool, may_be_empty: bool) -> str:
    """Describe which part of a row is empty or lost, or why the layout cannot read it."""
    question, answers, *_ = read_question_and_answers(row, roles)
    if roles.questions and not question.strip():
        return "an empty question"
    folded_answers, is_pair = [" ".join(answer.split()) for answer in answers], roles.answers == PAIRS.answers
    if roles.answers and not may_be_empty and not (all if is_pair else any)(folded_answers):
        return "an empty answer"
    if is_pair and len({*folded_answers}) == 1:
        return "two equal answers"
    if drop_lost and _LOST in join_texts([question, *answers]):
        return "lost signs (U+FFFD)"
    try:
        formats.read(row, layout)
    except UserError as error:
        return "" if error.problems[0].found == THUMB_DOWN else error.problems[0].found
    return ""


def _clean_value(value: Any, name: str, reasons: dict[str, None], special: tuple[str, ...] | None) -> Any:
    """Clean the texts of a value, also within lists and objects; note the fixes by column."""
    if isinstance(value, str):
        stripped = value
        if special is not None:
            stripped = compile_special(special).sub("", cut_special(value, special))
        cleaned, fixes = clean_text(stripped)
        fixes = ["special tokens removed", *fixes] if stripped != value else fixes
        reasons.update(dict.fromkeys(f"{reason} in {name!r}" for reason in fixes))
        return cleaned
    if isinstance(value, list):
        return [_clean_value(inner, name, reasons, special) for inner in value]
    if isinstance(value, dict):
        return {key: _clean_value(inner, name, reasons, special) for key, inner in value.items()}
    return value


def clean_text(text: str) -> tuple[str, list[str]]:
    """Return the cleaned text and the applied fixes, repeated because one may uncover other damage."""
    fixes: dict[str, None] = {}
    previous = None
    while text != previous and not (text.isascii() and text.isprintable() and text[-1:] != " "):
        previous = text
        for reason, step in _steps().items():
            fixed = step(text)
            if fixed != text:
                text, fixes[reason] = fixed, None
    return text, list(fixes)


def fix_encoding(text: str) -> str:
    """Fix UTF-8 that was decoded as another encoding."""
    import ftfy

    return text if text.isascii() else ftfy.fix_encoding(text)


def fix_signs(text: str) -> str:
    """Remove control characters and terminal sequences, and write line ends as a line feed."""
    return text if text.translate(_PRINTED).isprintable() else str(_steps()[_SIGNS](text))


@cache
def _steps() -> dict[str, Any]:
    import ftfy

    off = ("unescape_html", "fix_encoding", "fix_latin_ligatures", "fix_character_width", "uncurl_quotes")
    signs = ftfy.TextFixerConfig(**dict.fromkeys(off, False), normalization=None)
    return {
        "encoding fixed": fix_encoding,
        _SIGNS: lambda text: ftfy.fix_text(text, signs),
        "composed as NFC": lambda text: unicodedata.normalize("NFC", text),
        "trailing spaces cut": str.rstrip,
    }
