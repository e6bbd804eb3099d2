"""`harness init` names columns that it does not read, where the task or its split hangs on them."""

import json

import pytest
from ruamel.yaml import YAML

from harness.data import load_task
from harness.errors import UserError
from harness.experiment import scaffold
from harness.experiment.check_rows import RowCheck, examine_rows
from harness.experiment.scaffold import Request, Resources
from harness.models.hardware import Machine, Memory
from harness.spec import TaskData

HERE = Resources(Machine("cpu", "a machine", "fp32", 1000.0), Memory(64.0, 80.0, "memory"))
WORDS = "the lamp is on the table and the hen is in the garden"


def propose(tmp_path, content, **given):
    """Propose an experiment for rows."""
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return scaffold.propose(Request(tmp_path / "new", str(path), **given), HERE)


def make_choices(columns, answer, right, ask="question"):
    """Make questions with a column for each choice."""
    made = []
    for i in range(40):
        texts = dict(zip(columns, (f"lamp {i}", f"hen {i}", f"gate {i}"), strict=True))
        made.append({ask: f"Which is {i}?", **texts, answer: right(i % 3, list(texts.values()))})
    return made


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("columns", "answer", "right"),
    [
        (("option_a", "option_b", "option_c"), "answer", lambda i, texts: "abc"[i]),
        (("Option A", "Option B", "Option C"), "Correct Answer", lambda i, texts: "ABC"[i]),
        (("opt1", "opt2", "opt3"), "answer", lambda i, texts: i + 1),
        (("choice1", "choice2", "choice3"), "label", lambda i, texts: i),
        (("option1", "option2", "option3"), "answer", lambda i, texts: texts[i]),
    ],
)
def test_choices_in_columns_of_their_own_are_choices(tmp_path, columns, answer, right):
    content = make_choices(columns, answer, right)
    found = propose(tmp_path, content)
    assert found.kind == "choice"
    chosen = {e.prompt: e.references[0] for e in load_task(found.task, 0).train}
    of_row = {row["question"]: row[columns[i % 3]] for i, row in enumerate(content)}
    assert chosen.items() <= of_row.items()


@pytest.mark.e2e
def test_lettered_columns_that_are_read_as_choices_are_not_refused(tmp_path):
    assert propose(tmp_path, make_choices("ABC", "answer", lambda i, texts: "ABC"[i])).kind == "choice"


@pytest.mark.e2e
def test_columns_of_letters_that_no_answer_names_are_not_refused(tmp_path):
    found = propose(tmp_path, make_choices("abc", "answer", lambda i, texts: f"it is {i}"))
    assert not any("nobody" in line for line in found.warnings)


@pytest.mark.e2e
def test_an_answer_goes_before_a_category_and_the_other_is_named(tmp_path):
    content = [
        {"prompt": f"Say {i}.", "category": "ab"[i % 2], "response": f"{i} {WORDS}"} for i in range(40)
    ]
    found = propose(tmp_path, content)
    assert found.task.fields.reference == "{response}"
    assert any(line.endswith("--reference category") for line in found.warnings)
    assert propose(tmp_path, content, reference="category").warnings == ()


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (
            ("text", "label", "sentiment"),
            "the answer is taken from 'label', and 'sentiment' may hold it as well",
        ),
        (
            ("question", "answer", "output"),
            "the answer is taken from 'answer', and 'output' may hold it as well",
        ),
        (
            ("text", "label", "message"),
            "the question is taken from 'text', and 'message' may hold it as well",
        ),
        (
            ("question", "answer", "prompt"),
            "the question is taken from 'question', and 'prompt' may hold it as well",
        ),
    ],
)
def test_which_column_was_taken_where_two_could_be_is_said_by_init_and_by_the_check(tmp_path, columns, said):
    content = [{name: f"{name} {i}" for name in columns} for i in range(40)]
    option = "--prompt" if "question is" in said else "--reference"
    (line,) = propose(tmp_path, content).warnings
    assert line == f"{said}; next: where it does, {option} {columns[2]}"
    checked = examine_rows(RowCheck([str(tmp_path / "mine.jsonl")], only=["missing_values"]))
    (command,) = [finding.command for finding in checked.findings if finding.title == said]
    assert command.endswith(f"{option} {columns[2]}")


