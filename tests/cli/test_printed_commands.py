"""Commands printed by the data verbs and the note on leaks, run as printed in the same folder."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from checked_rows import damage_rows, make_clean_rows, write, write_csv
from typer.testing import CliRunner

from harness.cli import app
from harness.data import load_task
from harness.errors import UserError
from harness.evaluation.candidate_rows import refuse_or_note
from harness.spec import Task

ASK = "How do I open an account for my business in Germany"
LEAKS = [f"{ASK}?", f"{ASK} please?"]
FILL = [f"{word} {word} {i}" for i, word in enumerate(("one", "two", "three", "four", "five", "six"))]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def harness(*words):
    result = CliRunner().invoke(app, words)
    message = str(result.exception) if isinstance(result.exception, UserError) else ""
    return result.exit_code, f"{result.stdout}\n{result.stderr}\n{message}"


def run(command):
    words = shlex.split(command)
    if words[0] != "harness":
        subprocess.run(words, check=True)
        return
    code, printed = harness(*words[1:])
    assert code == 0, f"{command}\n{printed}"


def note_of(fields, training, test, **more):
    """Return the note on reworded rows of a task whose rows have the columns of these templates."""
    question, answer = (fields[role].strip("{}") for role in ("prompt", "reference"))

    def rows(texts):
        return [{question: text, answer: "ab"[i % 2]} for i, text in enumerate(texts)]

    data = {"train": write(Path("own.jsonl"), rows(training))}
    if test:
        data |= {
            "test": write(Path("test.jsonl"), rows(test)),
            "validation": write(Path("v.jsonl"), rows(["seven of nine"])),
        }
    else:
        data = {"all": data["train"]}
    task = Task.model_validate({"name": "target", "data": data | more, "fields": fields})
    items = {"target": load_task(task, 0)}
    return refuse_or_note(task, items, {}).overlap


def test_the_note_on_leaks_names_the_columns_by_which_rows_are_read():
    (note,) = note_of({"prompt": "{frage}", "reference": "{klasse}"}, [*FILL, LEAKS[0]], [LEAKS[1], "eight"])
    (command,) = re.findall("`(.+?)`", note)
    assert "--prompt frage --reference klasse --against test.jsonl --out own.dedup.jsonl" in command
    run(command)
    assert len(Path("own.dedup.jsonl").read_text().splitlines()) == len(FILL)


def rename_columns(rows):
    return [{"Anrede": "Grüße", "Frage": r["text"], "Straße": "a", "Größe": r["label"]} for r in rows]


CHECKS = {
    "semicolons and umlauts": lambda: [
        write_csv("Übersicht Juli.csv", rename_columns(damage_rows(make_clean_rows(60))), ";"), "--prompt", "{Anrede}: {Frage}", "--reference", "Größe",
    ],
    "a test file": lambda: [
        write(Path("train.jsonl"), make_clean_rows(60)), "--test", write(Path("-t.jsonl"), make_clean_rows(60)[:20]).replace("-t", "./-t"),
    ],
}  # fmt: skip


@pytest.mark.e2e
@pytest.mark.parametrize("name", CHECKS)
def test_the_chain_of_a_check_runs_also_where_it_was_run_before(name):
    words = CHECKS[name]()
    for _ in range(2):
        code, printed = harness("data", "check", *words)
        assert code == 0, printed
        chain = printed.partition("; next: ")[2].splitlines()
        for command in chain[0].split(" && "):
            run(command)


def test_the_step_of_a_refusal_that_is_a_command_runs():
    write_csv("rows.csv", make_clean_rows(20))
    code, printed = harness("data", "clean", "rows.csv", "--out", "new folder/rows.csv")
    assert code
    run(printed.partition("; next: ")[2].splitlines()[0])
    assert harness("data", "clean", "rows.csv", "--out", "new folder/rows.csv")[0] == 0
