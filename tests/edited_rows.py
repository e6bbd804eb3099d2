"""Rows to edit, and functions that run `harness data` on them in a folder."""

import json
from pathlib import Path

from hypothesis import strategies as st

from harness.data import readers
from harness.data.column_roles import Roles, find_roles
from harness.data.edit.split import SHARES, SplitOptions, split
from harness.data.text_files import Row, Rows

ASKED = Roles(("text",), ("label",))

WORDS = st.text(st.sampled_from("ab é\u0301Ã¼\x07“ "), max_size=5)


def rows_of(*fields):
    return [Row(f"r.jsonl:{i}", columns) for i, columns in enumerate(fields, start=1)]


def draw_rows(*columns):
    fields = st.fixed_dictionaries(dict.fromkeys(columns, WORDS))
    return st.lists(fields, max_size=8).map(lambda rows: rows_of(*rows))


def list_rows(outcomes):
    return [outcome.row for outcome in outcomes if outcome.row is not None]


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run_rows(verb, *fields, **options):
    """Clean or dedup rows, whose question and answer columns are detected; return each row's outcome."""
    rows = rows_of(*fields)
    return list(verb(rows, find_roles(Rows("r.jsonl", "r", rows)), **options))


def split_rows(rows, shares=SHARES, **options):
    return split(Rows("r.jsonl", "r", rows), ASKED, SplitOptions(shares, **options))


def run_data(data, *words):
    code, stdout, err = data(*words)
    assert code == 0, err
    return stdout


def read_refusal(data, *words):
    """Return the error of a command that must be refused, and assert that it wrote nothing."""
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    code, _, err = data(*words)
    assert code == 2, err
    assert "Traceback" not in err
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before
    return err.splitlines()[-1]


def read(path):
    return [row.fields for row in readers.read(str(path), "train").rows]


def manifest(path):
    return json.loads(Path(f"{path}.manifest.json").read_text())


def make_distinct_rows(n, label=lambda i: ("card", "refund", "pin", "fee")[i % 4]):
    return rows_of(*({"text": f"{i * i} q{i}w v{i}u", "label": label(i), "n": i} for i in range(n)))


LONG = "my parcel was sent to the old address although I gave you the new one two weeks ago on the phone"
