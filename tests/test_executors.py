"""A plan of jobs, their dispatch, and a worker that refuses whatever is not as it is for the command."""

import os
import sys
import threading
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import lost_jobs
import pytest
import submitit
import tiny_experiment

from harness import config, store
from harness.errors import CandidateFailed, UserError
from harness.evaluation.candidates import base_weights
from harness.evaluation.rows.row_sets import RunRequest, target_sets
from harness.experiment import Scope, executors, prepare_session
from harness.experiment.executors import dispatch, job_runner, local, ray_cluster, slurm
from harness.experiment.executors.job_runner import JobInputs, JobResult, wait_for_files
from harness.experiment.executors.work_plan import WorkerJob, plan_work
from harness.progress import SilentProgress
from harness.spec import ExecutionPolicy
from harness.store import Store
from harness.training.worker import decode_error, encode_error

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
    return prepare_session(config.load(path), Scope(), SilentProgress())


@pytest.fixture
def finished_session(copy, monkeypatch):
    """Open the finished experiment, and let what a worker sets of the process be itself again."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(copy.parent)
    job_runner._opened.clear()
    loaded = config.load(copy)
    return prepare_session(loaded, Scope(), SilentProgress()), loaded


def plan_session(session, n_workers, names=(), **options):
    requests = [RunRequest(session.candidates[name], 0) for name in names or session.candidates]
    return plan_work(session, requests, n_workers, **options)


def list_needed_jobs(plan, job):
    """List all jobs that have to be done before one."""
    return {one for need in plan.needs[job] for one in (need, *list_needed_jobs(plan, need))}


def kinds(plan):
    return sorted({(job.kind, job.name) for job in plan.needs})


class ScriptWorkers:
    """Workers that answer by a function, and note what was asked of them and how many were at work."""

    def __init__(self, size, answer=lambda job: JobResult()):
        self.size, self._answer = size, answer
        self.asked, self.most, self.controls, self.files, self.stopped = [], 0, {}, {}, False
        self._running, self._lock = 0, threading.Lock()

    def run(self, job, known):
        with self._lock:
            self.asked.append(job)
            self.controls[job], self.files[job] = dict(known.controls), known.files
            self._running += 1
            self.most = max(self.most, self._running)
        try:
            return self._answer(job)
        finally:
            with self._lock:
                self._running -= 1

    def stop(self):
        self.stopped = True


NOWHERE = Path("nowhere")  # no file of it is waited for


def ignore(done, total, note=""):
    pass


def find_answer(plan, name):
    (answer,) = (job for job in plan.needs if (job.kind, job.name) == ("answer", name))
    return answer


def test_answers_wait_for_their_weights_or_for_the_base_and_its_control_arm_but_trainings_do_not(session):
    plan = plan_session(session, 1)
    assert {WorkerJob("fit", "next"), WorkerJob("fit", "lora")} < list_needed_jobs(
        plan, find_answer(plan, "next")
    )
    plan = plan_session(session, 2)
    needed = list_needed_jobs(plan, find_answer(plan, "prompt"))
    assert {job.kind for job in needed} == {"base", "control"}
    assert plan.needs[WorkerJob("fit", "lora")] == ()


def test_the_trials_of_a_sweep_are_jobs_of_their_own_before_one_is_chosen(session):
    plan = plan_session(session, 1)
    trials = {job for job in plan.needs if job.kind == "trial"}
    assert trials == {WorkerJob("trial", "swept", 0, part, 2) for part in range(2)}
    assert trials < list_needed_jobs(plan, find_answer(plan, "swept"))


def test_weights_that_two_candidates_share_answer_the_suites_once(session):
    plan = plan_session(session, 1, ("lora", "hybrid"))
    assert {job.name: job.suites for job in plan.needs if job.kind == "answer"} == {
        "lora": True,
        "hybrid": False,
    }
    assert WorkerJob("answer", "lora", suites=True) in plan.rests_on["hybrid", 0]


def test_a_plan_says_how_many_jobs_of_which_kind_it_has_and_an_endpoints_answers_are_none(session):
    assert str(plan_session(session, 1, ("prompt", "lora"))) == "5 jobs (base 1, fit 1, control 1, answer 2)"
    assert "far" not in {name for _, name in kinds(plan_session(session, 1))}
    # Of interim analyses only weights are made that no answer decides on.
    assert kinds(plan_session(session, 1, answers=False)) == [
        ("fit", "bag"),
        ("fit", "lora"),
        ("fit", "next"),
    ]


def test_every_job_runs_once_after_what_it_needs_and_no_more_at_once_than_there_are_workers(session):
    plan, pool = plan_session(session, 3), ScriptWorkers(3)
    assert dispatch.run_jobs(plan.needs, pool, {}, ignore, NOWHERE) == {}
    place = {job: at for at, job in enumerate(pool.asked)}
    assert sorted(place) == sorted(plan.needs)
    assert len(pool.asked) == len(place)
    assert all(place[need] < place[job] for job, needs in plan.needs.items() for need in needs)
    assert pool.most <= 3
    assert pool.stopped


def test_a_job_that_fails_ends_those_alone_that_wait_for_it(session):
    plan, error = plan_session(session, 2), CandidateFailed("no memory", "a smaller batch")

    def answer(job):
        return JobResult(error=encode_error(error)) if job == WorkerJob("fit", "lora") else JobResult()

    failed = dispatch.run_jobs(plan.needs, ScriptWorkers(2, answer), {}, ignore, NOWHERE)
    assert {job.name for job in failed} == {"lora", "hybrid", "next"}
    assert {str(one) for one in failed.values()} == {str(error)}


def test_a_base_that_no_worker_can_answer_with_fails_what_is_made_of_it(finished_session, monkeypatch):
    session, loaded = finished_session
    error = CandidateFailed("no memory", "a smaller base_model")
    pool = ScriptWorkers(
        2, lambda job: JobResult(error=encode_error(error)) if job.kind == "base" else JobResult()
    )
    monkeypatch.setattr(executors, "open_pool", lambda session, file, threads: nullcontext(pool))
    requests = [RunRequest(session.candidates[name], 0) for name in ("prompt", "bag", "lora")]
    executors.make_on_workers(add_workers(session), loaded, Scope(), requests, [None] * 3)
    assert {run: str(one) for run, one in session.failures.items()} == {
        ("prompt", 0): str(error),
        ("lora", 0): str(error),
    }


def test_a_job_whose_work_is_done_computes_nothing_and_leaves_the_index_alone(finished_session):
    session, loaded = finished_session
    session.store.index.unlink()
    plan = plan_session(session, 1)
    with job_runner.write_assignment(session, loaded, Scope(), 1) as file:
        before = {path: path.stat().st_mtime_ns for path in session.store.folder.glob("[rw]*/*/*")}
        outcomes = {
            job: job_runner.run_job(file, job, JobInputs({session.source.weights_digest: ""}))
            for job in plan.needs
        }
    assert {outcome[:2] for outcome in outcomes.values()} == {("", None)}
    assert {path: path.stat().st_mtime_ns for path in session.store.folder.glob("[rw]*/*/*")} == before
    assert not session.store.index.exists()


def test_blocks_that_a_killed_worker_left_beside_the_complete_set_go_with_the_next_one(finished_session):
    session, loaded = finished_session
    candidate = session.candidates["prompt"]
    test = target_sets(session, candidate.recipe, base_weights(candidate.base), 0)[1].identity
    written = store.read_rows(session.store, test.digest)
    store.append_block(session.store, test, 0, written)
    with job_runner.write_assignment(session, loaded, Scope(), 1) as file:
        known = JobInputs({session.source.weights_digest: ""})
        assert job_runner.run_job(file, WorkerJob("answer", "prompt"), known).error is None
    assert not (session.store.rows(test.digest) / "blocks").exists()
    assert store.read_rows(session.store, test.digest) == written


@pytest.mark.parametrize(
    ("name", "value"),
    [("threads", "2"), ("torch", "0.1"), ("data of letters", "other"), ("precision", "bf16")],
)
def test_a_worker_that_is_not_like_the_command_is_refused(finished_session, name, value):
    session, loaded = finished_session
    with job_runner.write_assignment(session, loaded, Scope(), 1) as file:
        asked = job_runner._read_assignment(file)
        other = asked._replace(state={**asked.state, name: value})
        with pytest.raises(UserError) as refused:
            job_runner._prepare(other)
    (problem,) = refused.value.problems
    assert (problem.found, problem.expected) == (asked.state[name], value)
    assert f": {name}: found" in str(problem)


def test_a_worker_with_other_code_is_refused_before_it_reads_what_this_code_wrote(finished_session):
    session, loaded = finished_session
    with job_runner.write_assignment(session, loaded, Scope(), 1) as file:
        content = file.read_bytes()
        file.write_bytes(content.replace(job_runner._code_digest().encode(), b"0" * 16)[:60])
        outcome = job_runner.run_job(file, WorkerJob("fit", "lora"), JobInputs({}))
    assert "code of harness" in str(decode_error(*outcome.error))


def test_a_worker_that_does_not_see_the_runs_folder_says_so(tmp_path):
    outcome = job_runner.run_job(tmp_path / "runs" / "x.pickle", WorkerJob("fit", "lora"), JobInputs({}))
    error = decode_error(*outcome.error)
    assert isinstance(error, UserError)
    assert "a file system that all workers see" in str(error)


def test_a_claim_keeps_others_waiting_until_it_ends(tmp_path):
    at, order = Store(tmp_path), []

    def work():
        with store.claim(at, "rows"):
            order.append("second")

    with store.claim(at, "rows"):
        second = threading.Thread(target=work)
        second.start()
        second.join(0.1)
        order.append("first")
    second.join(10)
    assert order == ["first", "second"]


@pytest.mark.parametrize(
    ("program", "killed", "said"),
    [
        ("import sys; sys.exit('no such worker')", False, ["ended 3 times with exit code", "no such worker"]),
        ("import os; os.kill(os.getpid(), 9)", True, ["3 times with exit code -9"]),
    ],
)
def test_a_worker_that_ends_each_time_fails_its_job_with_what_it_said_last(tmp_path, program, killed, said):
    (tmp_path / "x.pickle").write_text("no pickle")
    with local.LocalPool(tmp_path / "x.pickle", 1, 1, "cpu", (sys.executable, "-c", program)) as pool:
        outcome = pool.run(WorkerJob("fit", "lora"), JobInputs({}))
    assert outcome.killed is killed
    assert all(words in str(decode_error(*outcome.error)) for words in said)


@pytest.mark.parametrize(("n", "found"), [(None, ["3 7", "5 7"]), (5, ["3 7"] * 3 + ["5 7"] * 2)])
def test_each_worker_has_a_gpu_and_as_many_threads_as_the_plan_says_and_more_share_gpus(
    tmp_path, monkeypatch, n, found
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    told = "import os, sys; sys.exit('{CUDA_VISIBLE_DEVICES} {OMP_NUM_THREADS}'.format(**os.environ))"
    with local.LocalPool(tmp_path / "x.pickle", n, 7, "cuda", (sys.executable, "-c", told)) as pool:
        for _ in range(pool.size):
            pool.run(WorkerJob("fit", "lora"), JobInputs({}))
    assert sorted(log.read_text().strip() for log in tmp_path.glob("*.log")) == found


def test_nobody_guesses_how_many_workers_share_a_processor(tmp_path):
    with pytest.raises(UserError, match="--workers 2"):
        local.LocalPool(tmp_path / "x.pickle", None, 1, "cpu")
    with pytest.raises(UserError, match="--workers 8"):
        slurm.SlurmPool(tmp_path / "x.pickle", ExecutionPolicy(executor="slurm"), 1, "cpu")


@pytest.mark.parametrize(
    ("package", "open_pool"),
    [
        ("ray", partial(ray_cluster.RayPool, address="auto", n_workers=1, threads=1, device="cpu")),
        (
            "submitit",
            partial(
                slurm.SlurmPool, policy=ExecutionPolicy(executor="slurm", workers=1), threads=1, device="cpu"
            ),
        ),
    ],
)
def test_a_package_that_is_missing_is_named_with_what_installs_it(package, open_pool, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=r"pip install 'harness-evals\[cluster\]'"), open_pool(tmp_path / "x"):
        pass


@pytest.mark.parametrize(
    ("losses", "found"),
    [pytest.param(1, "begun 2 times", marks=pytest.mark.slow), pytest.param(3, "", marks=pytest.mark.weekly)],
)
def test_a_job_that_slurm_loses_is_submitted_again_but_not_for_ever(tmp_path, monkeypatch, losses, found):
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parent}{os.pathsep}{Path(__file__).parents[1]}")
    monkeypatch.setattr(submitit.Job, "_results_timeout_s", 0)  # a lost job's result, 15 s on a cluster
    file, policy = tmp_path / "losses", ExecutionPolicy(executor="slurm", address="local", workers=1)
    file.write_text(str(losses))
    with slurm.SlurmPool(file, policy, 1, "cpu", work=lost_jobs.run) as pool:
        outcome = pool.run(WorkerJob("fit", "lora"), JobInputs({}))
    if found:
        assert outcome == found
    else:
        assert "(fit lora) ended without a result" in str(decode_error(*outcome.error))
        assert file.with_suffix(".begun").read_text() == "x" * local.TRIES


def add_workers(session):
    """Return the session with workers, which keeps failures where the session does."""
    policy = ExecutionPolicy(executor="local", workers=1, threads=1)
    return replace(session, experiment=session.experiment.model_copy(update={"execution": policy}))


class LateWorker:
    """A worker in this process, what it leaves in the store being seen a while after it has ended."""

    def __init__(self, file, runs):
        self.size, self._file, self._runs, self.hidden, self.errors = 1, file, runs, 0, []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def run(self, job, known):
        outcome = job_runner.run_job(self._file, job, known)
        self.errors += [outcome.error] if outcome.error else []
        for name in outcome.files:
            self.hidden += hide(self._runs / name, 0.3)
        return outcome

    def stop(self):
        pass


def hide(file, seconds):
    """Take a file's folder away for a while; returns 1."""
    away = file.parent.with_name(f"away-{file.parent.name}")
    file.parent.rename(away)
    threading.Timer(seconds, away.rename, [file.parent]).start()
    return 1


