"""Columns: read, taken as ids or reported; two layouts in one task, plain texts with a layout's names."""

import shlex
from itertools import pairwise

import pytest
from checked_rows import texts, write
from ruamel.yaml import YAML
from typer.testing import CliRunner

from harness.cli import app
from harness.data import load_task
from harness.data.column_roles import find_roles
from harness.data.readers import read
from harness.errors import UserError
from harness.experiment.check_rows import RowCheck, check_target, examine_rows
from harness.spec import Task, TaskData

N = 24


def passage(i):
    content = "nothing at all" if i % 3 else "apples of the year"
    return f"Crate {i} stands in hall {i % 5} and holds {content}."


def says(i):
    return "full" if i % 3 == 0 else "empty"


def user(i):
    return {"role": "user", "content": f"Is crate {i} empty?"}


def talk(i):
    return [user(i), {"role": "assistant", "content": f"It is {says(i)}."}]


def share(i):
    return [{"from": "human", "value": ASK.format(i)}, {"from": "gpt", "value": says(i)}]


def letter(i):
    return "AB"[i % 3 > 0]


# Public layouts whose question refers to another column.
ASK = "Is crate {} empty?"
LAYOUTS = {
    "BoolQ": {"question": ASK, "passage": passage, "answer": lambda i: i % 3 > 0, "idx": lambda i: i},
    "a name of its own": {"question": ASK, "x7": passage, "answer": says},
    "an object": {"question": ASK, "table": lambda i: {"crate": i, "holds": passage(i)}, "answer": says},
    "RACE": {"question": ASK, "article": passage, "options": ["full", "empty"], "answer": letter},
    "our own": {"prompt": ASK, "document": passage, "reference": says},
    "Alpaca": {"instruction": ASK, "input": "", "output": says, "history": passage},
    "chat with texts": {"messages": talk, "documents": lambda i: [passage(i)]},
    "ShareGPT": {"conversations": share, "context": passage},
    "preference": {"prompt": ASK, "chosen": says, "rejected": "Maybe.", "context": passage},
    "relevance": {"query": "an empty crate", "body": passage, "label": says},
    "SQL": {"question": "How many?", "schema": "CREATE TABLE t{} (n INT)", "answer": "SELECT SUM(n) FROM t{}"},
    "short, and tells answers apart": {"question": "Who leads it?", "year": "in {}", "answer": lambda i: f"Leader {i % 7}"},
}  # fmt: skip
READ_AS_TURNS = {"Alpaca", "ShareGPT", "preference"}


def make_row(name, i):
    def fill(value):
        return value(i) if callable(value) else value.format(i) if isinstance(value, str) else value

    return {column: fill(value) for column, value in LAYOUTS[name].items()}


def context_of(row):
    names = ("passage", "x7", "table", "article", "context", "document")
    later_names = ("history", "documents", "body", "schema", "year")
    return next(name for name in (*names, *later_names) if row.get(name))


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_a_question_is_about_is_offered_with_the_line_that_reads_it(tmp_path, name):
    asking = "messages" if name in READ_AS_TURNS else next(iter(LAYOUTS[name]))
    rows = [make_row(name, i) for i in range(N)]
    file, column = write(tmp_path / "rows.jsonl", rows), context_of(rows[1])
    task = {"name": "t", "data": {"test": file}}
    if name == "relevance":
        task["fields"] = {"prompt": f"{{{asking}}}", "reference": "{label}"}
    (note,) = (line for line in load_task(Task.model_validate(task), 0).read_as if "may hold" in line)
    assert f"{column!r} (" in note
    written = note.partition(", write ")[2].removesuffix(" in the suite")
    fields = YAML(typ="safe").load(written)["fields"]
    assert fields["prompt"] == f"{{{column}}}\n\n{{{asking}}}"
    items = load_task(Task.model_validate({**task, "fields": fields}), 0)
    assert not any(column in line for line in items.read_as)
    context = rows[1][column]
    while not isinstance(context, str):
        context = list(context.values())[-1] if isinstance(context, dict) else context[0]
    assert context in items.test[1].messages[-1]["content"]
    (plain,) = (e for e in load_task(Task.model_validate(task), 0).test if e.id == items.test[1].id)
    assert plain.references == items.test[1].references
    assert items.test[1].messages[-1]["content"].endswith(plain.messages[-1]["content"])


@pytest.mark.parametrize("name", ["ShareGPT", "relevance", "our own"])
def test_the_check_alarms_at_a_context_and_its_command_reads_it(tmp_path, name):
    rows = [make_row(name, i) for i in range(N)]
    file, column = write(tmp_path / "rows.jsonl", rows), context_of(rows[1])
    (finding,) = (f for f in examine_rows(RowCheck([file])).findings if "may hold what" in f.title)
    assert finding.severity == ("error" if name == "relevance" else "warning")
    words = shlex.split(finding.command.partition("harness data check ")[2])
    options = dict(zip(words[1::2], words[2::2], strict=True))
    again = examine_rows(RowCheck([file], prompt=options["--prompt"], reference=options.get("--reference")))
    assert not [f for f in again.findings if "may hold what" in f.title]
    assert column in options["--prompt"]


