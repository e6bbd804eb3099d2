"""A fit is a folder, and gives the same weights here and in a process of its own, however an earlier one ended."""

import errno
import json
import pickle
import subprocess
from dataclasses import replace

import pytest
import tiny_experiment
import tiny_methods
from forking import terminal_signals
from test_resuming import ErrorAtStep

from harness import config, training
from harness.errors import CandidateFailed, Diverged, HarnessError, Problem, UserError
from harness.experiment import Scope, prepare_session
from harness.experiment.candidate_weights import ensure_weights
from harness.experiment.training_fit import has_own_process
from harness.models.hardware import reset_peak
from harness.models.hub import resolve
from harness.progress import SilentProgress
from harness.spec import TrainingPolicy
from harness.training import job as jobs
from harness.training import worker
from harness.training.context import resident_peak_bytes
from harness.training.preference_optimization import PreferenceParams

pytestmark = pytest.mark.usefixtures("own_cache")

LORA = {"r": 2, "per_device_train_batch_size": 2, "num_train_epochs": 1, "max_length": 200}
N_STEPS = 6  # twelve rows, two a batch
KNOBS = "params.per_device_train_batch_size (with gradient_accumulation_steps) or max_length"


def ignore(done, total, note=""):
    pass


def write_job(tiny, folder, method="lora", params=LORA):
    """Write a job on the tiny model; returns its folder."""
    job = training.TrainingJob(
        method=method,
        params=params,
        source=resolve(str(tiny)),
        machine=tiny_methods.CPU,
        seed=0,
        regularize={},
        threads=training.threads_of(method),
        code=training.code_of(method, ()),
    )
    rows = {"train": tiny_methods.examples(slice(0, 2)), "validation": tiny_methods.examples(slice(5, 6))}
    training.write_job(folder, job, **rows, pairs=tiny_methods.pairs(slice(0, 2)))
    return folder


def read_fit(folder):
    return json.loads((folder / training.FIT).read_text())


