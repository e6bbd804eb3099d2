"""Changes of a row with reasons, the places of its answers, spellings of labels, and decisions on rows.

Invariant: a label keeps its most frequent spelling, or the first of equally frequent ones. The answers of a
conversation are the assistant's turns, of a message tree its replies, of a pair both answers. Decisions of
the dashboard's Data page are valid only for the reviewed content and answer column; those on other content
are kept under another name, and foreign files are never overwritten.
"""

import json
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from harness.data import readers
from harness.data.column_roles import RATED, Roles, columns_of
from harness.data.row_forms import CHOICES, PREFERRED, has_choices, is_transcript, list_choice_columns
from harness.data.text_files import Row
from harness.data.turns import answer_places
from harness.errors import Problem, UserError, refuse
from harness.records import checksum, normalize, parse_json

Kind = Literal["dropped", "changed", "reported", "added"]
NOT_DRAWN = "not drawn"  # the reason of a row that another draw may take


class Change(NamedTuple):
    """Change of one row, with reasons; `of` is the place of the row that it repeats or contradicts.

    `similarity` is the Jaccard index of the two rows' shingles, in [0, 1], None if they are equal. A
    `reported` row is written unchanged; an `added` one was made from the row at `where`.
    """

    where: str
    kind: Kind
    reasons: tuple[str, ...]
    of: str = ""
    similarity: float | None = None

    def plain(self) -> dict[str, Any]:
        """Return the plain form for a manifest, without unknown values."""
        plain: dict[str, Any] = {"row": self.where, "change": self.kind, "reason": self.reason, "of": self.of}
        plain["similarity"] = None if self.similarity is None else round(self.similarity, 3)
        return {key: value for key, value in plain.items() if value not in ("", None)}

    @property
    def reason(self) -> str:
        """The reasons on one line."""
        return "; ".join(self.reasons)

    def __str__(self) -> str:
        similarity = "" if self.similarity is None else f" ({self.similarity:.2f})"
        return f"{self.where}: {self.kind}, {self.reason}{f' of {self.of}' if self.of else ''}{similarity}"


class EditedRow(NamedTuple):
    """One row to write, or None if it is dropped, and its change, if any."""

    row: Row | None
    change: Change | None = None


def drop(row: Row, reason: str, repeated_place: str = "", similarity: float | None = None) -> EditedRow:
    """Drop a row for a reason."""
    return EditedRow(None, Change(row.where, "dropped", (reason,), repeated_place, similarity))


def several_spellings(answers: Iterable[str]) -> list[list[tuple[str, int]]]:
    """List the spellings of each label that has several, with their numbers of rows, most frequent first."""
    counts: dict[str, Counter[str]] = {}
    for answer in answers:
        # Normalised like labels, and without separators of words and final punctuation.
        label = re.sub(r"(?<=[^\W\d_])[\s_-]+(?=[^\W\d_])", "", normalize(answer).rstrip(".,;:"))
        counts.setdefault(label, Counter())[answer] += 1
    return [spellings.most_common() for label, spellings in counts.items() if label and len(spellings) > 1]


def commonest_spellings(labels: Iterable[Sequence[tuple[str, int]]]) -> dict[str, str]:
    """Map each rarer spelling to the most frequent one of its label."""
    return {spelling: commonest for (commonest, _), *rarer in labels for spelling, _ in rarer}


def unify_spellings(answers: Sequence[str]) -> list[str]:
    """Return answers, each label in its most frequent spelling."""
    commonest = commonest_spellings(several_spellings(answers))
    return [commonest.get(answer, answer) for answer in answers]


_SAID = ("content", "value", "text", "response")
_PAIR = ("chosen", "rejected")
Keys = tuple[str | int, ...]


class PlacedText(NamedTuple):
    """A text, or a whole number as a text, and the keys to it from the row's fields."""

    text: str
    keys: Keys


