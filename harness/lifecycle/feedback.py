"""Users' feedback, imported from logs of served models into the store: masked, keyed, each row once.

Reads OpenAI's JSON Lines (API reference, chat completions and preference data), our own, and tables with the
same columns. Invariant: neither stored rows nor messages contain unmasked text, and senders are keyed
digests. A file is added completely or not at all.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import astuple, dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple

from harness.data import readers
from harness.data.check.personal_data import check_region, redact
from harness.data.edit.save import digest_of
from harness.data.text_files import Row
from harness.data.turns import read_turn
from harness.errors import Problem, UserError
from harness.formatting import count, pluralize
from harness.progress import Advance
from harness.records import Example, FeedbackRow, Message, canonical_json, parse_json
from harness.store import Store, claim, feedback_key, read_feedback, save_feedback

COLUMNS = "request, answer, thumb, correction, preference, model, time, sender and assignment"
# Objects within a row whose keys count as columns of the row; earlier ones take precedence.
_WITHIN = ("feedback", "metadata", "response", "body", "request", "input")
_REQUESTS = ("messages", "request", "prompt", "input")
_ANSWERS = ("answer", "choices", "non_preferred_output", "response", "completion", "output")
_TIMES = ("time", "timestamp", "created_at", "created")
_SENDERS = ("sender", "user", "user_id", "safety_identifier")
_THUMBS = {
    **dict.fromkeys(("up", "👍", "1", "true"), True),
    **dict.fromkeys(("down", "👎", "0", "false"), False),
    **dict.fromkeys(("", "none", "neutral"), None),
}
_LONGEST_NAME = 200  # most characters of a model's name
_COLUMN = re.compile(r"[A-Za-z][\w.-]{0,39}")
_SECONDS, _MILLISECONDS = 1e8, 1e11  # smallest numbers that are read as Unix times


@dataclass
class LogNotes:
    """Remarks on a log: unread columns, and places of rows left out, by reason."""

    unread: Counter[str] = field(default_factory=Counter)
    left_out: dict[str, list[str]] = field(default_factory=dict)


class _Unusable(Exception):
    """Error of a request that lacks what a row of feedback needs."""


def read_log(path: str, notes: LogNotes, region: str = "") -> Iterator[FeedbackRow]:
    """Yield the answered requests of a log, unmasked and without ids; misread values are refused together."""
    problems: list[Problem] = []
    try:
        for row in readers.stream(path, "train"):
            try:
                yield _read_row(row, notes)
            except _Unusable as reason:
                notes.left_out.setdefault(str(reason), []).append(row.where)
            except UserError as error:
                problems += error.problems
    except UserError as error:  # errors of the file may quote cells
        masked = (
            replace(p, found=redact(p.found, region)[0], next_step=redact(p.next_step, region)[0])
            for p in error.problems
        )
        raise UserError(list(masked)) from None
    if problems:
        shown_path = readers.display_path(path)
        raise UserError(readers.cap_problems(problems, shown_path, "values that are not understood"))


def _read_row(row: Row, notes: LogNotes) -> FeedbackRow:
    fields, read_names = _flatten(row.fields), set[str]()

    def take(*names: str) -> Any:
        read_names.update(name for name in names if name in fields)
        return next((fields[name] for name in names if name in fields), None)

    def text(*names: str) -> str:
        value = take(*names)
        if isinstance(value, Mapping | list):
            raise UserError(_misread(row.where, names[0], "an object or a list", "a text"))
        return "" if value is None else str(value).strip()

    answers = _read_answers(take(*_ANSWERS), row.where)
    request, messages = take(*_REQUESTS), tuple[Message, ...]()
    if isinstance(request, str):
        messages = ({"role": "user", "content": request},) if request.strip() else ()
    elif request is not None:
        entries = request if isinstance(request, list) else [request]
        turns = [_read_turn(entry, row.where) for entry in entries]
        messages = tuple({"role": role, "content": text} for role, text in turns)
    preferred, correction = take("preference"), _read_one(take("correction"), "correction", row.where)
    preferred_output = _read_one(take("preferred_output"), "preferred_output", row.where)
    if messages and messages[-1]["role"] == "assistant":
        if answers and answers[0] != messages[-1]["content"]:
            raise _Unusable("a request that ends with a turn of the assistant")
        answers = answers or [messages[-1]["content"]]
        messages = messages[:-1]
    if not messages:
        raise _Unusable("no request")
    answer, preference = _choose(answers, preferred, preferred_output, row.where)
    thumb = take("thumb")
    spelt = str(thumb if thumb is not None else "").strip().lower().removesuffix(".0")
    if spelt not in _THUMBS:
        expected = "up, down, 1, 0, true, false or nothing"
        raise UserError(_misread(row.where, "thumb", "another value", expected))
    model = _check_name(text("model"), "model", row.where)
    when, sender = _read_time(take(*_TIMES), row.where), text(*_SENDERS)
    assignment = _check_name(text("assignment"), "assignment", row.where)
    unread = fields.keys() - read_names
    notes.unread.update(n if _COLUMN.fullmatch(n) and _is_name(n) else "…" for n in unread)
    values = (answer, _THUMBS[spelt], correction, preference, model, when, sender, assignment, row.where)
    return FeedbackRow("", canonical_json(messages), *values)


def _flatten(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Lift the keys of objects within a row; outer and earlier keys take precedence."""
    parsed = {name: _parse(name, value) for name, value in fields.items()}
    parsed = {name: value for name, value in parsed.items() if value is not None and value != ""}
    flat = {k: v for k, v in parsed.items() if not (k in _WITHIN and isinstance(v, Mapping))}
    for name in _WITHIN:
        if isinstance(value := parsed.get(name), Mapping):
            flat = {**({"answer": value} if "role" in value else _flatten(value)), **flat}
    return flat


