"""A whole comparison on a GPU: trainings, answers and verdicts, with and without workers that share it."""

import shutil

import pytest
import tiny_experiment
import tiny_methods
from the_gpu import gpu

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