@pytest.mark.parametrize(
    "column",
    [
        {"explanation": lambda i: f"As the crate {i} was carried away, it is {says(i)} since Monday."},
        {"text": lambda i: f"### Instruction: {ASK.format(i)} ### Response: {says(i)}"},
        {"label_name": lambda i: f"the crate that is {says(i)}, as a longer name of a label"},
        {"url": lambda i: f"https://example.org/a/long/address/of/a/page/{i}"},
    ],
)
def test_a_column_that_is_no_context_is_only_named(tmp_path, column):
    ((name, make),) = column.items()
    rows = [{"question": ASK.format(i), "answer": says(i), name: make(i), "row_id": i} for i in range(N)]
    task = Task.model_validate({"name": "t", "data": {"test": write(tmp_path / "rows.jsonl", rows)}})
    assert load_task(task, 0).read_as[1:] == (f"{tmp_path}/rows.jsonl: columns that are not read: {name!r}",)


@pytest.mark.parametrize(
    ("fields", "columns"),
    [
        ({"prompt": "{question}", "reference": "{response}"}, ("question", "response", "system_prompt")),
        ({}, ("prompt", "reference", "system_prompt")),
    ],
)
def test_a_system_prompt_stands_in_front_of_a_question_that_a_template_names(tmp_path, fields, columns):
    rows = [dict(zip(columns, ("Who?", "Me.", "Be brief."), strict=True))]
    task = {"name": "t", "data": {"test": write(tmp_path / "rows.jsonl", rows)}, "fields": fields}
    items = load_task(Task.model_validate(task), 0)
    turns = [(turn["role"], turn["content"]) for turn in items.test[0].messages]
    assert turns == [("system", "Be brief."), ("user", "Who?")]
    assert not any("not read" in note for note in items.read_as)


TWO_LAYOUTS = {
    "our own": lambda asks, answers: {"prompt": asks, "reference": answers},
    "chat": lambda asks, answers: {
        "messages": [{"role": "user", "content": asks}, {"role": "assistant", "content": answers}]
    },
    "Alpaca": lambda asks, answers: {"instruction": asks, "input": "", "output": answers},
    "completion": lambda asks, answers: {"prompt": asks, "completion": answers},
    "columns": lambda asks, answers: {"Customer text": asks, "Team": answers},
    "other columns": lambda asks, answers: {"question": asks, "answer": answers},
}


def files(folder, train, test):
    """Write 40 training rows in one layout, and test rows in another, five of which are training rows too."""
    rows, new_texts = texts(40, 0), texts(15, 1)
    written = {"train": (TWO_LAYOUTS[train], rows), "test": (TWO_LAYOUTS[test], [*new_texts, *rows[:5]])}
    data = {split: [layout(*row.values()) for row in items] for split, (layout, items) in written.items()}
    return [write(folder / f"{split}.jsonl", content) for split, content in data.items()]


# Each layout once.
PAIRS = list(pairwise([*TWO_LAYOUTS, next(iter(TWO_LAYOUTS))]))[::2]


@pytest.mark.parametrize(("train", "test"), PAIRS)
def test_a_leak_is_found_where_training_and_test_rows_have_different_layouts(tmp_path, train, test):
    train_file, test_file = files(tmp_path, train, test)
    findings = examine_rows(RowCheck([train_file], [test_file], only=["test_leaks"])).findings
    assert next(f for f in findings if f.severity == "error").count == 5


@pytest.mark.parametrize(
    ("asks", "answers", "more"),
    [
        ("question_text", "answer_text", ()), ("Customer question", "class label", ()),
        ("body", "team", ("question_id",)), ("query", "answers", ("query_id",)),
    ],
)  # fmt: skip
def test_columns_are_found_by_the_last_word_of_their_names(tmp_path, asks, answers, more):
    rows = [
        {**dict.fromkeys(more, i), asks: row["prompt"], answers: row["reference"][:9]}
        for i, row in enumerate(texts(30, 0))
    ]
    if answers == "team":
        rows = [row | {answers: "ab"[i % 2]} for i, row in enumerate(rows)]
    if answers == "answers":  # with a list of answers, a plain column is not taken
        rows = [row | {answers: [row[answers]]} for row in rows]
    roles = find_roles(read(write(tmp_path / "rows.jsonl", rows), "train"))
    assert roles == ((asks,), (answers,))


@pytest.mark.parametrize(("one", "other"), PAIRS[:2])
def test_files_of_different_layouts_are_no_mixture(tmp_path, one, other):
    paths = files(tmp_path, one, other)
    refused = CliRunner().invoke(app, ["data", "mix", *paths, "--out", str(tmp_path / "n.jsonl")])
    assert isinstance(refused.exception, UserError)
    (problem,) = refused.exception.problems
    assert problem.next_step.startswith("let a candidate read each as it is: train: [a, b]")
    assert not (tmp_path / "n.jsonl").exists()


def test_rows_of_a_task_are_held_against_test_rows_of_another_layout(tmp_path):
    train, test = files(tmp_path, "chat", "our own")
    brief = check_target(Task(name="letters", data=TaskData(train=train, test=test)))
    assert "training rows that a test row repeats, 12.5 % (5 of 40)" in brief.lines[0]
