"""The doctor says what is there, what candidates will take, what they took, and what is missing."""

import json

import pytest
import tiny_experiment
from typer.testing import CliRunner

from harness.cache import remember
from harness.cli import app
from harness.experiment import Scope, prepare_session
from harness.experiment.preflight import _disk_problems, compiler_problems, examine
from harness.experiment.preflight.candidate_costs import (
    checkpoints_gb,
    estimate_costs,
)
from harness.models.hardware import Memory
from harness.progress import SilentProgress


def session(path, *overrides):
    from harness import config

    loaded = config.load(path, overrides)
    return prepare_session(loaded, Scope(), SilentProgress()), loaded.selected


def estimate_by_name(path, room, *overrides):
    return {cost.candidate: cost for cost in estimate_costs(*session(path, *overrides), room)}


ROOMY, TIGHT = Memory(1e6, 1e6, "GPU"), Memory(0.5, 80.0, "GPU")


@pytest.mark.e2e
def test_every_candidate_has_an_estimate_and_beside_it_what_was_measured(copy):
    found = examine(copy, [], SilentProgress())
    assert [cost.candidate for cost in found.costs] == ["prompt", "shots", "ranked", "bag", "lora", "hybrid"]
    lora, bag = (next(c for c in found.costs if c.candidate == name) for name in ("lora", "bag"))
    assert lora.memory_gib > 0
    assert lora.flops > 0
    assert lora.time_measured_s > 0
    assert lora.memory_measured_gib > 0
    assert lora.cost_measured_usd > 0
    assert bag.memory_gib is None
    assert bag.fits
    assert found.problems == ()


@pytest.mark.e2e
def test_what_trains_or_answers_longer_takes_more_and_a_changed_recipe_has_no_measured_figures(copy):
    assert estimate_by_name(copy, ROOMY, "candidates.lora.params.r=4")["lora"].time_measured_s is None
    found = estimate_by_name(copy, ROOMY)
    assert found["lora"].time_s > found["prompt"].time_s
    assert found["lora"].flops > found["prompt"].flops
    assert all(cost.fits and not cost.knob for cost in estimate_by_name(copy, ROOMY).values())
    tight = estimate_by_name(copy, TIGHT)
    assert tight["prompt"].fits is False
    assert tight["prompt"].knob == "a smaller base_model"
    suite = copy.parent / "suites" / "letters.yaml"
    least = estimate_by_name(copy, ROOMY)["prompt"].memory_gib
    suite.write_text(suite.read_text().replace("max_new_tokens: 4", "max_new_tokens: 40"))
    assert estimate_by_name(copy, ROOMY)["prompt"].memory_gib > least


@pytest.mark.parametrize(
    ("params", "n_bytes"),
    [("", 4 + 8), ("dtype: bfloat16", 2 + 4), ("dtype: bfloat16, optim: adamw_8bit", 2 + 2)],
)
def test_three_checkpoints_of_a_whole_model_need_room_on_the_disk(tiny, tmp_path, params, n_bytes):
    candidates = f"  prompt: {{method: base}}\n  full: {{method: full, params: {{{params}}}}}\n"
    opened, selected = session(tiny_experiment.write(tmp_path, tiny, candidates))
    needed = 3 * n_bytes * opened.source.n_parameters / 1e9
    assert checkpoints_gb(opened.candidates["full"]) == pytest.approx(needed)
    found = [str(p) for p in _disk_problems(opened, selected, 0.9 * needed, "here")]
    assert any("checkpoints of full" in one for one in found)
    assert [*_disk_problems(opened, selected, 5 + needed, "here")] == []


@pytest.mark.e2e
def test_a_batch_too_large_is_told_the_size_that_fits(copy):
    large = "candidates.lora.params.per_device_train_batch_size=4096"
    least = estimate_by_name(copy, ROOMY)["lora"].memory_gib
    most = estimate_by_name(copy, ROOMY, large)["lora"].memory_gib
    assert most > least
    knob = estimate_by_name(copy, Memory((least + most) / 2, 1e6, "GPU"), large)["lora"].knob
    assert knob.startswith("params.per_device_train_batch_size: ")
    assert "with gradient_accumulation_steps: " in knob


@pytest.mark.e2e
def test_the_check_measures_the_machine_anew(copy, tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    opened = session(copy, "precision=fp32")[0]
    (file,) = (tmp_path / "cache" / "machines").glob("*.json")
    remember(file, opened.machine._replace(name="kept", gflops=1e-9)._asdict())
    assert session(copy, "precision=fp32")[0].machine.name == "kept"
    assert examine(copy, ["precision=fp32"], SilentProgress()).machine.name != "kept"


@pytest.mark.e2e
def test_what_is_wrong_with_the_files_is_listed_and_the_machine_is_still_described(copy):
    (copy.parent / "suites" / "general" / "sums.jsonl").unlink()
    found = examine(copy, ["gate.macr=1"], SilentProgress())
    assert len(found.problems) == 2
    assert found.costs == ()
    assert found.machine.device == "cpu"
    assert CliRunner().invoke(app, ["doctor", "-c", str(copy)]).exit_code == 2


@pytest.mark.e2e
def test_the_command_prints_a_table_and_as_json_the_same(copy):
    done = CliRunner().invoke(app, ["doctor", "-c", str(copy)])
    assert done.exit_code == 0, done.output
    assert "estimated / measured" in done.stdout
    assert all(len(line) <= 110 for line in done.stdout.splitlines() if not line.startswith("packages"))
    assert done.stderr.endswith(f"next: harness compare -c {copy}\n")
    plain = json.loads(CliRunner().invoke(app, ["doctor", "-c", str(copy), "--json"]).stdout)
    assert {"machine", "memory", "costs", "absent"} <= plain.keys()
    assert plain["costs"][0]["candidate"] == "prompt"


def test_a_gpus_machine_without_a_compiler_is_told_so(tmp_path):
    assert compiler_problems("cpu", tmp_path, str(tmp_path)) == []
    found = [problem.found for problem in compiler_problems("cuda", tmp_path, str(tmp_path))]
    assert found == ["no C compiler", "no Python.h"]
    (tmp_path / "Python.h").touch()
    compiler = tmp_path / "cc"
    compiler.touch(mode=0o755)
    assert compiler_problems("cuda", tmp_path, str(tmp_path)) == []
