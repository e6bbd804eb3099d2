"""Processes that `accelerate launch` starts share a training: as many rows a step, one set of weights, one error."""

import json
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import tiny_experiment
import tiny_methods
from safetensors.numpy import load_file

from harness import config, training
from harness.errors import CandidateFailed, UserError
from harness.experiment import Scope, prepare_session
from harness.experiment.training_fit import folder_of, processes_of
from harness.models.hub import resolve
from harness.progress import SilentProgress
from harness.spec import AcceleratePolicy
from harness.training import worker
from harness.training.context import CHECKPOINTS
from harness.training.job import LAUNCH
from harness.training.parallel import write_launch
from harness.training.sft import SupervisedParams

pytestmark = pytest.mark.usefixtures("own_cache")

LORA = {"r": 2, "per_device_train_batch_size": 4, "num_train_epochs": 2, "max_length": 200}
TWO = "training: {accelerate: {num_processes: 2}}\n"


def ignore(done, total, note=""):
    pass


def write_job(tiny, folder, processes, **params):
    job = training.TrainingJob(
        method="lora",
        params=LORA | params,
        source=resolve(str(tiny)),
        machine=tiny_methods.CPU,
        seed=0,
        regularize={},
        threads=1,
        processes=processes,
        code=training.code_of("lora", ()),
    )
    rows = {"train": tiny_methods.examples(slice(0, 2)), "validation": tiny_methods.examples(slice(5, 6))}
    training.write_job(folder, job, **rows, pairs=())
    if processes > 1:
        write_launch(folder, AcceleratePolicy(num_processes=processes), "cpu")
    return folder


def read_fit(folder):
    return json.loads((folder / training.FIT).read_text())


@pytest.mark.slow
def test_two_processes_make_the_weights_of_one_with_half_of_the_rows_each(tiny, tmp_path):
    whole = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 4, "num_train_epochs": 3}
    alone, shared = (
        write_job(tiny, tmp_path / name, n, **whole) for name, n in (("alone", 1), ("shared", 2))
    )
    heard = []
    training.run_job(alone, ignore)
    worker.launch(shared, lambda done, total, note="": heard.append((done, total)))
    assert heard == [(1, 3), (2, 3), (3, 3)]  # one of them speaks
    one, other = (load_file(at / "adapter" / "adapter_model.safetensors") for at in (alone, shared))
    assert max(np.abs(one[name] - other[name]).max() for name in one) < 1e-4  # all rows in each step
    record, expected = read_fit(shared)["training"], read_fit(alone)["training"]
    assert (record["n_processes"], record["batch_size"], record["accumulated_batches"]) == (2, 3, 2)
    assert (record["n_steps"], record["n_tokens"]) == (expected["n_steps"], expected["n_tokens"])
    assert np.allclose(record["loss"], expected["loss"], atol=1e-3)
    assert "n_processes" not in expected


