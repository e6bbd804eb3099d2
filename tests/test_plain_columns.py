"""Columns that are named as a layout's list and hold plain texts: the rows are a plain table."""

import csv
import json
from pathlib import Path

import pytest
from checked_rows import make_clean_rows
from typer.testing import CliRunner

from harness.cli import app
from harness.data import formats
from harness.data.text_files import Row


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write_table(text, label, **more):
        with Path("table.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([text, label, *more])
            writer.writerows([row["text"], row["label"], *more.values()] for row in make_clean_rows(60))

    return write_table


def harness(*words):
    done = CliRunner().invoke(app, ["data", *words])
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize(
    ("text", "label", "more"),
    [
        ("messages", "label", {}),
        ("conversations", "topic", {}),
        ("messages", "reference", {}),
        ("question", "answer", {"choices": "a survey"}),
        ("prompt", "reference", {"choices": "[a] survey", "messages": "12"}),
        ("query", "label", {"completions": 3}),
    ],
)
def test_a_table_whose_columns_are_named_as_lists_is_checked_and_cleaned_whole(table, text, label, more):
    table(text, label, **more)
    named = ("--prompt", text, "--reference", label)
    for columns in ((), named):
        found = json.loads(harness("check", "table.csv", *columns, "--json"))
        assert not [f for f in found["findings"] if f["check"] == "missing_values" and f["count"]]
        assert any(f["check"] == "class_balance" and "4 labels" in f["title"] for f in found["findings"])
    assert harness("clean", "table.csv", *named, "--out", "clean.csv").startswith("60 read, 60 written")


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": "hello"},
        {"conversations": "hello"},
        {"question": "Who?", "answer": "a", "choices": "a survey"},
        {"instruction": "Who?", "completions": 3},
    ],
)
def test_plain_texts_make_no_layout_but_that_of_the_other_columns(fields):
    layout = formats.recognise([Row("r:1", fields)])
    assert layout is None or layout.name == "question"


def test_a_single_column_that_no_template_can_name_is_refused_by_the_check(table):
    Path("one.jsonl").write_text(
        "".join(json.dumps({"Text, as sent": row["text"]}) + "\n" for row in make_clean_rows(20))
    )
    done = CliRunner().invoke(app, ["data", "check", "one.jsonl"])
    assert "which no template can name" in str(done.exception)
