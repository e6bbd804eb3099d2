"""Feedback of users, from a log into the store: masked, digested by the store's key, and each row once.

Invariant: what is written holds no raw text: masking comes first, and who asked is a keyed digest. A file is
added whole or not at all.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import astuple, replace
from typing import NamedTuple

from harness.data import readers
from harness.data.check.personal_data import check_region, redact
from harness.data.edit import digest_of
from harness.errors import Problem, UserError
from harness.formatting import count, pluralize
from harness.production.logs import COLUMNS, LoggedRow, LogNotes, count_rows, read_log
from harness.progress import Advance
from harness.records import Example, FeedbackRow, canonical_json
from harness.store import Store, claim, feedback_key, list_feedback_ids, save_feedback

_EVERY = 500  # rows between two reports of progress
_SHOWN = 3  # places of rows that were left out, by reason


class AddedFeedback(NamedTuple):
    """Result of adding a log: its rows by what became of them, and what they hold.

    `known` rows were there already. `left_out` maps a reason to places, `unread` names columns with their
    number of rows, and `masked` counts pieces by kind.
    """

    file: str
    added: int
    known: int
    left_out: dict[str, list[str]]
    unread: dict[str, int]
    masked: dict[str, int]
    thumbs: int
    corrections: int
    preferences: int
    models: dict[str, int]
    without_sender: int


def add_feedback(store: Store, path: str, region: str, advance: Advance) -> AddedFeedback:
    """Mask the rows of a log and store those that are not there yet; two equal rows of one log both count.

    Raises:
        UserError: the region or the file cannot be read, a value is not understood, or no row can be used.
        HarnessError: the disk is full; nothing is left behind.
    """
    region = check_region(region)
    notes, masked, held = LogNotes(), Counter[str](), Counter[str]()
    models, n_rows, total = Counter[str](), 0, count_rows(path, region)
    with claim(store, "feedback"):
        key = bytes.fromhex(feedback_key(store))
        known = list_feedback_ids(store)

        def rows() -> Iterator[FeedbackRow]:
            nonlocal n_rows
            seen = Counter[str]()
            for logged in read_log(path, notes, region):
                n_rows += 1
                if n_rows % _EVERY == 0:
                    advance(n_rows, total, f"{count(n_rows)} of {count(total)} rows")
                if (row_id := _identify(logged, key, seen)) not in known:
                    row = _mask(row_id, logged, region, key, masked)
                    held.update(thumb=row.thumb is not None, correction=bool(row.correction))
                    held.update(preference=bool(row.preference), no_sender=not row.sender)
                    models[row.model] += 1
                    yield row

        added = save_feedback(store, digest_of(path)[:16], rows())
    shown = readers.display_path(path)
    if not n_rows:
        reasons = ", ".join(f"{reason} ({count(len(w))})" for reason, w in notes.left_out.items())
        found = f"no row that can be used: {reasons or 'the file is empty'}"
        step = "name its columns so, or see docs/howto/feedback.md for the forms that are read"
        raise UserError(Problem(shown, found, f"requests with answers, in the columns {COLUMNS}", step))
    kept = (held["thumb"], held["correction"], held["preference"])
    return AddedFeedback(
        *(shown, added, n_rows - added, notes.left_out, dict(notes.unread), dict(masked)),
        *(*kept, dict(models), held["no_sender"]),
    )


def describe_added(result: AddedFeedback) -> list[str]:
    """Write the result of adding a log as lines."""
    known = f", {count(result.known)} are there already" if result.known else ""
    lines = [f"{result.file}: {pluralize(result.added, 'row')} added{known}"]
    if result.added:
        parts = ("thumb", "correction", "preference")
        lines.append("  " + ", ".join(pluralize(getattr(result, f"{part}s"), part) for part in parts))
        named = (f"{name or 'without a name'} ({pluralize(n, 'row')})" for name, n in result.models.items())
        lines.append(f"  models: {', '.join(named)}")
    if result.masked:
        lines.append("  masked: " + ", ".join(f"{count(n)} {kind}" for kind, n in result.masked.items()))
    if result.without_sender:
        n_rows = pluralize(result.without_sender, "row")
        lines.append(f"  {n_rows} without a sender: no cap per sender holds for them")
    for reason, places in result.left_out.items():
        more = ", …" if len(places) > _SHOWN else ""
        lines.append(
            f"  left out: {pluralize(len(places), 'row')}, {reason} ({', '.join(places[:_SHOWN])}{more})"
        )
    if result.unread:
        lines.append(f"  columns that are not read: {', '.join(sorted(result.unread))}")
    return lines


def _identify(logged: LoggedRow, key: bytes, seen: Counter[str]) -> str:
    """Digest a raw row, so that other masks know it again, and its number among equal rows of its log."""
    content = _digest(key, canonical_json(astuple(logged)[1:]))
    seen[content] += 1
    return content if seen[content] == 1 else _digest(key, f"{content}/{seen[content]}")


def _mask(row_id: str, logged: LoggedRow, region: str, key: bytes, masked: Counter[str]) -> FeedbackRow:

    def hide(text: str) -> str:
        hidden, kinds = redact(text, region)
        masked.update(kinds)
        return hidden

    return FeedbackRow(
        row_id=row_id,
        messages=canonical_json([{**turn, "content": hide(turn["content"])} for turn in logged.messages]),
        answer=hide(logged.answer),
        thumb=logged.thumb,
        correction=hide(logged.correction),
        preference=hide(logged.preference),
        model=logged.model,
        time=logged.time,
        sender=_digest(key, logged.sender) if logged.sender else "",
        assignment=logged.assignment,
        source=logged.where,
    )


def mask_example(example: Example, region: str) -> Example:
    """Return an example with its messages masked, as a log of its request is stored."""
    masked = ({**turn, "content": redact(turn["content"], region)[0]} for turn in example.messages)
    return replace(example, messages=tuple(masked))


def _digest(key: bytes, text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), key=key, digest_size=8).hexdigest()
