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


@pytest.fixture
def experiment(tiny, tmp_path):
    """Write the tiny experiment for the GPU."""
    gpu("fp32")
    path = tiny_experiment.write(tmp_path, shutil.copytree(tiny, tmp_path / "tiny"), CANDIDATES)
    path.write_text(path.read_text().replace("device: cpu", "device: cuda"))
    return path


def scores(runs):
    """Name what each run reached on each task."""
    return {run.candidate: run.state for run in runs}


@pytest.mark.gpu
def test_every_method_trains_and_answers_on_a_gpu(experiment):
    found = scores(tiny_experiment.run(experiment))
    assert found == dict.fromkeys(found, "done")
    assert len(found) == CANDIDATES.count("\n")


@pytest.mark.gpu
def test_workers_that_share_a_gpu_leave_the_runs_of_one_process(experiment):
    shared = ("execution.executor=local", "execution.workers=2", "execution.threads=1")
    found = scores(tiny_experiment.run(experiment, shared))
    assert found == dict.fromkeys(found, "done")
