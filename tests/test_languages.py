"""Which language rows are in: said where the suites are in another one, and used for public tasks."""

import json
import os
import shutil
import socket
import subprocess
import sys

import pytest
import tiny_experiment
import tiny_hub
from typer.testing import CliRunner

from harness import config
from harness.cli import app
from harness.evaluation.languages import SPOKEN, find_language
from harness.evaluation.lm_eval import names
from harness.experiment import scaffold
from harness.experiment.scaffold import Request, Resources
from harness.models.hardware import Machine, Memory

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


ROOM = Memory(64.0, 80.0, "memory")
GPU = Resources(Machine("cuda", "a GPU", "bf16", 100_000.0), ROOM)
CPU = Resources(Machine("cpu", "a machine", "fp32", 1000.0), ROOM)


def write_experiment(folder, texts, here):
    """Write what `init` proposes for rows; returns its sentence on public tasks and the experiment's path."""
    write_rows(folder / "mine.jsonl", texts)
    shutil.rmtree(folder / "new", ignore_errors=True)
    proposal = scaffold.propose(Request(folder / "new", str(folder / "mine.jsonl")), here)
    path = scaffold.write(proposal)[0]
    (said,) = [line for line in proposal.said if line.startswith("public tasks: ")]
    return said, path


def list_suites(path, *settings):
    return {s.name: [t.name for t in s.tasks] for s in config.load(path, settings).experiment.suites}


@pytest.mark.e2e
@pytest.mark.parametrize(("texts", "name", "n"), [(GERMAN, "public", 5), (ENGLISH, "standard", 12)])
def test_where_no_data_can_be_had_init_names_the_public_tasks_and_the_setting_that_adds_them(
    tmp_path, monkeypatch, texts, name, n
):
    monkeypatch.delenv("HARNESS_DATASETS_DIR", raising=False)
    said, path = write_experiment(tmp_path, texts, GPU)
    assert (
        f"{n} tasks of lm-eval in {'German' if n == 5 else 'English'}, suites/{name}.yaml; not listed" in said
    )
    assert f"harness compare 'suites=[general,safety,{name}]' asks them too" in said
    assert [*list_suites(path)] == ["general", "safety"]
    assert len(list_suites(path, f"suites=[general,safety,{name}]")[name]) == n


@pytest.mark.e2e
def test_public_tasks_whose_data_a_mirror_has_are_listed_for_a_gpu_and_named_for_a_cpu(tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_DATASETS_DIR", str(tiny_hub.write(tmp_path / "hub")))
    there = ["arc_challenge", "arc_easy", "winogrande", "mmlu", "gsm8k", "lambada_openai"]
    said, path = write_experiment(tmp_path, ENGLISH, GPU)
    assert "6 tasks of lm-eval in English, suites/public.yaml; listed, with data from the copies" in said
    assert list_suites(path)["public"] == there
    said, path = write_experiment(tmp_path, ENGLISH, CPU)
    assert "not listed, for on a CPU they take long" in said
    assert [*list_suites(path)] == ["general", "safety"]


@pytest.mark.e2e
def test_a_hub_that_accepts_and_never_answers_costs_three_seconds_and_none_is_asked_offline():
    """The hub is a server that listens and says nothing; its address is read when a process starts."""
    program = (
        "import time; from harness.experiment.scaffold import proposal_files as tasks;"
        "from huggingface_hub import get_session; get_session(); begin = time.monotonic();"
        "print(tasks._reaches_hub(), time.monotonic() - begin)"
    )
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        for offline, least, most in (("0", 2.5, 4.0), ("1", 0.0, 0.1)):
            env = os.environ | {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": offline, "HF_DATASETS_OFFLINE": "0"}
            done = subprocess.run(
                [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True
            )
            found, took_s = done.stdout.split()
            assert (found, least <= float(took_s) <= most) == ("False", True), done.stdout
