"""Training and test rows in different layouts, and columns that are found by the last word of their names."""

from itertools import permutations

import pytest
from checked_rows import texts, write
from typer.testing import CliRunner

from harness.cli import app
from harness.data.columns import find_roles
from harness.data.readers import read
from harness.errors import UserError
from harness.experiment.check_rows import RowCheck, check_target, examine_rows
from harness.spec import Task, TaskData

LAYOUTS = {
    "our own": lambda asks, answers: {"prompt": asks, "reference": answers},
    "chat": lambda asks, answers: {
        "messages": [{"role": "user", "content": asks}, {"role": "assistant", "content": answers}]
    },
    "Alpaca": lambda asks, answers: {"instruction": asks, "input": "", "output": answers},
    "completion": lambda asks, answers: {"prompt": asks, "completion": answers},
    "columns": lambda asks, answers: {"Customer text": asks, "Team": answers},
}


def files(folder, train, test):
    """Write 40 training rows in one layout, and test rows in another, five of which are training rows too."""
    rows, others = texts(40, 0), texts(15, 1)
    written = {"train": (LAYOUTS[train], rows), "test": (LAYOUTS[test], [*others, *rows[:5]])}
    return [
        write(folder / f"{part}.jsonl", [layout(row["prompt"], row["reference"]) for row in of])
        for part, (layout, of) in written.items()
    ]


@pytest.mark.parametrize(("train", "test"), list(permutations(LAYOUTS, 2)))
def test_a_leak_is_found_where_training_and_test_rows_have_different_layouts(tmp_path, train, test):
    train_file, test_file = files(tmp_path, train, test)
    found = examine_rows(RowCheck([train_file], [test_file], only=["test_leaks"])).findings
    assert next(f for f in found if f.severity == "error").count == 5


def test_rows_of_a_task_are_held_against_test_rows_of_another_layout(tmp_path):
    train, test = files(tmp_path, "chat", "our own")
    brief = check_target(Task(name="letters", data=TaskData(train=train, test=test)))
    assert "training rows that a test row repeats, 12.5 % (5 of 40)" in brief.lines[0]


@pytest.mark.parametrize(
    ("asks", "answers"),
    [
        ("question_text", "answer_text"),
        ("question_text", "reply"),
        ("customer_question", "reply"),
        ("user_text", "bot_reply"),
        ("query", "response_text"),
        ("body", "answer_text"),
        ("Customer question", "class label"),
    ],
)
def test_columns_are_found_by_the_last_word_of_their_names(tmp_path, asks, answers):
    rows = [{asks: row["prompt"], answers: row["reference"][:9]} for row in texts(30, 0)]
    roles = find_roles(read(write(tmp_path / "rows.jsonl", rows), "train"))
    assert roles == ((asks,), (answers,))


def test_a_source_of_a_story_does_not_answer(tmp_path):
    row = {"story": "A crate.", "source": "wiki", "answers": {"input_text": ["yes"]}, "questions": ["Is it?"]}
    roles = find_roles(read(write(tmp_path / "rows.jsonl", [row] * 30), "train"))
    assert roles.answers == ("answers",)
    assert {"story", "questions"} <= {*roles.questions}
    assert "source" not in roles.questions


def test_an_identifier_or_a_length_of_a_question_is_no_question(tmp_path):
    rows = [
        {"question_id": i, "body": row["prompt"], "team": "ab"[i % 2]} for i, row in enumerate(texts(30, 0))
    ]
    assert find_roles(read(write(tmp_path / "rows.jsonl", rows), "train")) == (("body",), ("team",))


def test_no_plain_column_answers_beside_a_list_of_answers(tmp_path):
    rows = [{"query": "Is it?", "query_id": i, "answers": ["yes"]} for i in range(30)]
    assert find_roles(read(write(tmp_path / "rows.jsonl", rows), "train")) == (("query",), ("answers",))


def test_a_template_that_is_advised_shows_no_solution(tmp_path):
    rows = [
        {"hint": f"By {i}.", "solution": f"It is {i}.", "task": f"Add {i}.", "answer": i} for i in range(30)
    ]
    with pytest.raises(UserError, match=r"--prompt '\{hint\}\\n\\n\{task\}'"):
        find_roles(read(write(tmp_path / "rows.jsonl", rows), "train"))


@pytest.fixture
def lumped_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [(row["prompt"], row["reference"]) for row in texts(60, 0)]
    layouts = [LAYOUTS["Alpaca"]] * 40 + [LAYOUTS["chat"]] * 20
    write(tmp_path / "r.jsonl", [layout(*row) for layout, row in zip(layouts, rows, strict=True)])
    return tmp_path


def run(words):
    done = CliRunner().invoke(app, words.split())
    assert done.exit_code == 0, done.stderr
    return done.stdout


def test_rows_of_another_layout_are_no_duplicates_of_one_another(lumped_file):
    said = run("data dedup r.jsonl --out n.jsonl")
    assert said.startswith("60 read, 60 written, 20 reported\n")
    assert "20 reported: nothing in the columns of prompt and answer" in said


def test_the_check_and_clean_say_that_rows_have_another_layout(lumped_file):
    (found,) = (
        f
        for f in examine_rows(RowCheck(["r.jsonl"], only=["missing_values"])).findings
        if f.severity == "error"
    )
    assert (found.title, found.count) == ("rows of another layout than most: chat (20)", 20)
    assert found.command.startswith("no command: write them to a file of their own")
    assert "20 dropped: a row of another layout: chat" in run("data clean r.jsonl --out n.jsonl")


@pytest.mark.parametrize(("one", "other"), list(permutations(LAYOUTS, 2)))
def test_files_of_different_layouts_are_no_mixture(tmp_path, one, other):
    named = files(tmp_path, one, other)
    refused = CliRunner().invoke(app, ["data", "mix", *named, "--out", str(tmp_path / "n.jsonl")])
    assert isinstance(refused.exception, UserError)
    (problem,) = refused.exception.problems
    assert problem.next_step.startswith("let a candidate read each as it is: train: [a, b]")
    assert not (tmp_path / "n.jsonl").exists()


def test_files_of_one_layout_are_a_mixture_though_some_have_more_columns(tmp_path):
    more = [{**row, "source_id": i} for i, row in enumerate(texts(20, 1))]
    several = [{"prompt": row["prompt"], "references": [row["reference"]]} for row in texts(20, 2)]
    named = [write(tmp_path / f"{i}.jsonl", rows) for i, rows in enumerate((texts(20, 0), more, several))]
    assert "60 written" in run(f"data mix {' '.join(named)} --out {tmp_path / 'n.jsonl'}")