def start_worker(folder):
    return subprocess.Popen(
        [*worker.COMMAND, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module")
def local_fit(tiny, tmp_path_factory, own_cache):
    """Make a LoRA in this process, undisturbed; returns its record."""
    folder = write_job(tiny, tmp_path_factory.mktemp("here"))
    training.run_job(folder, ignore)
    return read_fit(folder)


@pytest.mark.slow
def test_a_process_of_its_own_makes_the_same_weights_and_measures_its_own_memory(tiny, local_fit, tmp_path):
    held = bytearray(b"x") * 2**30  # what this process holds is not the worker's
    folder, heard = write_job(tiny, tmp_path), []
    worker.launch(folder, lambda done, total, note="": heard.append((done, total)))
    there = read_fit(folder)
    assert (there["kind"], there["digest"]) == (local_fit["kind"], local_fit["digest"])
    assert there["training"]["loss"] == local_fit["training"]["loss"]
    assert heard == [(step, N_STEPS) for step in range(1, N_STEPS + 1)]
    assert there["training"]["peak_memory_gib"] < (resident_peak_bytes() - len(held) / 2) / 2**30


@pytest.mark.e2e
def test_the_peak_of_a_training_leaves_out_what_this_process_held_before(tiny, tmp_path):
    if not reset_peak():
        pytest.skip("this system cannot reset the peak")
    held = bytearray(b"x") * 2**30
    before = resident_peak_bytes()
    del held
    training.run_job(folder := write_job(tiny, tmp_path), ignore)
    measured = read_fit(folder)["training"]
    assert measured["peak_memory_gib"] < before / 2**30 - 0.5
    assert "peak_includes" not in measured
    assert 0 <= measured["waited_share"] <= 1


@pytest.mark.weekly
def test_preferences_are_trained_on_the_same_pairs_there(tiny, tmp_path):
    params = {**LORA, "per_device_train_batch_size": 4}
    one, other = (write_job(tiny, tmp_path / name, "dpo", params) for name in ("here", "there"))
    training.run_job(one, ignore)
    worker.launch(other, ignore)
    assert read_fit(other)["digest"] == read_fit(one)["digest"]
    record, pairs = read_fit(other)["training"], len(tiny_methods.pairs(slice(0, 2)))
    assert record["n_heldout"] == round(PreferenceParams().heldout * pairs)
    assert record["n_pairs"] == pairs - record["n_heldout"]


@pytest.mark.parametrize(
    "end",
    [pytest.param("killed", marks=pytest.mark.slow), pytest.param("left alone", marks=pytest.mark.weekly)],
)
def test_a_worker_that_was_stopped_leaves_a_checkpoint_from_which_the_same_weights_come(
    tiny, local_fit, tmp_path, end
):
    folder = write_job(tiny, tmp_path)
    with start_worker(folder) as begun:
        steps = (json.loads(line)[1] for line in begun.stdout)
        assert next(step for step in steps if step == 4)
        begun.kill() if end == "killed" else begun.stdout.close()  # as where who listened was killed
        code = begun.wait()
    assert code == {"killed": -9, "left alone": 1}[end]
    assert not (folder / training.FIT).exists()
    heard = []
    training.run_job(folder, lambda done, total, note="": heard.append(done))
    assert heard[0] > 1
    assert read_fit(folder)["digest"] == local_fit["digest"]


@pytest.mark.e2e
def test_a_failure_there_is_the_failure_of_here_and_the_workers_exit_code(tiny, tmp_path):
    told = "interpolated without init_from; try: init_from: the candidate that is meant"
    folder = write_job(tiny, tmp_path, "interpolated", {})
    for run in (training.run_job, worker.launch):
        with pytest.raises(CandidateFailed) as failed:
            run(folder, ignore)
        assert str(failed.value) == told
    with start_worker(folder) as begun:
        _, said = begun.communicate()
    assert begun.returncode == CandidateFailed.exit_code
    assert said.splitlines()[-1] == f"error: {told}"


def test_what_a_launcher_prints_goes_to_the_log_and_not_into_the_progress(tmp_path):
    said = """[2026-11-23 18:10:19] [WARNING] no GPU\n["advance", 1, 2, "loss 0.5"]\n{"a": 1}\n[]\n"""
    (tmp_path / "said").write_text(said)
    heard = []
    worker.launch(
        tmp_path, lambda *message: heard.append(message), ("bash", "-c", f"cat {tmp_path / 'said'}")
    )
    assert heard == [(1, 2, "loss 0.5")]
    assert (tmp_path / jobs.LOG).read_text().splitlines() == [
        "[2026-11-23 18:10:19] [WARNING] no GPU",
        '{"a": 1}',
        "[]",
    ]


@pytest.mark.parametrize(
    ("script", "error", "told"),
    [
        (
            "kill -KILL $$",
            CandidateFailed,
            rf"SIGKILL\), as the system does when memory runs out; try: {KNOBS}",
        ),
        ("kill -TERM $$", CandidateFailed, "ended with SIGTERM; try: the same command again"),
        ("kill -INT $$; sleep 5", KeyboardInterrupt, "^$"),
        ("echo no such module >&2; exit 7", CandidateFailed, "ended with exit code 7: no such module"),
    ],
)
@terminal_signals()
def test_a_worker_that_ends_without_a_word_says_why_by_its_exit_code(tmp_path, script, error, told):
    expected = told.replace("(with gradient_accumulation_steps)", r"\(with gradient_accumulation_steps\)")
    with pytest.raises(error, match=expected):
        worker.launch(tmp_path, ignore, ("bash", "-c", script))


@pytest.mark.parametrize(
    "error",
    [
        CandidateFailed("out of memory while training", KNOBS),
        Diverged("the training loss is not a number", "a lower params.learning_rate"),
        UserError([Problem("a", "b", "c", "d"), Problem("e", "f", "g", "h")]),
        HarnessError("the disk is gone"),
        OSError(errno.ENOSPC, "No space left on device", "adapter.safetensors"),
    ],
)
def test_an_error_comes_back_as_it_was_from_a_worker_and_from_another_process(error):
    again = worker.decode_error(*json.loads(json.dumps(worker.encode_error(error))))
    assert (type(again), str(again), again.args) == (type(error), str(error), error.args)
    back = pickle.loads(pickle.dumps(error))
    assert (type(back), str(back), vars(back)) == (type(error), str(error), vars(error))


@pytest.mark.e2e
@pytest.mark.parametrize("cut", [False, pytest.param(True, marks=pytest.mark.weekly)], ids=["whole", "cut"])
def test_the_key_trains_in_a_process_of_its_own_into_the_same_folder(tiny, tmp_path, cut):
    found = {}
    for process in ("same", "own"):
        path = tiny_experiment.write(tmp_path / process, tiny, extra=f"training: {{process: {process}}}\n")
        session = tiny_experiment.session(path)
        candidate = session.candidates["lora"]
        if process == "own" and cut:
            session.progress = ErrorAtStep(2, KeyboardInterrupt)
            with pytest.raises(KeyboardInterrupt):
                ensure_weights(session, candidate, 0)
        session.progress = SilentProgress()
        weights = ensure_weights(session, candidate, 0)
        found[process] = weights.digest, weights.folder.name, weights.training.loss
        assert sorted(p.name for p in weights.folder.iterdir()) == ["adapter", training.FIT, jobs.JOB]
    assert found["own"] == found["same"]


def set_device(session, device, process):
    """Return a session on a machine that says that it has this device."""
    experiment = session.experiment.model_copy(update={"training": TrainingPolicy(process=process)})
    return replace(session, experiment=experiment, machine=session.machine._replace(device=device))


@pytest.mark.e2e
def test_where_a_gpu_is_a_training_has_a_process_of_its_own_unless_told_otherwise(tiny, tmp_path):
    session = prepare_session(config.load(tiny_experiment.write(tmp_path, tiny)), Scope(), SilentProgress())
    asked = [(device, process) for device in ("cpu", "cuda") for process in ("auto", "same", "own")]
    own = [has_own_process(set_device(session, *one)) for one in asked]
    assert own == [False, False, True, True, False, True]
    there = set_device(session, "cuda", "auto")  # which finds no GPU, and says so in a process of its own
    with pytest.raises(Exception, match=r"CUDA|NVIDIA") as error:
        ensure_weights(there, there.candidates["lora"], 0)
    assert any("harness/training/worker.py" in note for note in error.value.__notes__)