def _parse(name: str, value: Any) -> Any:
    """Parse JSON in a column that may contain it, as in CSV files."""
    if isinstance(value, str) and name in (*_WITHIN, *_REQUESTS, *_ANSWERS) and value.lstrip()[:1] in "[{":
        with suppress(ValueError):
            parsed = parse_json(value)
            first = parsed[0] if isinstance(parsed, list) and parsed else parsed
            if isinstance(first, Mapping) and {"role", "message", "messages", "choices"} & first.keys():
                return parsed
    return value


def _read_turn(entry: Any, where: str) -> tuple[str, str]:
    if not isinstance(entry, Mapping):
        raise _Unusable("a turn without a role")
    try:
        turn = read_turn(entry, where)
    except UserError:
        raise _Unusable("a turn that is not text, such as an image, or has no known role") from None
    return turn.role, turn.text


def _read_answers(value: Any, where: str) -> list[str]:
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list):
        return [] if value is None or not str(value).strip() else [str(value)]
    texts = [v.get("message", v.get("text", v)) if isinstance(v, Mapping) else v for v in value]
    return [text if isinstance(text, str) else _read_turn(text, where)[1] for text in texts]


def _read_one(value: Any, column: str, where: str) -> str:
    texts = _read_answers(value, where)
    if len(texts) > 1:
        raise UserError(_misread(where, column, f"a list of {len(texts)}", "one text"))
    return texts[0].strip() if texts else ""


def _choose(answers: list[str], preferred: Any, preferred_output: str, where: str) -> tuple[str, str]:
    if not answers or not answers[0].strip():
        raise _Unusable("no answer")
    if len(answers) == 1:
        if isinstance(preferred, int | float):
            raise UserError(_misread(where, "preference", "a number, and one answer", "the text preferred"))
        return answers[0], _read_one(preferred, "preference", where) or preferred_output
    if len(answers) > 2 or preferred is None:
        raise _Unusable("several answers, and no preference of 0 or 1 between two of them")
    number = str(preferred).strip().removesuffix(".0")
    if number not in ("0", "1"):
        raise UserError(_misread(where, "preference", "another value", "0 or 1, the better answer's number"))
    return answers[1 - int(number)], answers[int(number)]


def _read_time(value: Any, where: str) -> str:
    """Format a time as ISO 8601 in UTC; times without a zone count as UTC."""
    if value is None:
        return ""
    text, seconds = str(value).strip(), None
    with suppress(ValueError):
        seconds = float(text)
    try:
        if seconds is None:
            moment = datetime.fromisoformat(text)
            moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        elif seconds < _SECONDS:
            raise ValueError
        else:
            moment = datetime.fromtimestamp(seconds / 1000 if seconds >= _MILLISECONDS else seconds, UTC)
        return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        raise UserError(_misread(where, "time", "another value", "ISO 8601, or seconds since 1970")) from None


