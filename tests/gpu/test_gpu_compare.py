"""Whole comparisons on a GPU: trainings, answers and verdicts, with and without workers that share it.

Rewards and drift are measured on the embedded model, and leave figures for the page.
"""

import shutil
import subprocess
import sys

import pytest
import tiny_experiment
import tiny_methods
from bench_page import Row
from gpu_parts import leave
from the_gpu import gpu

from harness import formatting, store
from harness.evaluation.control_arm import measure_noise
from harness.experiment.run_remarks import measure_reward_gain
from reports.studies import rlhf

CANDIDATES = """\
  prompt: {method: base}
  lora: {method: lora, params: {r: 2, num_train_epochs: 1, learning_rate: 0.01, max_length: 200}}
  qlora: {method: qlora, params: {r: 2, num_train_epochs: 1, learning_rate: 0.01, max_length: 200}}
  full: {method: full, params: {num_train_epochs: 1, max_length: 200}}
  paged: {method: full, params: {max_steps: 3, optim: paged_adamw_8bit, max_length: 200}}
  int8: {method: lora, quantization: int8, params: {r: 2, max_steps: 3, max_length: 200}}
  head: {method: head, params: {num_train_epochs: 1, max_length: 200}}
  hybrid: {weights_of: lora, prompting: {few_shot: {select: fixed, shots: 2}}}
"""
NAMES = [line.split(":")[0].strip() for line in CANDIDATES.splitlines()]
# By how a training's processes hold its weights: dpo only if each process holds them all.
SHARED = {"MULTI_GPU": ("qlora", "spectrum", "dpo"), "FSDP": ("qlora", "spectrum", "bottleneck")}


@pytest.fixture
def experiment(tiny, tmp_path):
    """Write the tiny experiment for the GPU."""
    gpu("fp32")
    path = tiny_experiment.write(tmp_path, shutil.copytree(tiny, tmp_path / "tiny"), CANDIDATES)
    path.write_text(path.read_text().replace("device: cpu", "device: cuda"))
    return path


def states(path, *overrides):
    """Run a comparison; return the final state of each candidate's run."""
    tiny_experiment.run(path, *overrides)
    return {name: run.state for name, run in tiny_experiment.runs_of(path).items()}


@pytest.mark.gpu
def test_every_method_trains_and_answers_on_a_gpu(experiment):
    assert states(experiment) == dict.fromkeys(NAMES, "done")


@pytest.mark.gpu
def test_workers_share_a_gpu(experiment):
    shared = ("execution.executor=local", "execution.workers=2", "execution.threads=1")
    assert states(experiment, *shared) == dict.fromkeys(NAMES, "done")


@pytest.mark.gpu
@pytest.mark.parametrize("kind", SHARED)
def test_two_gpus_share_each_training(tiny, tmp_path, kind):
    import torch

    if torch.cuda.device_count() < 2:
        pytest.skip(f"torch sees {torch.cuda.device_count()} GPUs, and this needs two")
    trained = (f"  {name}: {{method: {name}, params: {{max_length: 200}}}}\n" for name in SHARED[kind])
    candidates = "".join(["  prompt: {method: base}\n", *trained])
    extra = f"training: {{accelerate: {{num_processes: 2, distributed_type: {kind}}}}}\n"
    copied, pairs = shutil.copytree(tiny, tmp_path / "tiny"), tiny_methods.pair_rows(slice(0, 5))
    path = tiny_experiment.write(tmp_path, copied, candidates, extra=extra, pairs=pairs)
    path.write_text(path.read_text().replace("device: cpu", "device: cuda"))
    assert set(states(path).values()) == {"done"}
    runs = tiny_experiment.runs_of(path)
    assert {runs[name].training.others["n_processes"] for name in SHARED[kind]} == {2}


REWARDED = ("grpo-f1", "rloo-f1", "grpo-judge", "rloo-judge")


def measure_rewards(folder, device, *overrides):
    """Train GRPO and RLOO as the rewards study does; return each one's gain on validation, and rows for the page."""
    path = rlhf.write_experiment(folder)
    report = tiny_experiment.run(path, f"device={device}", *overrides, candidates=REWARDED)
    gains, rows = {}, []
    for name in REWARDED:
        f = tiny_experiment.fact_of(report, name)
        assert f.state == "done", f.error
        gains[name] = gain = measure_reward_gain(f.training)
        change = formatting.plain(gain.change, gain.low, gain.high, sign=True)
        time, peak = formatting.seconds(f.training.wall_s), formatting.plain(f.training.peak_memory_gib)
        text = f"from {formatting.plain(gain.before)} by {change}, {f.training.n_steps} steps, {time}, {peak} GiB"
        rows.append(Row(f"{name}: reward on {gain.n} validation prompts", gain.after, "", None, text))
    return gains, rows


@pytest.mark.gpu
def test_grpo_and_rloo_raise_the_reward_of_a_rule_beyond_its_noise(tmp_path, own_cache):
    machine = gpu("fp32")
    gains, rows = measure_rewards(tmp_path, "cuda")
    leave("the embedded model, rewarded by a rule and by a reward model", rows, machine)
    assert min(gains["grpo-f1"].low, gains["rloo-f1"].low) > 0


BUSY = "import torch\na = torch.rand(4096, 4096, device='{}')\nwhile True: (a @ a).sum().item()"
UNTRAINED = ("candidates.prompt=prompt", "candidates.shots={prompting: {few_shot: {shots: 2}}}")


def measure_drift(folder, device, *overrides):
    """Let a base answer its stored rows again in another process, beside a busy one; also measure the A/A noise."""
    path = rlhf.write_experiment(folder)
    overrides = (f"device={device}", "precision=bf16", "gate.control_blocks=1000", *UNTRAINED, *overrides)
    tiny_experiment.run(path, *overrides, candidates=("prompt",))
    noise = measure_noise(tiny_experiment.session(path, *overrides))
    words = f"-m harness compare -c {path} --candidates prompt,shots".split()
    with subprocess.Popen([sys.executable, "-c", BUSY.format(device)]) as busy:
        try:
            assert subprocess.run([sys.executable, *words, *overrides], check=False).returncode in (0, 1)
        finally:
            busy.kill()
    blocks = store.controls(store.Store(path.parent / "runs"))[-1].blocks
    changed = [item for block in blocks for item in {*block.reworded, *block.differing}]
    text = f"of {sum(block.n for block in blocks):,} in another process, beside a busy one"
    came_back = Row("stored rows of the base that do not come back", len(changed), "", 1, text)
    text = f"{noise.flips:,} of {noise.n:,}"
    flips = Row("A/A rate: scores that flip in other batches", noise.flips / noise.n, "", None, text)
    return blocks, [came_back, flips]


@pytest.mark.gpu
def test_a_base_gives_its_stored_rows_again_beside_a_busy_process(tmp_path, own_cache):
    machine = gpu("bf16")
    blocks, rows = measure_drift(tmp_path, "cuda", "suites=[general]")
    leave("the embedded model in bf16", rows, machine)
    assert len({block.environment for block in blocks}) == 1
    assert rows[0].is_met, [item for block in blocks for item in (*block.reworded, *block.differing)]