def list_written_answers(fields: Mapping[str, Any], roles: Roles) -> list[PlacedText]:
    """List the answers of a row in order, then its choices; for turns, all of the assistant's."""
    texts: list[PlacedText] = []
    is_openai = roles.answers == _PAIR and fields.keys() >= PREFERRED
    for column in ("preferred_output", "non_preferred_output") if is_openai else roles.answers:
        value: Any = fields.get(column)
        keys: Keys = (column,)
        if isinstance(value, dict) and column in roles.questions:
            texts += _replies(value, keys)
        elif _are_turns(value):
            # Without a question before it, as in a pair, the first turn may answer.
            n_before = 0 if column in roles.questions else 1
            turn_indices = [i - n_before for i in answer_places([{}] * n_before + list(value))]
            texts += [text for i in turn_indices for text in _texts(value[i], (column, i))]
        elif column not in roles.questions:
            texts += _texts(value, keys)
    # Choices are in a list, keyed by labels, or in one column each.
    for column in CHOICES:
        value = fields.get(column)
        if isinstance(value, dict) and "text" not in value:
            texts += [placed for label, text in value.items() for placed in _texts(text, (column, label))]
        else:
            texts += _texts(value, (column,))
    if has_choices({*fields} - {*CHOICES}):
        for column in list_choice_columns({k: v for k, v in fields.items() if k not in CHOICES}):
            texts += _texts(fields[column], (column,))
    return texts


def label_places(fields: Mapping[str, Any], roles: Roles) -> list[PlacedText]:
    """List the answers that are the row's label or spell it; for turns only the last one."""
    labels = []
    for answer in list_written_answers(fields, roles):
        value: Any = fields[str(answer.keys[0])]
        if not _are_turns(value) or answer.keys[1] == len(value) - 1:
            labels.append(answer)
    return labels


def put_text(fields: Any, keys: Keys, text: str | int) -> Any:
    """Return the fields with another text, or number, at the keys."""
    if not keys:
        return text
    key, rest_keys = keys[0], keys[1:]
    if isinstance(fields, list):
        return [put_text(inner, rest_keys, text) if i == key else inner for i, inner in enumerate(fields)]
    return {**fields, key: put_text(fields.get(key), rest_keys, text)}


def _are_turns(value: Any) -> bool:
    entries = value if isinstance(value, list) else []
    return any(isinstance(entry, dict) and {"role", "from"} & entry.keys() for entry in entries)


def _replies(message: Mapping[str, Any], keys: Keys) -> Iterator[PlacedText]:
    """Yield the assistant's messages below a message, without deleted ones."""
    replies = message.get("replies")
    for i, reply in enumerate(replies if isinstance(replies, list) else ()):
        if isinstance(reply, dict) and not reply.get("deleted"):
            reply_keys = (*keys, "replies", i)
            if reply.get("role") == "assistant":
                yield from _texts(reply.get("text"), (*reply_keys, "text"))
            yield from _replies(reply, reply_keys)


def _texts(value: Any, keys: Keys) -> Iterator[PlacedText]:
    if isinstance(value, str) or type(value) is int:
        text = str(value)
        # A transcript begins with the prompt.
        yield PlacedText(text.lstrip() if is_transcript(text) else text, keys)
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _texts(inner, (*keys, i))
    elif isinstance(value, dict):
        name = next((name for name in _SAID if name in value), None)
        if name:
            yield from _texts(value[name], (*keys, name))


Verdict = Literal["drop", "keep", "relabel"]


class RowDecision(NamedTuple):
    """Decision on one row; `label` is the new answer for `relabel`."""

    decision: Verdict
    label: str = ""


class RowDecisions(NamedTuple):
    """Decisions by line, the digest of the reviewed content, and its answer column."""

    digest: str
    rows: dict[int, RowDecision]
    column: str | None = None


def decisions_file(path: str, digest: str = "") -> Path:
    """Return the file next to the rows that stores decisions on them, or on the content with a digest."""
    return Path(f"{path}.decisions.{digest[:8]}.json" if digest else f"{path}.decisions.json")


def read_decisions(path: str) -> dict[int, RowDecision]:
    """Read the stored decisions on a file's current content, by line; a foreign file is refused."""
    decisions = _read_kept(path, checksum(Path(path)))
    return decisions.rows if decisions else {}


def _read_kept(path: str, digest: str) -> RowDecisions | None:
    files = decisions_file(path), decisions_file(path, digest)
    return next((stored for stored in map(_read, files) if stored and digest.startswith(stored.digest)), None)


