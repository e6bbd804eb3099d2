"""The A/A noise of a suite: what flips between layouts of one model, how it is stored, and what it decides."""

import json
from dataclasses import replace

import pytest
import tiny_experiment
from fake_rows import EXACT, rows
from typer.testing import CliRunner

from harness import config, store
from harness.cli import app
from harness.evaluation import EvaluationJob
from harness.experiment import Scope, prepare_session, study_session
from harness.experiment import measure as measure_run
from harness.experiment.analysis import Reader
from harness.experiment.preflight import measure_noise, task_noise
from harness.gating import admit
from harness.progress import SilentProgress
from harness.records import Noise, RowsIdentity, TaskNoise
from harness.spec import Task
from harness.store import Store

TASK = Task(name="task", data={})
JOB = EvaluationJob(
    TASK,
    "capability",
    "test",
    (),
    {"exact_match": EXACT},
    "generate",
    RowsIdentity(*("w", "t", "task", "v", "test", "p", "generate", "bf16", "e", "l", "cpu")),
)


def set_logprobs(scores, logprobs):
    return [replace(row, gold_logprob=x) for row, x in zip(rows(scores), logprobs, strict=True)]


def measurement(flips, n, *, precision="bf16", created="1"):
    task = TaskNoise("task", n, {"layout": flips}, 0.5)
    return Noise(created, created, "m", "base", precision, "cpu", "e", "l", (task,))


def test_flips_are_counted_for_each_arm_and_what_one_layout_alone_could_score_has_flipped():
    usual = set_logprobs([1, 0, 1, 1], [-1.0, -2.0, -3.0, None])
    arms = {"layout": set_logprobs([1, 1, 0, 1], [-1.0, -1.5, -3.7, None]), "batch": usual}
    found = task_noise(JOB, usual, arms)
    assert (found.n, found.flips) == (4, {"layout": 2, "batch": 0})
    assert found.largest_nats == pytest.approx(0.7)
    assert found.rate == 2 / 8
    assert task_noise(JOB, rows([1, None]), {"layout": rows([1, 0])}).flips == {"layout": 1}


def test_the_newest_measurement_of_a_precision_counts(tmp_path):
    at = Store(tmp_path)
    for one in (measurement(9, 100), measurement(2, 100, created="2"), measurement(0, 50, precision="fp32")):
        store.save_noise(at, one)
    (tmp_path / "noise" / "3.json").write_text("{")
    assert store.noise_rates(at) == {"bf16": (2.0, 100.0), "fp32": (0.5, 50.0)}
    assert store.flip_rates(at, "base", "bf16") == {"task": 0.02}
    assert store.flip_rates(at, "another", "bf16") == {}


@pytest.mark.parametrize(("rate", "admitted"), [(None, True), (0.02, True), (0.9, False)])
def test_a_task_whose_score_is_within_its_noise_is_not_admitted(rate, admitted):
    chance = Task(name="task", data={}, chance=0.25)
    ok, why = admit(chance, EXACT, rows([1] * 45 + [0] * 55), rate)
    assert ok is admitted
    assert ("its layout alone" in why) is not admitted


def test_a_comparison_judges_with_the_noise_of_its_base(copy):
    session = prepare_session(config.load(copy), Scope(), SilentProgress())
    run = tiny_experiment.runs_of(copy)["lora"]
    of_facts = (TaskNoise("facts", 6, {"layout": 3}, None),)
    measured = replace(measurement(0, 1, precision="fp32"), base_digest=run.base_digest, tasks=of_facts)
    store.save_noise(session.store, measured)
    found = measure_run(study_session(session, Reader(session)), run)
    assert {m.task.name: m.flip_rate for m in found} == {"sums": None, "facts": 0.5, "prose": None}


def test_nothing_flips_in_fp32_and_the_measurement_is_kept(copy):
    session = prepare_session(config.load(copy), Scope(), SilentProgress())
    found = measure_noise(session)
    assert [(t.task, t.n) for t in found.tasks] == [("sums", 6), ("facts", 6), ("prose", 4)]
    assert (found.flips, found.n) == (0, 32)
    assert max(t.largest_nats for t in found.tasks if t.largest_nats is not None) < 1e-3
    assert store.noises(session.store) == [found]


@pytest.mark.e2e
def test_the_doctor_prints_what_flipped(copy, monkeypatch):
    monkeypatch.chdir(copy.parent)
    shown = CliRunner().invoke(app, ["doctor", "--noise"])
    assert "0 of 32 answers flipped (0.0 %), fp32" in shown.stdout
    raw = json.loads(CliRunner().invoke(app, ["doctor", "--noise", "--json"]).stdout)
    assert (raw["flips"], raw["n"]) == (0, 32)