def _check_name(name: str, column: str, where: str) -> str:
    """Refuse a model or assignment name that may be personal data; masking could merge two names."""
    if name and not _is_name(name):
        found = "an invalid name, or one like personal data or a key"
        raise UserError(_misread(where, column, found, "a short name"))
    return name


@lru_cache(4096)
def _is_name(name: str) -> bool:
    return len(name) <= _LONGEST_NAME and name.isprintable() and not redact(name)[1]


def _misread(where: str, column: str, found: str, expected: str) -> Problem:
    return Problem(where, f"{found} in {column!r}", expected, "fix the row, or leave it out")


_EVERY = 500  # rows between progress reports


class AddedFeedback(NamedTuple):
    """Numbers of rows of a log; `left_out` maps reasons to places, `unread` columns to numbers of rows."""

    file: str
    added: int
    known: int
    left_out: dict[str, list[str]]
    unread: dict[str, int]
    masked: dict[str, int]
    thumbs: int
    corrections: int
    preferences: int
    without_sender: int


def add_feedback(store: Store, path: str, region: str, advance: Advance) -> AddedFeedback:
    """Mask the rows of a log and store new ones; equal rows within one log all count."""
    region = check_region(region)
    notes, masked, n_with = LogNotes(), Counter[str](), Counter[str]()
    shown_path = readers.display_path(path)
    n_rows = sum(1 for _ in read_log(path, notes, region))
    if not n_rows:
        reasons = ", ".join(f"{reason} ({count(len(w))})" for reason, w in notes.left_out.items())
        found = f"no row that can be used: {reasons or 'the file is empty'}"
        step = "name its columns so, or see docs/howto/feedback.md for the forms that are read"
        raise UserError(shown_path, found, f"requests with answers, in the columns {COLUMNS}", step)
    with claim(store, "feedback"):
        key = bytes.fromhex(feedback_key(store))
        stored_ids = {row.row_id for row in read_feedback(store, texts=False)}

        def hide(text: str) -> str:
            hidden, kinds = redact(text, region)
            masked.update(kinds)
            return hidden

        def rows() -> Iterator[FeedbackRow]:
            counts = Counter[str]()
            for n_done, logged in enumerate(read_log(path, LogNotes(), region)):
                if n_done % _EVERY == 0:
                    advance(n_done, n_rows, f"{count(n_done)} of {pluralize(n_rows, 'row')}")
                # A row is recognised under other masks by its number among equal rows of its log.
                row_id = _digest(key, canonical_json([logged.conversation, *astuple(logged)[2:-1]]))
                counts[row_id] += 1
                if (number := counts[row_id]) > 1:
                    row_id = _digest(key, f"{row_id}/{number}")
                if row_id not in stored_ids:
                    turns = [{**turn, "content": hide(turn["content"])} for turn in logged.conversation]
                    row = replace(
                        logged,
                        row_id=row_id,
                        messages=canonical_json(turns),
                        answer=hide(logged.answer),
                        correction=hide(logged.correction),
                        preference=hide(logged.preference),
                        sender=_digest(key, logged.sender) if logged.sender else "",
                    )
                    n_with.update(thumb=row.thumb is not None, correction=bool(row.correction))
                    n_with.update(preference=bool(row.preference), no_sender=not row.sender)
                    yield row

        added = save_feedback(store, digest_of(path)[:16], rows())
    return AddedFeedback(
        *(shown_path, added, n_rows - added, notes.left_out, dict(notes.unread), dict(masked)),
        *(n_with["thumb"], n_with["correction"], n_with["preference"], n_with["no_sender"]),
    )


def mask_example(example: Example, region: str) -> Example:
    """Return an example with masked messages, in the form in which feedback is stored."""
    masked = ({**turn, "content": redact(turn["content"], region)[0]} for turn in example.messages)
    return replace(example, messages=tuple(masked))


def _digest(key: bytes, text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), key=key, digest_size=8).hexdigest()
