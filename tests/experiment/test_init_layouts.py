"""`harness init` reads public data sets' layouts: the use of each column, the prompt and the answers."""

import json
import shlex

import pytest
from checked_rows import write
from proposals import propose, read_evaluated
from typer.testing import CliRunner

from harness.cli import app
from harness.errors import UserError
from harness.experiment.check_rows import RowCheck, examine_rows

N = 40
NAMES = ("Ann Lee", "Bob Ray", "Cleo Fox") * 4


def say(i, n=9):
    """Make a text of `n` words that is different for each number."""
    words = ("the", "hen", "sees", "an", "old", "gate", "near", "our", "mill")
    return " ".join(f"{words[(i + k) % 9]}{i * k % 7}" for k in range(n))


def pick(values, i):
    return values[i % len(values)]


def sql(i):
    return f"SELECT name FROM hens WHERE age > {i}"


RATE_REVIEW = (
    "Rate the text on a scale from 1 (lowest) to 5 (highest). Reply with the number and nothing else."
)
EXTRACT_ENTITIES = (
    "Extract the entities from the text as a JSON list of objects with the keys text, type (one of LOC | PER); "
    "an empty list where there are none. Reply with the JSON and nothing else."
)
# The row of a number, the use of its columns, its prompt and right answer, and the instruction.
LAYOUTS = {
    "dialogue": (
        lambda i: {"id": f"d{i}", "dialogue": f"Ann: {say(i)}", "summary": f"Ann says {say(i, 5)}."},
        "id → id; dialogue → question; summary → answer", lambda row: (row["dialogue"], row["summary"]),
        "Summarize the dialogue in a few words. Reply with the summary and nothing else.",
    ),
    "SQL with a schema": (
        lambda i: {"question": f"Who is over {i}?", "schema": f"CREATE TABLE t{i} (age INT)", "sql": sql(i)},
        "question → question; schema → context; sql → answer",
        lambda row: (f"{row['schema']}\n\n{row['question']}", row["sql"]),
        "Write one SQL query on the tables of the schema that answers the question. Reply with the query and nothing else.",
    ),
    "reviews": (
        lambda i: {"title": say(i, 3), "text": say(i, 20), "rating": i % 5 + 1},
        "title, text → question; rating → label",
        lambda row: (f"{row['title']}\n\n{row['text']}", str(row["rating"])), RATE_REVIEW,
    ),
    "PubMedQA": (
        lambda i: {
            "pubid": f"x{i}", "question": f"Do hens help {i}?",
            "context": {"contexts": [say(i, 20), say(i + 50, 20)], "labels": ["A", "B"]},
            "long_answer": say(i + 90, 20), "final_decision": pick(("yes", "no", "maybe"), i),
        },
        "pubid, long_answer, context.labels → not used; question → question; context → context; final_decision → label",
        lambda row: ("\n".join(row["context"]["contexts"]) + f"\n\n{row['question']}", row["final_decision"]),
        "Answer the question from the context. Reply with one of these labels and nothing else: maybe, no, yes.",
    ),
    "entities": (
        lambda i: {
            "text": f"Ann{i} was in Oslo.",
            "entities": [{"text": f"Ann{i}", "type": "PER"}, {"text": "Oslo", "type": "LOC"}]
            if i % 4
            else [],
        },
        "text → question; entities → answer",
        lambda row: (row["text"], json.dumps(row["entities"])),
        EXTRACT_ENTITIES,
    ),
    "translation": (
        lambda i: {"translation": {"de": f"Die Henne {i} steht.", "en": f"The hen {i} stands."}},
        "translation → question and answer", lambda row: (row["translation"]["de"], row["translation"]["en"]),
        "Translate the text from German to English. Reply with the translation and nothing else.",
    ),
    "NLI": (
        lambda i: {"premise": say(i), "hypothesis": say(i + 50, 4), "label": pick(("no", "open", "yes"), i)},
        "premise → context; hypothesis → question; label → label",
        lambda row: (f"Premise: {row['premise']}\nHypothesis: {row['hypothesis']}", row["label"]),
        "Decide whether the hypothesis follows from the premise. Reply with one of these labels and nothing else: no, open, yes.",
    ),
    "PIQA": (
        lambda i: {"goal": f"Open {i}", "sol1": f"pull {i}", "sol2": f"push {i}", "label": i // 2 % 2},
        "goal → question; sol1, sol2 → choice; label → answer",
        lambda row: (row["goal"], row[f"sol{row['label'] + 1}"]), "Complete the goal.",
    ),
    "lists of tags": (
        lambda i: {"text": say(i), "tags": [[], ["mail"], ["bills"], ["mail", "bills"]][i % 4]},
        "text → question; tags → answer", lambda row: (row["text"], "; ".join(row["tags"]) or "none"),
        "Classify the text. Reply with all that apply of: bills, mail, none. Write ';' between them.",
    ),
    "RACE": (
        lambda i: {
            "article": say(i // 4, 30), "question": f"Which is {i}?", "options": [f"{c}{i}" for c in "wxyz"],
            "answer": "ABCD"[i % 4],
        },
        "article → context; question → question; options → choice; answer → answer",
        lambda row: (f"{row['article']}\n\n{row['question']}", row["options"]["ABCD".index(row["answer"])]),
        "Answer the question from the article.",
    ),
}  # fmt: skip

METRICS = {
    "SQL with a schema": ("sql_match", "token_f1"),
    "reviews": ("exact_match", "mean_absolute_error", "within_one", "weighted_kappa"),
    "entities": ("span_f1", "json_valid"),
    "NLI": ("exact_match", "macro_f1"),
    "PIQA": ("accuracy", "bits_per_byte"),
}


def make_rows(make_row):
    return [make_row(i) for i in range(N)]


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_read_whole_and_asked_as_a_practitioner_would(tmp_path, name):
    make_row, columns, expected_of, instruction = LAYOUTS[name]
    raw_rows = make_rows(make_row)
    plan = propose(tmp_path, raw_rows)
    assert next(line for line in plan.lines if line.startswith("columns: ")) == f"columns: {columns}"
    assert (plan.task.system, plan.task.metrics) == (instruction, METRICS.get(name, plan.task.metrics))
    assert not examine_rows(RowCheck([str(tmp_path / "mine.jsonl")])).table.unusable
    items = read_evaluated(plan.task)
    assert len(items) == N
    assert {(item.prompt, item.references[0]) for item in items} == {expected_of(row) for row in raw_rows}


def test_a_column_for_each_label_is_refused(tmp_path):
    rows = make_rows(lambda i: {"text": say(i), "joy": i % 2, "fear": 1 - i % 2})
    with pytest.raises(UserError, match="the columns joy, fear say yes or no each: write those that apply"):
        propose(tmp_path, rows)


def test_what_cannot_be_told_is_refused_with_the_whole_command_which_works(tmp_path):
    raw_rows = make_rows(
        lambda i: {"row_id": i, "first": say(i, 20), "second": say(i + 50, 20), "third": f"kind {i % 2}"}
    )
    path, new_folder = write(tmp_path / "mine.jsonl", raw_rows), tmp_path / "new"
    options = ["--prompt", "{first}\\n\\n{second}", "--reference", "third"]
    refusal = CliRunner().invoke(app, ["init", str(new_folder), "--data", str(path)])
    assert isinstance(refusal.exception, UserError)
    (problem,) = refusal.exception.problems
    command = shlex.split(problem.next_step)
    assert command == ["harness", "init", str(new_folder), "--data", str(path), *options]
    result = CliRunner().invoke(app, [*command[1:], "--base-model", "org/name", "--instruction", "Say it."])
    assert result.exit_code == 0, result.output
    assert "instruction: Say it." in result.output
    assert "system: Say it." in (new_folder / "suites" / "mine.yaml").read_text()


def label_rows(column, values):
    return [{"text": say(i), column: value} for i, value in enumerate(values)]


# Few rows and the task's description on screen.
SMALL = {
    "stars": (label_rows("stars", (5, 4, 5, 3, 1, 5, 4, 2, 5, 1, 4, 3)), "ratings in 5 steps"),
    "teams, two with one row": (
        label_rows("team", (*"wwwwmmmm", "infra", "data")), "a closed set of 4 labels",
    ),
    "tags that are joined": (
        label_rows("tags", ("a", "b", "a; b", "c", "a", "b; c", "b", "c")), "several of 3 labels",
    ),
    "persons": (
        [{"question": f"Which is {say(i, 4)}?", "answer": name} for i, name in enumerate(NAMES)], "short free text",
    ),
    "prices": (label_rows("price", (10, 20, 10, 30, 20, 30) * 2), "numbers; scored by exact_match"),
}  # fmt: skip


@pytest.mark.parametrize("name", SMALL)
def test_a_small_file_shows_by_names_and_form_whether_its_answers_are_labels(tmp_path, name):
    raw_rows, expected = SMALL[name]
    proposal = propose(tmp_path, raw_rows)
    assert next(line for line in proposal.lines if line.startswith("task: ")).startswith(f"task: {expected}")
