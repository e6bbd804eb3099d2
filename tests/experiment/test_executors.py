"""Plans of steps, the workers that pull them, and the refusal of a worker that differs from the command."""

import shutil
import sys
import threading
import time
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import tiny_experiment
from conftest import refused

from harness import config, store
from harness.errors import CandidateFailed, UserError
from harness.evaluation.candidates import base_weights
from harness.evaluation.row_sets import RunRequest, target_sets
from harness.experiment import Estimates, Scope, executors, in_order, make_plan, prepare_session, step_worker
from harness.experiment.executors import StartedWorker, Starter, open_starter, plan_for_workers
from harness.experiment.plan import Step
from harness.experiment.step_worker import TRIES, Journal, Outcome, append
from harness.progress import SilentProgress
from harness.spec import ExecutionPolicy
from harness.store import Store
from harness.training.job_worker import encode_error

pytestmark = pytest.mark.usefixtures("own_cache")

LORA = "{r: 2, num_train_epochs: 1, max_length: 200}"
CANDIDATES = f"""\
  prompt: {{method: base}}
  lora: {{method: lora, params: {LORA}}}
  hybrid: {{weights_of: lora, prompting: {{few_shot: {{select: fixed, shots: 2}}}}}}
  next: {{method: scaled, init_from: lora, params: {{scale: 0.5}}}}
  swept: {{method: lora, params: {LORA}, sweep: {{learning_rate: [0.001, 0.02]}}}}
  bag: {{method: classifier}}
  far: {{method: endpoint, params: {{base_url: "http://127.0.0.1:9/v1", model: far}}}}
"""


@pytest.fixture(scope="module")
def session(tiny, own_cache, tmp_path_factory):
    path = tiny_experiment.write(tmp_path_factory.mktemp("planned"), tiny, CANDIDATES)
    return tiny_experiment.session(path)


@pytest.fixture
def finished_session(copy, monkeypatch):
    """Open the finished experiment; restore afterwards what a worker changes in the process."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(copy.parent)
    loaded = config.load(copy)
    return prepare_session(loaded, Scope(), SilentProgress()), loaded


def plan_session(session, n_workers, names=(), **options):
    requests = [RunRequest(session.candidates[name], 0) for name in names or session.candidates]
    return plan_for_workers(session, requests, n_workers, **options)


def test_steps_wait_for_what_they_need_and_trials_are_steps_of_their_own(session):
    plan = plan_session(session, 1)
    needed = {job.name: set(needs) for job, needs in plan.needs.items() if job.kind == "answer"}
    assert {Step("fit", "next"), Step("fit", "lora")} < needed["next"]
    assert {job.kind for job in needed["prompt"]} == {"base", "control"}
    assert plan.needs[Step("fit", "lora")] == ()
    trials = {job for job in plan.needs if job.kind == "trial"}
    assert trials == {Step("trial", "swept", 0, i, 2) for i in range(2)}
    assert trials < needed["swept"]


def test_trials_are_priced_once_and_shared_weights_with_the_run_that_makes_them(tiny, tmp_path):
    path = tiny_experiment.write(tmp_path, tiny, CANDIDATES, extra="seeds: [0, 1]\n")
    session, names = tiny_experiment.session(path), ("hybrid", "lora", "swept")
    work = Estimates(session).work(make_plan(session, in_order(session.candidates, names)))
    assert [work[name].fits for name in names] == [0, 2, 3]  # another seed of a sweep trains the best point


@pytest.fixture
def file(tmp_path):
    """Path of an assignment file in the folder of its journal."""
    (tmp_path / "0").mkdir()
    return tmp_path / "0" / step_worker.ASSIGNMENT


def open_journal(file, plan):
    return Journal(file.with_name(step_worker.JOURNAL), plan)


def make_steps(file, plan, outcome_of=lambda step: Outcome(), n_workers=1):
    """Let workers take turns to claim and end all steps; returns the steps and one worker's journal."""
    workers = [open_journal(file, plan) for _ in range(n_workers)]
    claimed_steps, claims = [], {}
    while not workers[0].is_over:
        for i, journal in enumerate(workers):
            if i in claims:
                step, lock = claims.pop(i)
                journal.note("ended", step, outcome_of(step))
                lock.release()
            journal.read()
            if claim := journal.claim(file.parent / "locks"):
                claims[i] = claim
                claimed_steps.append(claim[0])
    return claimed_steps, workers[0]


