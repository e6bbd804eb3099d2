"""Which language rows are in: said where the suites are in another one, and used for public tasks."""

import json

import pytest
import tiny_experiment
from typer.testing import CliRunner

from harness.cli import app
from harness.evaluation.languages import SPOKEN, find_language
from harness.evaluation.lm_eval import names

GERMAN = [
    f"Mein Paket mit der Nummer {i} ist seit {i + 2} Tagen nicht angekommen, wo bleibt es denn nur?"
    for i in range(40)
]
ENGLISH = [
    f"My parcel with the number {i} has not arrived for {i + 2} days, so where is it now?" for i in range(40)
]


def test_a_language_is_named_where_nearly_all_of_many_long_texts_are_in_it():
    assert (find_language(GERMAN), find_language(ENGLISH)) == ("de", "en")
    assert find_language([*GERMAN[:20], *ENGLISH[:20]]) == ""
    assert find_language(GERMAN[:9]) == ""
    assert find_language(text[:15] for text in GERMAN) == ""


def test_each_task_that_is_named_for_a_language_is_in_the_catalogue_of_lm_eval():
    named = [task for spoken in SPOKEN.values() for task in spoken.tasks]
    assert len(named) >= 40
    assert [task for task in named if names().get(task) not in ("task", "group")] == []


def write_rows(path, texts):
    rows = [
        {"id": f"{i}", "prompt": text, "reference": ("late", "money")[i % 2]} for i, text in enumerate(texts)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


@pytest.mark.e2e
@pytest.mark.parametrize(("asked", "is_said"), [(GERMAN, True), (ENGLISH, False)], ids=["German", "English"])
def test_plan_and_report_say_that_no_suite_is_in_the_language_of_the_target(tmp_path, tiny, asked, is_said):
    path = tiny_experiment.write(tmp_path, tiny, "  prompt: {method: base}\n")
    write_rows(path.parent / "suites/letters/test.jsonl", asked)
    write_rows(path.parent / "suites/general/facts.jsonl", ENGLISH)
    said = (
        "language: the target is in German, the capability suites are in English: what is forgotten of German is "
        "not measured; next: tasks of lm-eval such as belebele_deu_Latn, m_mmlu_de, arc_de in a suite"
    )
    plan = CliRunner().invoke(app, ["compare", "-c", str(path), "--dry-run"])
    assert (plan.exit_code, said in plan.stderr) == (0, is_said), plan.stderr
    done = CliRunner().invoke(app, ["compare", "-c", str(path), "--json"])
    assert (said in json.loads(done.stdout)["notes"]) == is_said, done.stderr