@pytest.mark.e2e
def test_labels_that_are_codes_are_warned_of_with_the_column_that_names_them(tmp_path):
    names = ("card", "pin", "refund")
    content = [{"text": f"Say {i}.", "label": i % 3, "label_text": names[i % 3]} for i in range(60)]
    (said,) = propose(tmp_path, content).warnings
    assert "the labels are numbers" in said
    assert said.endswith("next: --reference label_text, which names them")
    (alone,) = propose(tmp_path, [{"text": row["text"], "label": row["label"]} for row in content]).warnings
    assert alone.endswith("--instruction TEXT")


@pytest.mark.e2e
@pytest.mark.parametrize("column", ["label", "kto_tag"])
def test_thumbs_beside_turns_are_warned_of(tmp_path, column):
    turns = [
        [{"role": "user", "content": f"Say {i}."}, {"role": "assistant", "content": f"{i} {WORDS}"}]
        for i in range(40)
    ]
    found = propose(tmp_path, [{"messages": of, column: i % 4 > 0} for i, of in enumerate(turns)])
    (said,) = found.warnings
    assert said.startswith(f"{column!r} is false in 10 of 40 rows")


@pytest.mark.e2e
def test_a_column_that_names_the_parts_of_a_split_is_said_not_to_be_read(tmp_path):
    parts = ["train", "train", "train", "test"]
    content = [{"text": f"Say {i}.", "label": "ab"[i % 2], "split": parts[i // 2 % 4]} for i in range(80)]
    (said,) = propose(tmp_path, content).warnings
    assert said.startswith("the column 'split' parts the rows into train (60), test (20), and is not read")


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("columns", "layout"),
    [
        (("Question", "Context", "Answer"), "question"),
        (("Instruction", "Input", "Output"), "Alpaca"),
        (("Prompt", "Chosen", "Rejected"), "preference"),
    ],
)
def test_columns_of_a_layout_in_capitals_are_not_left_out(tmp_path, columns, layout):
    content = [dict(zip(columns, (f"Say {i}.", f"It is {i}", f"no {i}"), strict=True)) for i in range(40)]
    with pytest.raises(UserError) as refusal:
        propose(tmp_path, content)
    (problem,) = refusal.value.problems
    assert problem.found == f"columns {', '.join(columns)}"
    assert problem.expected.startswith(f"{layout} rows")
    small = [{name.lower(): value for name, value in row.items()} for row in content]
    assert propose(tmp_path, small).files


@pytest.mark.e2e
def test_a_question_and_an_answer_in_capitals_are_read(tmp_path):
    content = [{"Category": "x", "Question": f"Say {i}.", "Answer": f"{i} {WORDS}"} for i in range(40)]
    fields = propose(tmp_path, content).task.fields
    assert (fields.prompt, fields.reference) == ("{Question}", "{Answer}")


@pytest.mark.e2e
def test_columns_without_a_name_and_a_value_are_no_sign_of_a_missing_header(tmp_path):
    path = tmp_path / "spam.csv"
    lines = [f"{'ham' if i % 2 else 'spam'},Say {i} {WORDS},,," for i in range(40)]
    path.write_text("\n".join(["v1,v2,,,", *lines]))
    fields = scaffold.propose(Request(tmp_path / "new", str(path)), HERE).task.fields
    assert (fields.prompt, fields.reference) == ("{v2}", "{v1}")


@pytest.mark.e2e
def test_parts_of_a_folder_beside_train_are_said_not_to_be_read(tmp_path):
    folder = tmp_path / "parts"
    folder.mkdir()
    for part, n in (("train", 60), ("validation", 10), ("test", 10)):
        content = [{"text": f"Say {part} {i}.", "label": "ab"[i % 2]} for i in range(n)]
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    found = scaffold.propose(Request(tmp_path / "new", str(folder)), HERE)
    (said,) = found.warnings
    assert "its validation and test rows are not read" in said
    data = YAML(typ="safe").load(said.partition("write data: ")[2].removesuffix(" in the suite"))
    kept = load_task(found.task.model_copy(update={"data": TaskData(**data)}), 0)
    assert (len(kept.train), len(kept.validation), len(kept.test)) == (60, 10, 10)
