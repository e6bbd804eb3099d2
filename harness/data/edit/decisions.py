"""Decisions on rows, as the Data page of the dashboard keeps them: drop, keep or relabel, by line.

Invariant: decisions hold for the content that was looked at, so a file of other content is refused; those on
other content are set aside under a name of their own, and no file of another making is written over.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from harness.data import readers
from harness.data.columns import Roles
from harness.data.readers import Row
from harness.errors import Problem, UserError
from harness.records import checksum, parse_json

Verdict = Literal["drop", "keep", "relabel"]


class Decision(NamedTuple):
    """Decision on one row; `label` is the new answer where it is `relabel`."""

    decision: Verdict
    label: str = ""


def decisions_file(path: str) -> Path:
    """Return the file beside the rows in which decisions on them are kept."""
    return Path(f"{path}.decisions.json")


def set_aside_file(path: str, digest: str) -> Path:
    """Return the file to which decisions on a content go once the rows are others."""
    return Path(f"{path}.decisions.{digest[:8]}.json")


def kept_decisions(path: str) -> dict[int, Decision]:
    """Read the decisions kept beside a file of rows on its content as it is, by line.

    Raises:
        UserError: a file of another making lies where they are kept.
    """
    digest = checksum(Path(path))
    for file in (decisions_file(path), set_aside_file(path, digest)):
        if (kept := _read(file)) and digest.startswith(kept[0]):
            return kept[1]
    return {}


def keep_decision(path: str, line: int, decision: Decision, digest: str) -> None:
    """Write a decision on the content of a digest beside the rows, with those that were kept on it before.

    Raises:
        UserError: the rows have changed, or a file of another making lies where decisions are kept.
    """
    shown = readers.display_path(path)
    if checksum(Path(path)) != digest:
        raise UserError(Problem(shown, "changed since it was looked at", "the same rows", "decide it anew"))
    rows = {**kept_decisions(path), line: decision}
    target = decisions_file(path)
    earlier = _read(target)
    if earlier and not digest.startswith(earlier[0]):
        aside = set_aside_file(path, earlier[0])
        _read(aside)
        target.replace(aside)
    plain = {str(n): {k: text for k, text in rows[n]._asdict().items() if text} for n in sorted(rows)}
    kept = {"file": Path(path).name, "digest": digest, "rows": plain}
    fresh = target.with_name(f"{target.name}.{os.getpid()}.part")
    fresh.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    fresh.replace(target)


def _read(file: Path) -> tuple[str, dict[int, Decision]] | None:
    """Read a digest and the decisions on its content; None where there is no file."""
    try:
        kept = parse_json(file.read_bytes())
        rows = {
            int(line): Decision(of["decision"], of.get("label") or "") for line, of in kept["rows"].items()
        }
        if not re.fullmatch("[0-9a-f]{16,64}", kept["digest"]):
            raise ValueError(kept["digest"])
        return kept["digest"], rows
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        shown, step = readers.display_path(str(file)), "move it away, or give it another name"
        raise UserError(Problem(shown, "a file of another making", "decisions on rows", step)) from None


def line_of(row: Row) -> int:
    """Return the number that a row's place ends with: its line, or its index in JSON and Parquet."""
    return int(re.findall(r"\d+", row.where)[-1])


def read_decisions(file: Path, path: str, roles: Roles) -> dict[int, Decision]:
    """Read the decisions on the rows of a file, by line.

    Raises:
        UserError: the decisions are of another content or on no row, malformed, or relabel without a column.
    """
    shown = readers.display_path(str(file))
    try:
        kept = parse_json(file.read_bytes())
        digest, rows = str(kept["digest"]), dict(kept["rows"])
    except FileNotFoundError:
        raise UserError(Problem(shown, "no such file", "a file of decisions", "correct the path")) from None
    except (ValueError, LookupError, TypeError) as error:
        expected = '{"file": …, "digest": …, "rows": {"17": {"decision": "drop"}}}'
        why = f"{type(error).__name__}: {error}"
        raise UserError(Problem(shown, f"no decisions ({why})", expected, "keep them anew")) from None
    if len(digest) < 16 or not checksum(Path(path)).startswith(digest):
        found = f"decisions on another content than that of {readers.display_path(path)}"
        step = "look at the rows again, or name the file that was looked at"
        raise UserError(Problem(shown, found, f"the digest {checksum(Path(path))}", step))
    lines = {line_of(row) for row in readers.stream(path, "train")} if rows else set()
    if problems := list(_problems(shown, rows, lines, roles)):
        raise UserError(readers.cap_problems(problems, shown, "malformed decisions"))
    return {int(line): Decision(of["decision"], of.get("label") or "") for line, of in rows.items()}


def _problems(shown: str, rows: Mapping[str, Any], lines: set[int], roles: Roles) -> Iterator[Problem]:
    for line, of in rows.items():
        where = f"{shown}, row {line}"
        if not line.isdecimal() or int(line) not in lines:
            yield Problem(where, "no row in that line", "a line of a row", "look at the rows again")
        elif not isinstance(of, dict) or of.get("decision") not in get_args(Verdict):
            yield Problem(where, f"the decision {of!r}", "drop, keep or relabel", "decide it anew")
        elif of["decision"] == "relabel" and not (isinstance(of.get("label"), str) and of["label"].strip()):
            yield Problem(where, "relabel without a label", "a label", "name the label, or drop the row")
        elif of["decision"] == "relabel" and not _has_label_column(roles):
            found = "relabel, where no one column holds the answer"
            yield Problem(where, found, "one column of answers", "name it: --reference COLUMN")


def _has_label_column(roles: Roles) -> bool:
    return len(roles.answers) == 1 and roles.answers != roles.questions
