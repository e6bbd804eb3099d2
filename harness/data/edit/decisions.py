"""Decisions on rows, as the Data page of the dashboard keeps them: drop, keep or relabel, by line.

Invariant: decisions hold for the content that was looked at, so a file of other content is refused.
"""

import json
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


def kept_decisions(path: str) -> dict[int, Decision]:
    """Read the decisions kept beside a file of rows, by line; none where they are on other content."""
    try:
        kept = parse_json(decisions_file(path).read_bytes())
        if kept["digest"] != checksum(Path(path)):
            return {}
        return {
            int(line): Decision(of["decision"], of.get("label") or "") for line, of in kept["rows"].items()
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def keep_decision(path: str, line: int, decision: Decision) -> None:
    """Write a decision beside the rows, with those that were kept before on the same content."""
    rows = {**kept_decisions(path), line: decision}
    plain = {str(n): {k: text for k, text in rows[n]._asdict().items() if text} for n in sorted(rows)}
    kept = {"file": Path(path).name, "digest": checksum(Path(path)), "rows": plain}
    target = decisions_file(path)
    fresh = target.with_name(f"{target.name}.new")
    fresh.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    fresh.replace(target)


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
        raise UserError(Problem(shown, f"no decisions ({error!r})", expected, "keep them anew")) from None
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