def test_every_step_is_made_once_and_after_what_it_needs(session, file):
    plan = plan_session(session, 3)
    steps, journal = make_steps(file, plan, n_workers=3)
    assert journal.failed == {}
    position_of = {step: i for i, step in enumerate(steps)}
    assert sorted(position_of) == sorted(plan.needs)
    assert len(steps) == len(position_of)
    assert all(position_of[need] < position_of[step] for step, needs in plan.needs.items() for need in needs)


def test_a_step_that_fails_ends_those_alone_that_wait_for_it(session, file):
    error = CandidateFailed("no memory", "a smaller batch")

    def outcome_of(step):
        return Outcome(error=encode_error(error)) if step == Step("fit", "lora") else Outcome()

    failed_steps = make_steps(file, plan_session(session, 2), outcome_of, n_workers=2)[1].failed
    assert {step.name for step in failed_steps} == {"lora", "hybrid", "next"}
    assert {str(failure) for failure in failed_steps.values()} == {str(error)}


def test_a_line_that_a_kill_cut_short_is_skipped_and_its_step_claimed_again(session, file):
    plan = plan_session(session, 1, ("lora",))
    append(file.with_name(step_worker.JOURNAL), "ended", 0, "", None, [])
    with file.with_name(step_worker.JOURNAL).open("a") as journal_file:
        journal_file.write('["ended", 1, ""')
    steps, journal = make_steps(file, plan)
    assert steps == list(plan.needs)[1:]
    assert journal.failed == {}


def make_on(session, loaded, names, work, monkeypatch):
    """Make runs by a worker in this process, which calls `work` on the assignment; returns the session."""

    def start(file, indices):
        for _ in indices:
            work(file)
        return [StartedWorker(lambda: "", lambda: None) for _ in indices]

    monkeypatch.setattr(
        executors, "open_starter", lambda file, *_: nullcontext(Starter(1, partial(start, file)))
    )
    policy = ExecutionPolicy(executor="local", workers=1, threads=1)
    session = replace(session, experiment=session.experiment.model_copy(update={"execution": policy}))
    requests = [RunRequest(session.candidates[name], 0) for name in names]
    executors.make_on_workers(session, loaded, Scope(), requests, [None] * len(requests))
    return session


def test_bad_input_at_a_worker_ends_everything(finished_session, monkeypatch):
    def work(file):
        error = encode_error(UserError("worker", "other code", "this", "fix it"))
        append(file.with_name(step_worker.JOURNAL), "refused", *error)

    with pytest.raises(UserError, match="worker: found other code"):
        make_on(*finished_session, ("prompt",), work, monkeypatch)


@contextmanager
def write_plan(session, loaded, *names):
    """Write the assignment of the named candidates and yield its file."""
    plan, file = plan_session(session, 1, names), step_worker.name_assignment(session.store)
    executors.write_assignment(file, session, loaded, Scope(), plan, 1)
    # The base's control is not measured again: each measurement would be a new one.
    for i, step in enumerate(plan.needs):
        if step.kind == "control":
            append(file.with_name(step_worker.JOURNAL), "ended", i, "", None, [])
    yield file
    shutil.rmtree(file.parent)


def test_a_step_whose_work_is_stored_computes_nothing_and_leaves_the_index_alone(finished_session):
    session, loaded = finished_session
    session.store.index.unlink()
    with write_plan(session, loaded) as file:
        times_before = map_write_times(session.store.folder)
        step_worker.work(file)
        journal = open_journal(file, step_worker._read_assignment(file).plan)
    assert journal.is_over
    assert journal.failed == {}
    assert map_write_times(session.store.folder) == times_before
    assert not session.store.index.exists()


