"""A whole comparison on a GPU: trainings, answers and verdicts, with workers that share it and without."""

import shutil

import pytest
import tiny_experiment
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


@pytest.fixture
def experiment(tiny, tmp_path):
    """Write the tiny experiment for the GPU."""
    gpu("fp32")
    path = tiny_experiment.write(tmp_path, shutil.copytree(tiny, tmp_path / "tiny"), CANDIDATES)
    path.write_text(path.read_text().replace("device: cpu", "device: cuda"))
    return path


def states(path, *overrides):
    """Compare, and say by candidate how its run ended."""
    tiny_experiment.run(path, *overrides)
    return {name: run.state for name, run in tiny_experiment.runs_of(path).items()}


@pytest.mark.gpu
def test_every_method_trains_and_answers_on_a_gpu(experiment):
    assert states(experiment) == dict.fromkeys(NAMES, "done")


@pytest.mark.gpu
def test_workers_share_a_gpu(experiment):
    shared = ("execution.executor=local", "execution.workers=2", "execution.threads=1")
    assert states(experiment, *shared) == dict.fromkeys(NAMES, "done")
