"""Share of answers that keep every constraint of a verifiable instruction.

Invariant: a check reads the answer alone; an empty answer keeps nothing. In scripts without blanks a phrase
may stand anywhere, and two or three letters count as a word.
Source: the idea of instructions a program can check is Zhou et al. 2023, arXiv:2311.07911; these checks are
our own.
"""

import json
import re
import signal
import threading
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

from harness.errors import Problem, Unscored, UserError, did_you_mean
from harness.metrics import mean_metric, refuse_constant, unfence_json
from harness.records import (
    COMMAS,
    EDGES,
    LANGUAGES,
    LIST_MARK,
    MARKS,
    Example,
    Output,
    fold_text,
    is_unspaced,
    pieces,
)

Constraint = Mapping[str, Any]

_LIST_MARK = re.compile(LIST_MARK)
_NO_JSON = object()
_MOST_S = 5  # of a processor, to check an answer by a schema


def _score(output: Output, example: Example) -> float | None:
    constraints = [c for c in example.constraints if c.get("kind") != "sqlite"]  # of `sql_execution`
    if not constraints:
        return None
    text = output.text.strip()
    for constraint in constraints if text else ():
        kind = str(constraint.get("kind"))
        if kind not in CHECKS:
            where = f"constraint {dict(constraint)}"
            raise UserError(where, f"kind {kind!r}", "a kind of check", did_you_mean(kind, CHECKS))
        if not CHECKS[kind](text, constraint):
            return 0.0
    return float(bool(text))


metric = mean_metric("follows", _score)


def _words(text: str) -> list[str]:
    """List words, without accents and vowel signs that are characters of their own."""
    letters = text if text.isascii() else "".join(sign for sign in text if not _is_mark(sign))
    return re.findall(r"\w+(?:['\u2019-]\w+)*", letters)


def _is_mark(sign: str) -> bool:
    return unicodedata.category(sign)[0] == "M"


def _has(text: str, phrase: str) -> bool:
    phrase, text = fold_text(phrase), fold_text(text)
    if is_unspaced([phrase]):
        return phrase in text
    matches = re.finditer(rf"(?<!\w){re.escape(phrase)}(?!\w)", text)
    neighbours = (text[max(0, m.start() - 1) : m.start()] + text[m.end() : m.end() + 1] for m in matches)
    return any(not any(map(_is_mark, signs)) for signs in neighbours)


def _begins_with_word(text: str, constraint: Constraint) -> bool:
    first_word = (_words(fold_text(text)) or [""])[0]
    words = ["".join(_words(fold_text(word))) or fold_text(word) for word in constraint["words"]]
    return first_word in words or any(is_unspaced([word]) and first_word.startswith(word) for word in words)


def _ends_with_mark(text: str, constraint: Constraint) -> bool:
    mark = constraint["text"]
    equal_marks = next((marks for marks in MARKS if mark in marks), (mark,))
    return text.rstrip("\"'\u201d\u2019\u300d\u300f» ").endswith(tuple(equal_marks))


def _stands_in_order(text: str, constraint: Constraint) -> bool:
    text = fold_text(text)
    gaps = rf"(?:\b\W+)?(?:{_find_conjunction(text)}|\b\W+)"
    series = gaps.join(re.escape(fold_text(word)) for word in constraint["words"])
    return re.search(rf"\b{series}\b", text) is not None


def _comma_items(text: str, constraint: Constraint) -> bool:
    """A word such as "e" or "y" may also be part of an item, so commas and "and" alone are enough."""
    for joined in (LANGUAGES["en"].conjunction, _find_conjunction(text)):
        items = [part.strip(EDGES) for part in re.split(rf"[{COMMAS}]{joined}|[{COMMAS}]|{joined}", text)]
        if len(items) == int(constraint["n"]) and all(1 <= len(_words(item)) <= 3 for item in items):
            return True
    return False


def _find_conjunction(text: str) -> str:
    patterns = [forms.conjunction for forms in LANGUAGES.values()]
    return next((pattern for pattern in patterns if re.search(pattern, text)), patterns[0])


def _n_words(text: str, constraint: Constraint) -> bool:
    min_words, max_words = int(constraint.get("min", 1)), int(constraint.get("max", 10**6))
    words = filter(_words, pieces(text)) if is_unspaced([text]) else _words(text)
    return min_words <= len([*words]) <= max_words


def _line_items(text: str, constraint: Constraint) -> bool:
    items = [line for line in text.splitlines() if _LIST_MARK.match(line)]
    return len(items) == constraint["n"] and all(_LIST_MARK.sub("", line).strip() for line in items)


def _json_keys(text: str, constraint: Constraint) -> bool:
    value = _json(text)
    return isinstance(value, dict) and set(value) == set(constraint["keys"])


def _json_schema(text: str, constraint: Constraint) -> bool:
    """Tell whether a text is JSON of a schema (draft 2020-12 if it names none); nothing is fetched."""
    from jsonschema import Draft202012Validator, SchemaError
    from jsonschema.validators import validator_for
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    schema, value = constraint["schema"], _json(text)
    validator, is_schema = validator_for(schema, default=Draft202012Validator), False
    try:
        validator.check_schema(schema)
        is_schema = True
        with _limit_time():
            return value is not _NO_JSON and validator(schema, registry=Registry()).is_valid(value)
    except (SchemaError, Unresolvable, RecursionError, OverflowError) as error:
        is_deep = isinstance(error, RecursionError | OverflowError)
        if is_schema and is_deep:  # an answer that is too deep or too large to be checked
            return False
        found = "a schema that is too deep" if is_deep else str(error).splitlines()[0]
        where = f"constraint {dict(constraint)}"
        raise UserError(where, found, "a JSON Schema", "fix schema") from None


@contextmanager
def _limit_time() -> Iterator[None]:
    """Stop a check that takes too long, as a pattern may; signals reach only Python's main thread."""

    def end(number: int, frame: FrameType | None) -> None:
        step = "fix schema: no repetition within a repetition in its patterns"
        found = "a schema that does not decide on this answer"
        raise Unscored(str(Problem("json_schema", found, f"one that takes at most {_MOST_S} s", step)))

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGVTALRM, end)
    signal.setitimer(signal.ITIMER_VIRTUAL, _MOST_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _json(text: str) -> Any:
    """Read JSON, also out of a code fence; `_NO_JSON` for any other text, as with NaN or Infinity."""
    try:
        return json.loads(unfence_json(text), parse_constant=refuse_constant)
    except (ValueError, RecursionError):
        return _NO_JSON


CHECKS: dict[str, Callable[[str, Constraint], bool]] = {
    "starts_with": lambda text, c: fold_text(text.lstrip(EDGES)).startswith(
        fold_text(c["text"].lstrip(EDGES) or c["text"])
    ),
    "starts_with_any": _begins_with_word,
    "ends_with": lambda text, c: fold_text(text.rstrip(EDGES)).endswith(fold_text(c["text"].rstrip(EDGES))),
    "ends_with_mark": _ends_with_mark,
    "includes": lambda text, c: all(_has(text, word) for word in c["words"]),
    "includes_exactly": lambda text, c: all(word in text for word in c["words"]),
    "in_order": _stands_in_order,
    "avoids": lambda text, c: not any(_has(text, word) for word in c["words"]),
    "upper": lambda text, _: text.upper() == text and text.lower() != text,
    "lower": lambda text, _: text.lower() == text and text.upper() != text,
    "n_words": _n_words,
    "comma_items": _comma_items,
    "line_items": _line_items,
    "json_keys": _json_keys,
    "json_schema": _json_schema,
}
