"""Changes of a row with reasons, the places of its answers, spellings of labels, and decisions on rows.

Invariant: every row that is read has an outcome, in the order of the file. The same answers in the same order
give the same spellings: the commonest one is kept, or the first of equally common ones. Other characters
distinguish labels, as in C and C++. Keys lead to the answer within the row's fields; the answers of a
conversation are the assistant's turns, of a message tree its replies, of a pair both answers.

Decisions are those of the dashboard's Data page: drop, keep or relabel, by line. They are valid for the
reviewed content and answer column only, so other content and columns are refused. Decisions on other content
are kept under another name, and foreign files are never overwritten.
"""

import json
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, get_args

from harness.data import readers
from harness.data.columns import PAIRS, Roles, are_rated, columns_of, join_texts
from harness.data.examples import FIELD
from harness.data.multiple_choice import CHOICES, has_choices, list_choice_columns
from harness.data.rated_rows import PREFERRED, is_transcript
from harness.data.text_files import Row
from harness.data.turns import answer_places
from harness.errors import Problem, UserError, refuse
from harness.records import checksum, normalize, parse_json

Kind = Literal["dropped", "changed", "reported", "added"]
NOT_DRAWN = "not drawn"  # the reason of a row that another draw may still take


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
        found = {"row": self.where, "change": self.kind, "reason": self.reason}
        of = {"of": self.of} if self.of else {}
        return found | of | ({} if self.similarity is None else {"similarity": round(self.similarity, 3)})

    @property
    def reason(self) -> str:
        """The reasons on one line."""
        return "; ".join(self.reasons)

    def __str__(self) -> str:
        """Render as one line: `file:line: dropped, the reason`."""
        alike = "" if self.similarity is None else f" ({self.similarity:.2f})"
        return f"{self.where}: {self.kind}, {self.reason}{f' of {self.of}' if self.of else ''}{alike}"


class EditedRow(NamedTuple):
    """One row to write, or None if it is dropped, and its change, if any."""

    row: Row | None
    change: Change | None = None


def drop(row: Row, reason: str, of: str = "", similarity: float | None = None) -> EditedRow:
    """Drop a row for a reason."""
    return EditedRow(None, Change(row.where, "dropped", (reason,), of, similarity))


def several_spellings(answers: Iterable[str]) -> list[list[tuple[str, int]]]:
    """List the spellings of each label that has several, with their numbers of rows, the commonest first."""
    counts: dict[str, Counter[str]] = {}
    for answer in answers:
        # Folded as metrics fold labels, and without what separates words or ends a label.
        folded = re.sub(r"(?<=[^\W\d_])[\s_-]+(?=[^\W\d_])", "", normalize(answer).rstrip(".,;:"))
        counts.setdefault(folded, Counter())[answer] += 1
    return [of.most_common() for folded, of in counts.items() if folded and len(of) > 1]


def commonest_spellings(labels: Iterable[Sequence[tuple[str, int]]]) -> dict[str, str]:
    """Map each rarer spelling to the commonest one of its label."""
    return {spelt: commonest for (commonest, _), *rarer in labels for spelt, _ in rarer}


def unify_spellings(answers: Sequence[str]) -> list[str]:
    """Return answers, each label in its commonest spelling."""
    commonest = commonest_spellings(several_spellings(answers))
    return [commonest.get(answer, answer) for answer in answers]


_SAID = ("content", "value", "text", "response")
_PAIR = ("chosen", "rejected")
Keys = tuple[str | int, ...]


class PlacedText(NamedTuple):
    """A text, or a whole number as one, that asks or answers, and the keys to it from the row's fields."""

    text: str
    keys: Keys


def list_written_answers(fields: Mapping[str, Any], roles: Roles) -> list[PlacedText]:
    """List the answers of a row in order, then its choices; for turns, all of the assistant's."""
    found: list[PlacedText] = []
    is_openai = roles.answers == _PAIR and fields.keys() >= PREFERRED  # the preferred one comes first
    for column in ("preferred_output", "non_preferred_output") if is_openai else roles.answers:
        value: Any = fields.get(column)
        keys: Keys = (column,)
        if isinstance(value, dict) and column in roles.questions:
            found += _replies(value, keys)
        elif _are_turns(value):
            # Without a question in front, as in a pair, the first turn may answer.
            before = 0 if column in roles.questions else 1
            places = [i - before for i in answer_places([{}] * before + list(value))]
            found += [of for i in places for of in _texts(value[i], (column, i))]
        elif column not in roles.questions:
            found += _texts(value, keys)
    # Choices are in a list, keyed by labels, or in one column each.
    for column in CHOICES:
        value = fields.get(column)
        if isinstance(value, dict) and "text" not in value:
            found += [of for label, text in value.items() for of in _texts(text, (column, label))]
        else:
            found += _texts(value, (column,))
    if has_choices({*fields} - {*CHOICES}):
        for column in list_choice_columns({k: v for k, v in fields.items() if k not in CHOICES}):
            found += _texts(fields[column], (column,))
    return found