def keep_decision(
    path: str, line: int, decision: RowDecision, digest: str, column: str | None = None
) -> None:
    """Add a decision on the content with a digest to the stored ones; `column` is the answer column."""
    shown_path = readers.display_path(path)
    if checksum(Path(path)) != digest:
        raise UserError(shown_path, "changed since it was looked at", "the same rows", "decide it again")
    stored = _read_kept(path, digest) or RowDecisions(digest, {}, column)
    if any(other.decision == "relabel" for other in stored.rows.values()) and stored.column != column:
        found, expected = f"decisions on the column {stored.column!r}", f"those on the column {column!r}"
        raise UserError(shown_path, found, expected, f"apply them, or move {decisions_file(path)}")
    rows = {**stored.rows, line: decision}
    target = decisions_file(path)
    replaced = _read(target)
    if replaced and not digest.startswith(replaced.digest):
        backup_file = decisions_file(path, replaced.digest)
        _read(backup_file)
        target.replace(backup_file)
    plain_rows = {str(n): {k: text for k, text in rows[n]._asdict().items() if text} for n in sorted(rows)}
    content = {"file": Path(path).name, "digest": digest, "column": column, "rows": plain_rows}
    scratch_file = target.with_name(f"{target.name}.{os.getpid()}.part")
    scratch_file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    scratch_file.replace(target)


def _read(file: Path) -> RowDecisions | None:
    try:
        content = parse_json(file.read_bytes())
        rows = content["rows"].items()
        decisions = {int(n): RowDecision(row["decision"], row.get("label") or "") for n, row in rows}
        is_relabelled = all(d.label.strip() for d in decisions.values() if d.decision == "relabel")
        if not is_relabelled or not {d.decision for d in decisions.values()} <= {*get_args(Verdict)}:
            raise ValueError("unknown decisions")
        if not re.fullmatch("[0-9a-f]{16,64}", content["digest"]):
            raise ValueError(content["digest"])
        return RowDecisions(content["digest"], decisions, content.get("column"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        found, shown_path = f"no decisions ({type(error).__name__}: {error})", readers.display_path(str(file))
        expected = '{"digest": …, "column": "label", "rows": {"17": {"decision": "drop"}}}'
        raise UserError(shown_path, found, expected, "move it away, and decide again") from None


def line_of(row: Row) -> int:
    """Return the number at the end of a row's place: its line, or its index in JSON and Parquet."""
    return int(re.findall(r"\d+", row.where)[-1])


def open_decisions(file: Path, path: str) -> RowDecisions:
    """Read a file of decisions, which must match the current content of the rows at `path`."""
    shown_path = readers.display_path(str(file))
    decisions = _read(file)
    if decisions is None:
        step = "decide on rows on the Data page of `harness dashboard`, or correct the path"
        raise UserError(shown_path, "no such file", "a file of decisions", step)
    if not checksum(Path(path)).startswith(decisions.digest):
        found = f"decisions on another content than that of {readers.display_path(path)}"
        step = "look at the rows again, or name the file that was looked at"
        raise UserError(shown_path, found, f"the digest {checksum(Path(path))}", step)
    return decisions


def decisions_by_line(saved: RowDecisions, path: str, roles: Roles) -> dict[int, RowDecision]:
    """Return decisions by line; they must match rows and relabel the column that answers."""
    where = f"decisions on {readers.display_path(path)}"
    lines = {line_of(row) for row in readers.stream(path, "train")} if saved.rows else set[int]()
    step = "look at the rows again"
    found, expected = "no row in that line", "a line of a row"
    problems = [Problem(f"{where}, row {n}", found, expected, step) for n in saved.rows if n not in lines]
    relabels = any(decision.decision == "relabel" for decision in saved.rows.values())
    if relabels and (len(roles.answers) != 1 or roles in RATED):
        found, step = "relabel, where not one column answers", "drop the row, or fix it by hand"
        problems.append(Problem(where, found, "drop or keep", step))
    elif relabels and columns_of(saved.column, roles.answers) != roles.answers:
        found = f"labels of the column {saved.column!r}, where {roles.answers[0]!r} answers"
        step = f"--reference {shlex.quote(saved.column)}" if saved.column else 'add "column" to the decisions'
        problems.append(Problem(where, found, "labels of the column that answers", step))
    refuse(readers.cap_problems(problems, where, "decisions that cannot be applied"))
    return saved.rows