def process_of(folder, rank):
    for at in Path("/proc").glob("[0-9]*"):
        try:
            words, own = (at / "cmdline").read_bytes(), (at / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(folder).encode() in words and f"RANK={rank}".encode() in own:
            return int(at.name)
    raise AssertionError(f"no process of rank {rank}")


@pytest.mark.weekly
@pytest.mark.parametrize(
    ("step", "checkpoint"), [(3, "checkpoint-2"), (4, "checkpoint-3")], ids=["in an epoch", "after an epoch"]
)
def test_a_process_that_is_killed_ends_the_training_which_goes_on_as_if_undisturbed(
    tiny, tmp_path, step, checkpoint
):
    undisturbed, folder = (write_job(tiny, tmp_path / name, 2, lora_dropout=0.2) for name in ("one", "two"))
    worker.launch(undisturbed, ignore)

    def kill(done, total, note=""):
        if done == step:
            os.kill(process_of(folder, 1), signal.SIGKILL)

    with pytest.raises(CandidateFailed, match="was killed \\(SIGKILL\\), as the system does when memory"):
        worker.launch(folder, kill)
    assert not (folder / training.FIT).exists()
    assert {path.name for path in (folder / CHECKPOINTS).glob("checkpoint-*")} == {checkpoint}
    heard = []
    worker.launch(folder, lambda done, total, note="": heard.append(done))
    assert heard[0] == step
    assert read_fit(folder)["digest"] == read_fit(undisturbed)["digest"]


@pytest.mark.parametrize(
    ("batch", "accumulation", "processes", "expected"),
    [
        (8, 1, 2, (4, 1)),
        (8, 1, 8, (1, 1)),
        (1, 8, 4, (1, 2)),
        (3, 4, 2, (3, 2)),
        (4, 3, 2, (3, 2)),
        (4, 1, 1, (4, 1)),
    ],
)
def test_a_step_has_as_many_rows_as_without_sharing(batch, accumulation, processes, expected):
    params = SupervisedParams(per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation)
    own = training.rows_of_each(params, processes)
    assert (own.per_device_train_batch_size, own.gradient_accumulation_steps) == expected
    assert (
        own.per_device_train_batch_size * own.gradient_accumulation_steps * processes == batch * accumulation
    )


def test_a_job_for_several_processes_is_refused_by_one_with_the_command_for_all(tiny, tmp_path):
    folder = write_job(tiny, tmp_path, 2)
    with pytest.raises(UserError, match="found 1 processes at work; expected 2") as refused:
        training.run_job(folder, ignore)
    assert f"accelerate launch --config_file {folder / LAUNCH} -m harness.training.worker" in str(
        refused.value
    )


LAUNCHER = """\
Failures:
[1]:
  rank      : 0 (local_rank: 0)
  exitcode  : -15 (pid: 22002)  (SIGTERM)
Root Cause (first observed failure):
[0]:
  rank      : 1 (local_rank: 1)
  exitcode  : %d (pid: 22011)
"""  # torch 2.13


@pytest.mark.parametrize(
    ("code", "error", "told"),
    [
        (-9, CandidateFailed, "the training process was killed (SIGKILL)"),
        (-11, CandidateFailed, "the training process ended with SIGSEGV"),
        (1, RuntimeError, "Connection closed by peer"),
    ],
)
def test_the_process_that_was_killed_is_named_and_not_how_the_others_lost_it(tmp_path, code, error, told):
    lost = json.dumps(["error", "RuntimeError", ["Connection closed by peer", ""]])
    (tmp_path / "said").write_text(LAUNCHER % code)
    script = f"echo '{lost}'; cat {tmp_path / 'said'} >&2; exit 1"
    with pytest.raises(error, match=re.escape(told)):
        worker.launch(tmp_path, ignore, ("bash", "-c", script))


def session_of(tiny, folder, extra, candidates=tiny_experiment.CANDIDATES):
    path = tiny_experiment.write(folder, tiny, candidates, extra=extra)
    return prepare_session(config.load(path), Scope(), SilentProgress())


def test_the_number_of_processes_is_part_of_the_weights_key_where_they_share_it(tiny, tmp_path):
    trained = """\
  lora: {method: lora, params: {max_length: 200}}
  stepped: {method: lora, params: {max_length: 200}, regularize: {l2_sp: {strength: 0.1}}}
  bag: {method: classifier}
"""
    plain, one, two = (
        session_of(tiny, tmp_path / str(n), extra, trained)
        for n, extra in enumerate(("", "training: {process: own, accelerate: {num_processes: 1}}\n", TWO))
    )

    def key(session, name):
        return folder_of(session, session.candidates[name], 0, None).name

    assert [processes_of(two, two.candidates[n].source) for n in ("lora", "stepped", "bag")] == [2, 1, 1]
    assert key(plain, "lora") == key(one, "lora") != key(two, "lora")
    assert [key(plain, n) for n in ("stepped", "bag")] == [key(two, n) for n in ("stepped", "bag")]


def test_rows_that_cannot_be_parted_or_workers_beside_shared_processes_are_refused(tiny, tmp_path):
    extra = "training: {accelerate: {num_processes: 3}}\n"
    with pytest.raises(UserError, match="8 rows a step, which 3 processes cannot share evenly"):
        session_of(tiny, tmp_path, extra)
    extra = "training: {accelerate: {num_processes: 2}}\nexecution: {executor: local, workers: 2}\n"
    with pytest.raises(UserError, match="executor: local, whose workers are one process each"):
        session_of(tiny, tmp_path, extra)