def label_places(fields: Mapping[str, Any], roles: Roles) -> list[PlacedText]:
    """List the answers that are the row's label or spell it; for turns only the last one."""
    labels = []
    for answer in list_written_answers(fields, roles):
        value: Any = fields[str(answer.keys[0])]
        if not _are_turns(value) or answer.keys[1] == len(value) - 1:
            labels.append(answer)
    return labels


def put_text(fields: Any, keys: Keys, text: str | int) -> Any:
    """Return the fields with another text, or number, where the keys lead to."""
    if not keys:
        return text
    first, rest = keys[0], keys[1:]
    if isinstance(fields, list):
        return [put_text(of, rest, text) if i == first else of for i, of in enumerate(fields)]
    return {**fields, first: put_text(fields.get(first), rest, text)}


def _are_turns(value: Any) -> bool:
    objects = [of for of in value if isinstance(of, dict)] if isinstance(value, list) else []
    return any({"role", "from"} & of.keys() for of in objects)


def _replies(message: Mapping[str, Any], keys: Keys) -> Iterator[PlacedText]:
    """Yield the assistant's messages below a message, but those that were deleted."""
    replies = message.get("replies")
    for i, reply in enumerate(replies if isinstance(replies, list) else ()):
        if isinstance(reply, dict) and not reply.get("deleted"):
            at = (*keys, "replies", i)
            if reply.get("role") == "assistant":
                yield from _texts(reply.get("text"), (*at, "text"))
            yield from _replies(reply, at)


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
    """Decision on one row; `label` is the new answer for `relabel`.

    If several columns answer, `values` are their new values.
    """

    decision: Verdict
    label: str = ""
    values: Mapping[str, Any] = MappingProxyType({})


class RowDecisions(NamedTuple):
    """Decisions by line, the digest of the reviewed content, and its answer column.

    If several columns answer, `column` is the template over them.
    """

    digest: str
    rows: dict[int, RowDecision]
    column: str | None = None


def decisions_file(path: str) -> Path:
    """Return the file next to the rows that stores decisions on them."""
    return Path(f"{path}.decisions.json")


def set_aside_file(path: str, digest: str) -> Path:
    """Return the file to which decisions on a content go once the rows are others."""
    return Path(f"{path}.decisions.{digest[:8]}.json")


def read_decisions(path: str) -> dict[int, RowDecision]:
    """Read the stored decisions on a file's current content, by line.

    Raises:
        UserError: a foreign file is in their place.
    """
    kept = _read_kept(path, checksum(Path(path)))
    return kept.rows if kept else {}


def keep_decision(
    path: str, line: int, decision: RowDecision, digest: str, column: str | None = None
) -> None:
    """Add a decision on the content with a digest to the stored ones.

    `column` is the answer column, or the template over several; None without one.

    Raises:
        UserError: the rows have changed, stored decisions are on another column's answers, or a foreign file
        is
            in their place.
    """
    shown = readers.display_path(path)
    if checksum(Path(path)) != digest:
        raise UserError(Problem(shown, "changed since it was looked at", "the same rows", "decide it again"))
    before = _read_kept(path, digest) or RowDecisions(digest, {}, column)
    if any(of.decision == "relabel" for of in before.rows.values()) and before.column != column:
        found = f"decisions on {_column_text(before.column)}"
        step = f"make them true, or move {decisions_file(path)}"
        raise UserError(Problem(shown, found, f"those on {_column_text(column)}", step))
    rows = {**before.rows, line: decision}
    target = decisions_file(path)
    earlier = _read(target)
    if earlier and not digest.startswith(earlier.digest):
        aside = set_aside_file(path, earlier.digest)
        _read(aside)
        target.replace(aside)
    plain = {str(n): {k: text for k, text in rows[n]._asdict().items() if text} for n in sorted(rows)}
    kept = {"file": Path(path).name, "digest": digest, "column": column, "rows": plain}
    fresh = target.with_name(f"{target.name}.{os.getpid()}.part")
    fresh.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    fresh.replace(target)


def _read_kept(path: str, digest: str) -> RowDecisions | None:
    files = decisions_file(path), set_aside_file(path, digest)
    return next((kept for kept in map(_read, files) if kept and digest.startswith(kept.digest)), None)


def _column_text(column: str | None) -> str:
    return f"the column {column!r}" if column else "no column"