def test_blocks_that_a_killed_worker_left_beside_the_complete_set_go_with_the_next_one(finished_session):
    session, loaded = finished_session
    candidate = session.candidates["prompt"]
    test_identity = target_sets(session, candidate.recipe, base_weights(candidate.base), 0)[1].identity
    stored_rows = store.read_rows(session.store, test_identity.digest)
    store.append_block(session.store, test_identity, 0, stored_rows)
    with write_plan(session, loaded, "prompt") as file:
        step_worker.work(file)
    assert not (session.store.rows(test_identity.digest) / "blocks").exists()
    assert store.read_rows(session.store, test_identity.digest) == stored_rows


def test_a_worker_that_is_not_like_the_command_is_refused(finished_session):
    other_state = {"threads": "2", "torch": "0.1", "data of letters": "other", "precision": "bf16"}
    with write_plan(*finished_session) as file:
        assignment = step_worker._read_assignment(file)
        error = refused(step_worker._prepare, assignment._replace(state=assignment.state | other_state), file)
    found_by_name = {
        problem.where.rpartition(": ")[2]: (problem.found, problem.expected) for problem in error.problems
    }
    assert found_by_name == {name: (assignment.state[name], value) for name, value in other_state.items()}


def test_a_worker_joins_the_comparison_at_work_in_a_runs_folder_where_there_is_one(finished_session):
    session, loaded = finished_session
    with write_plan(session, loaded) as file:
        assert step_worker.find_assignment(Path("runs")) == file
    with pytest.raises(UserError, match="harness compare --executor local --workers 2"):
        step_worker.find_assignment(Path("runs"))


def test_a_claim_keeps_others_waiting_until_it_ends(tmp_path):
    rows_store, order = Store(tmp_path), []

    def work():
        with store.claim(rows_store, "rows"):
            order.append("second")

    with store.claim(rows_store, "rows"):
        second_claim = threading.Thread(target=work)
        second_claim.start()
        second_claim.join(0.1)
        order.append("first")
    second_claim.join(10)
    assert order == ["first", "second"]


def open_local(file, n_workers=1, threads=1, device="cpu", program="pass"):
    policy = ExecutionPolicy(executor="local", workers=n_workers)
    return open_starter(file, policy, threads, device, (sys.executable, "-c", program))


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("import sys; sys.exit('no such worker')", "exit code 1: no such worker"),
        ("import os; os.kill(os.getpid(), 9)", "exit code -9"),
    ],
)
def test_workers_that_end_each_time_fail_what_is_left_with_what_they_said_last(session, file, program, said):
    journal = open_journal(file, plan_session(session, 1, ("lora", "next")))
    with open_local(file, program=program) as starter:
        executors.follow(journal, starter, lambda done, total, note="": None)
    assert set(journal.failed) == set(journal.plan.needs)
    errors = {str(error) for error in journal.failed.values()}
    assert len(errors) == 1
    assert f"every worker ended {TRIES} times without a result: {said}" in errors.pop()


@pytest.mark.parametrize(("n", "found"), [(None, ["3 7", "5 7"]), (5, ["3 7"] * 3 + ["5 7"] * 2)])
def test_each_worker_has_a_gpu_and_the_threads_of_the_plan_and_more_share_gpus(file, monkeypatch, n, found):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    program = "import os, sys; sys.exit('{CUDA_VISIBLE_DEVICES} {OMP_NUM_THREADS}'.format(**os.environ))"
    with open_local(file, n, 7, "cuda", program) as starter:
        workers = starter.start(range(starter.size))
        while any(started_worker.read_end() is None for started_worker in workers):
            time.sleep(0.01)
    assert sorted(log.read_text().strip() for log in file.parent.glob("*.log")) == found


def test_a_package_that_is_missing_is_named_with_what_installs_it(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    policy = ExecutionPolicy(executor="slurm", workers=1)
    with (
        pytest.raises(UserError, match=r"pip install 'harness-evals\[cluster\]'"),
        open_starter(file, policy, 1, "cpu"),
    ):
        pass


def map_write_times(runs):
    return {path: path.stat().st_mtime_ns for path in runs.glob("[rw]*/*/*") if path.is_file()}
