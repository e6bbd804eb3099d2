"""JSON that is not a list of objects is read where its form leaves one reading, else refused with what converts it."""

import json
import subprocess
from datetime import UTC, date, datetime
from decimal import Decimal

import pandas
import pytest

from harness.data import load_task, readers
from harness.errors import UserError
from harness.experiment.check_rows import RowCheck, examine_rows
from harness.spec import Task

ROWS = [{"question": f"Who {i}?", "answer": f"Me {i}"} for i in range(3)]
FRAME = pandas.DataFrame(ROWS)


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"data": ROWS}),
        json.dumps({"version": "1.0", "data": ROWS}),
        json.dumps({"rows": ROWS}),
        json.dumps({"question": [r["question"] for r in ROWS], "answer": [r["answer"] for r in ROWS]}),
        *(FRAME.to_json(orient=form) for form in ("records", "columns", "index", "split", "table")),
    ],
)
def test_a_table_in_json_is_read_as_its_rows(tmp_path, text):
    (tmp_path / "rows.json").write_text(text)
    read = readers.read(str(tmp_path / "rows.json"), "train").rows
    assert [{k: v for k, v in row.fields.items() if k != "index"} for row in read] == ROWS


def test_rows_by_their_names_are_read_with_these_as_ids(tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps({f"q{i}": row for i, row in enumerate(ROWS)}))
    read = readers.read(str(tmp_path / "rows.json"), "train").rows
    assert read[1].fields == {"id": "q1", **ROWS[1]}


def test_squads_articles_are_read_question_by_question(tmp_path):
    answers = [{"text": "the sea", "answer_start": 3}]
    question = {"id": "7", "question": "Where?", "answers": answers, "is_impossible": False}
    article = {"title": "Ships", "paragraphs": [{"context": "In the sea.", "qas": [question]}]}
    (tmp_path / "squad.json").write_text(json.dumps({"version": "v2.0", "data": [article]}))
    task = Task.model_validate({"name": "t", "data": {"test": str(tmp_path / "squad.json")}})
    (item,) = load_task(task, 0).test
    assert (item.id, item.prompt, item.references) == ("7", "Context:\nIn the sea.\n\nWhere?", ("the sea",))


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("content", "written"),
    [
        ({"train": ROWS, "test": ROWS[:1]}, ["rows.json.train.jsonl", "rows.json.test.jsonl"]),
        ([["Who 0?", "Me 0"], ["Who 1?", "Me 1"]], ["rows.json.jsonl"]),
    ],
)
def test_what_leaves_more_than_one_reading_is_refused_with_the_command_that_converts_it(
    tmp_path, monkeypatch, content, written
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.json").write_text(json.dumps(content))
    with pytest.raises(UserError) as refusal:
        readers.read("rows.json", "train")
    command = refusal.value.problems[0].next_step.removeprefix("name them: ")
    subprocess.run(command, shell=True, check=True)
    assert [readers.read(name, "train").rows[0].fields.popitem()[1] for name in written] == ["Me 0"] * len(
        written
    )


def test_decimals_dates_and_nan_of_parquet_are_texts_and_json(tmp_path):
    cells = {
        "price": Decimal("12.50"),
        "day": date(2026, 3, 1),
        "rate": float("nan"),
        "at": datetime(2026, 3, 1, 9, tzinfo=UTC),
    }
    frame = pandas.DataFrame({"prompt": [Decimal("3.10")], "reference": [cells], "day": [date(2026, 1, 2)]})
    frame.to_parquet(tmp_path / "rows.parquet")
    fields = {"prompt": "{prompt} on {day}"}
    data = {"test": str(tmp_path / "rows.parquet")}
    (item,) = load_task(Task.model_validate({"name": "t", "data": data, "fields": fields}), 0).test
    assert item.prompt == "3.10 on 2026-01-02"
    assert json.loads(item.references[0]) == {
        "price": 12.5,
        "day": "2026-03-01",
        "rate": None,
        "at": "2026-03-01T09:00:00+00:00",
    }


def test_pictures_in_a_column_are_named_and_refused_where_the_text_refers_to_them(tmp_path):
    frame = pandas.DataFrame([{**row, "image": {"bytes": b"x", "path": "a.png"}} for row in ROWS])
    frame.to_parquet(tmp_path / "rows.parquet")
    found = examine_rows(RowCheck([str(tmp_path / "rows.parquet")])).findings
    assert [f.severity for f in found if f.title.startswith("'image' may hold")] == ["warning"]
    turns = [{"role": "user", "content": "<image>What is it?"}, {"role": "assistant", "content": "A cat."}]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": turns, "images": ["a.png"]}))
    with pytest.raises(UserError, match="images in a column, which the text refers to"):
        load_task(Task.model_validate({"name": "t", "data": {"test": str(tmp_path / "rows.jsonl")}}), 0)


def test_ids_that_stand_twice_are_refused_with_the_command_that_gives_others(tmp_path):
    rows = [{"id": "a", **row} for row in ROWS]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError) as refusal:
        load_task(Task.model_validate({"name": "t", "data": {"test": str(tmp_path / "rows.jsonl")}}), 0)
    file = tmp_path / "rows"
    assert refusal.value.problems[0].next_step.endswith(
        f": harness data clean {file}.jsonl --out {file}.clean.jsonl --new-ids"
    )