def _read(file: Path) -> RowDecisions | None:
    try:
        kept = parse_json(file.read_bytes())
        rows = _read_rows(kept["rows"])
        if not re.fullmatch("[0-9a-f]{16,64}", kept["digest"]):
            raise ValueError(kept["digest"])
        return RowDecisions(kept["digest"], rows, kept.get("column"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        shown, step = readers.display_path(str(file)), "move it away, or give it another name"
        raise UserError(Problem(shown, "a file of another making", "decisions on rows", step)) from None


def _read_rows(written: Mapping[str, Any]) -> dict[int, RowDecision]:
    return {int(line): RowDecision(row["decision"], row.get("label") or "") for line, row in written.items()}


def line_of(row: Row) -> int:
    """Return the number that a row's place ends with: its line, or its index in JSON and Parquet."""
    return int(re.findall(r"\d+", row.where)[-1])


class Decisions(NamedTuple):
    """Decisions as written, before the rows are known; `column` is None if none is named."""

    shown: str
    column: str | None
    rows: dict[str, Any]


def open_decisions(file: Path, path: str) -> Decisions:
    """Read a file of decisions on the rows of another file.

    Raises:
        UserError: there is no such file, it is malformed, or its decisions are of another content.
    """
    shown = readers.display_path(str(file))
    try:
        kept = parse_json(file.read_bytes())
        digest, rows, column = str(kept["digest"]), dict(kept["rows"]), kept.get("column")
    except FileNotFoundError:
        step = "decide on rows on the Data page of `harness dashboard`, or correct the path"
        raise UserError(Problem(shown, "no such file", "a file of decisions", step)) from None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise UserError(Problem(shown, f"no decisions ({why})", _FORM, "keep them again")) from None
    if len(digest) < 16 or not checksum(Path(path)).startswith(digest):
        found = f"decisions on another content than that of {readers.display_path(path)}"
        step = "look at the rows again, or name the file that was looked at"
        raise UserError(Problem(shown, found, f"the digest {checksum(Path(path))}", step))
    return Decisions(shown, column if isinstance(column, str) else None, rows)


_FORM = '{"file": …, "digest": …, "column": "label", "rows": {"17": {"decision": "drop"}}}'


def decisions_by_line(kept: Decisions, path: str, roles: Roles) -> dict[int, RowDecision]:
    """Return decisions by line, checked against the rows and their answer columns.

    Raises:
        UserError: decisions match no row, are malformed, or relabel another column than the answer's.
    """
    lines, values = set[int](), dict[str, Counter[str]]()
    template = kept.column if kept.column and len(roles.answers) > 1 else None
    for row in readers.stream(path, "train") if kept.rows else ():
        lines.add(line_of(row))
        if template:
            held = json.dumps({name: row.fields.get(name) for name in roles.answers}, default=str)
            values.setdefault(_fill(template, row), Counter())[held] += 1
    problems = list(_problems(kept, lines, roles))
    if template and not problems:  # the columns of a label that no row has are unknown
        expected, step = f"a label by {template} of another row", "drop the row, or fix it by hand"
        labels = {line: of["label"] for line, of in kept.rows.items() if of["decision"] == "relabel"}
        problems = [
            Problem(f"{kept.shown}, row {line}", f"the label {label!r}, which no row has", expected, step)
            for line, label in labels.items()
            if label.strip() not in values
        ]
    refuse(readers.cap_problems(problems, kept.shown, "malformed decisions"))
    out = _read_rows(kept.rows)
    if not template:
        return out
    commonest = {label: json.loads(held.most_common(1)[0][0]) for label, held in values.items()}
    return {line: of._replace(values=commonest.get(of.label.strip(), {})) for line, of in out.items()}


def _fill(template: str, row: Row) -> str:
    return FIELD.sub(lambda field: join_texts(row.fields.get(field[1])), template).strip()


def _problems(kept: Decisions, lines: set[int], roles: Roles) -> Iterator[Problem]:
    relabels = False
    for line, of in kept.rows.items():
        where = f"{kept.shown}, row {line}"
        if not line.isdecimal() or int(line) not in lines:
            yield Problem(where, "no row in that line", "a line of a row", "look at the rows again")
        elif not isinstance(of, dict) or of.get("decision") not in get_args(Verdict):
            yield Problem(where, f"the decision {of!r}", "drop, keep or relabel", "decide it again")
        elif of["decision"] == "relabel" and not (isinstance(of.get("label"), str) and of["label"].strip()):
            yield Problem(where, "relabel without a label", "a label", "name the label, or drop the row")
        else:
            relabels |= of["decision"] == "relabel"
    if not relabels:
        return
    if not roles.answers or roles.answers == PAIRS.answers:
        found = "relabel, where rows have no label" if roles.answers else "relabel, where no column answers"
        yield Problem(kept.shown, found, "drop or keep", "drop the row, or fix it by hand")
    elif len(roles.answers) > 1 and columns_of(kept.column, roles.answers) != roles.answers:
        named = ", ".join(map(repr, roles.answers))
        found = f"labels of {_column_text(kept.column)}, where {named} answer"
        template = json.dumps(" ".join(f"{{{name}}}" for name in roles.answers))
        step = f'name the template that makes a label of them, such as "column": {template}'
        yield Problem(kept.shown, found, "labels of the columns that answer", step)
    elif are_rated(roles):
        found, step = "relabel, where a row has several rated answers", "drop the row, or fix it by hand"
        yield Problem(kept.shown, found, "drop or keep", step)
    elif kept.column is None:
        step = f'add "column": {json.dumps(roles.answers[0])}, if that is the one'
        yield Problem(kept.shown, "labels without the name of their column", "a column", step)
    elif len(roles.answers) == 1 and columns_of(kept.column, roles.answers) != roles.answers:
        found = f"labels of the column {kept.column!r}, where {roles.answers[0]!r} answers"
        step = f"--reference {shlex.quote(kept.column)}"
        yield Problem(kept.shown, found, "labels of the column that answers", step)