def map_write_times(runs):
    return {path: path.stat().st_mtime_ns for path in runs.glob("[rw]*/*/*") if path.is_file()}


@pytest.mark.e2e
def test_what_is_seen_late_is_waited_for_by_the_command_and_not_made_again(finished_session, monkeypatch):
    session, loaded = finished_session
    runs = session.store.folder
    before, pools = map_write_times(runs), []

    def open_pool(session, file, threads):
        pools.append(LateWorker(file, runs))
        return pools[0]

    monkeypatch.setattr(executors, "open_pool", open_pool)
    executors.make_on_workers(
        add_workers(session), loaded, Scope(), [RunRequest(session.candidates["lora"], 0)], [None]
    )
    assert pools[0].errors == []
    assert pools[0].hidden >= 4
    assert not list(runs.glob("*/away-*"))
    assert map_write_times(runs) == before
    assert session.failures == {}


@pytest.mark.e2e
def test_what_a_job_needs_is_waited_for_where_it_runs(finished_session):
    session, loaded = finished_session
    runs = session.store.folder
    before = map_write_times(runs)
    with job_runner.write_assignment(session, loaded, Scope(), 1) as file:
        left = job_runner.run_job(file, WorkerJob("fit", "lora"), JobInputs({})).files
        hide(runs / left[0], 0.2)
        known = JobInputs({session.source.weights_digest: ""}, left)
        assert job_runner.run_job(file, WorkerJob("answer", "lora"), known).error is None
    assert left[0].startswith("weights/")
    assert map_write_times(runs) == before


def test_a_file_that_is_never_seen_is_named_with_what_hides_it(tmp_path):
    with pytest.raises(CandidateFailed, match=r"rows/x/rows.parquet, which a worker wrote, .*acdirmax"):
        wait_for_files(tmp_path, ["rows/x/rows.parquet"], 0.05)
