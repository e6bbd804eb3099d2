"""Decisions on rows, as the Data page of the dashboard keeps them: drop, keep or relabel, by line.

Invariant: decisions hold for the content that was looked at and the column whose answers were, so a file of
other content and another column are refused; those on other content are set aside under a name of their own,
and no file of another making is written over.
"""

import json
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, get_args

from harness.data import readers
from harness.data.columns import PAIRS, Roles, are_rated, columns_of, join_texts
from harness.data.examples import FIELD
from harness.data.text_files import Row
from harness.errors import Problem, UserError, refuse
from harness.records import checksum, parse_json

Verdict = Literal["drop", "keep", "relabel"]


class RowDecision(NamedTuple):
    """Decision on one row; `label` is the new answer where it is `relabel`.

    Where several columns answer, `values` are those that they get.
    """

    decision: Verdict
    label: str = ""
    values: Mapping[str, Any] = MappingProxyType({})


class RowDecisions(NamedTuple):
    """Decisions by line, the digest of the content they are on, and the column that holds its answers.

    Where several columns answer, `column` is the template over them.
    """

    digest: str
    rows: dict[int, RowDecision]
    column: str | None = None


def decisions_file(path: str) -> Path:
    """Return the file beside the rows in which decisions on them are kept."""
    return Path(f"{path}.decisions.json")


def set_aside_file(path: str, digest: str) -> Path:
    """Return the file to which decisions on a content go once the rows are others."""
    return Path(f"{path}.decisions.{digest[:8]}.json")


def read_decisions(path: str) -> dict[int, RowDecision]:
    """Read the decisions kept beside a file of rows on its content as it is, by line.

    Raises:
        UserError: a file of another making lies where they are kept.
    """
    kept = _read_kept(path, checksum(Path(path)))
    return kept.rows if kept else {}


def keep_decision(
    path: str, line: int, decision: RowDecision, digest: str, column: str | None = None
) -> None:
    """Write a decision on the content of a digest beside the rows, with those that were kept on it before.

    `column` is the one that holds the answers, or the template over several; None where there is none.

    Raises:
        UserError: the rows have changed, decisions on another column's answers are kept, or a file of
            another making lies where decisions are kept.
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
    """Read the decisions on a content; None where there are none."""
    files = decisions_file(path), set_aside_file(path, digest)
    return next((kept for kept in map(_read, files) if kept and digest.startswith(kept.digest)), None)


def _column_text(column: str | None) -> str:
    return f"the column {column!r}" if column else "no column"


def _read(file: Path) -> RowDecisions | None:
    """Read decisions; None where there is no file."""
    try:
        kept = parse_json(file.read_bytes())
        rows = {
            int(line): RowDecision(of["decision"], of.get("label") or "") for line, of in kept["rows"].items()
        }
        if not re.fullmatch("[0-9a-f]{16,64}", kept["digest"]):
            raise ValueError(kept["digest"])
        return RowDecisions(kept["digest"], rows, kept.get("column"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        shown, step = readers.display_path(str(file)), "move it away, or give it another name"
        raise UserError(Problem(shown, "a file of another making", "decisions on rows", step)) from None


def line_of(row: Row) -> int:
    """Return the number that a row's place ends with: its line, or its index in JSON and Parquet."""
    return int(re.findall(r"\d+", row.where)[-1])


class Decisions(NamedTuple):
    """Decisions as they are written, before the rows are known; `column` is None where none is named."""

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
    """Return decisions by line, held against the rows and the columns that hold their answers.

    Raises:
        UserError: some are on no row, malformed, or relabel another column than the one that answers.
    """
    lines, values = set[int](), dict[str, Counter[str]]()
    template = kept.column if kept.column and len(roles.answers) > 1 else None
    for row in readers.stream(path, "train") if kept.rows else ():
        lines.add(line_of(row))
        if template:
            held = json.dumps({name: row.fields.get(name) for name in roles.answers}, default=str)
            values.setdefault(_fill(template, row), Counter())[held] += 1
    problems = list(_problems(kept, lines, roles))
    if template and not problems:  # what stands in which column is not known of a label that no row has
        expected, step = f"a label by {template} of another row", "drop the row, or fix it by hand"
        labels = {line: of["label"] for line, of in kept.rows.items() if of["decision"] == "relabel"}
        problems = [
            Problem(f"{kept.shown}, row {line}", f"the label {label!r}, which no row has", expected, step)
            for line, label in labels.items()
            if label.strip() not in values
        ]
    refuse(readers.cap_problems(problems, kept.shown, "malformed decisions"))
    out = {int(line): RowDecision(of["decision"], of.get("label") or "") for line, of in kept.rows.items()}
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
    if relabels:
        yield from _column_problems(kept, roles)


def _column_problems(kept: Decisions, roles: Roles) -> Iterator[Problem]:
    """Phrase labels for another column than the one that answers."""
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
