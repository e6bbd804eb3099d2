"""A trial that fails is a failed trial: the sweep or search goes on, and chooses among the others."""

from contextlib import nullcontext

import pytest
import tiny_experiment

from harness import config, store
from harness.errors import CandidateFailed, Diverged, HarnessError, Problem, SharedFailure, UserError
from harness.evaluation.rows.row_sets import RunRequest
from harness.experiment import Scope, executors, prepare_session
from harness.experiment.executors import job_runner
from harness.experiment.executors.job_runner import JobInputs, JobResult
from harness.experiment.executors.work_plan import WorkerJob, plan_work
from harness.experiment.weights.candidate_weights import find_stored_weights
from harness.experiment.weights.trial_record import fails_alone, phrase_no_trial
from harness.progress import SilentProgress
from harness.report.document import markdown
from harness.report.sections import experiment_document
from harness.store import Store
from harness.training.worker import encode_error

pytestmark = pytest.mark.usefixtures("own_cache")

TRIED = """\
  prompt: {method: base}
  found:
    method: lora
    params: {r: 2, num_train_epochs: 1}
"""


def write_experiment(folder, tiny, tried):
    return tiny_experiment.write(folder, tiny, f"{TRIED}    {tried}\n")


def fact(report):
    return next(f for f in report.facts if f.name == "found")


def folders(path):
    return {f.name: (f / "fit.json").stat().st_mtime_ns for f in (path.parent / "runs").glob("weights/*")}


@pytest.mark.e2e
@pytest.mark.parametrize(
    "tried", ["sweep: {max_length: [8, 200, 190]}", "search: {max_length: [8, 200, 190]}\n    trials: 6"]
)
def test_what_cannot_be_trained_is_a_failed_trial_and_the_others_are_chosen_among(tiny, tmp_path, tried):
    path = write_experiment(tmp_path, tiny, tried)
    report = tiny_experiment.run(path)
    found = fact(report)
    assert found.state == "done"
    trials = found.training.sweep
    assert len(trials) == (3 if "sweep" in tried else 6)
    failed = [one for one in trials if one.params["max_length"] == 8]
    assert failed
    assert all(one.validation is None and "8 tokens" in one.error for one in failed)
    assert all(one.validation is not None and not one.error for one in trials if one not in failed)
    assert failed[0].error in markdown(experiment_document(report))
    before = folders(path)
    again = tiny_experiment.run(path)
    assert folders(path) == before
    assert [t.error for t in fact(again).training.sweep] == [t.error for t in trials]
    listed = store.list_trials(Store(tmp_path / "runs"))
    assert {one.run.error for one in listed if one.state == "failed"} == {failed[0].error}


@pytest.mark.e2e
def test_a_candidate_of_failed_trials_alone_fails_with_their_reasons_and_is_tried_again(tiny, tmp_path):
    path = write_experiment(tmp_path, tiny, "sweep: {max_length: [8, 9]}")
    failed = fact(tiny_experiment.run(path))
    assert failed.state == "failed"
    assert "every trial failed: max_length 8: " in failed.error
    assert "; max_length 9: " in failed.error
    other = write_experiment(tmp_path, tiny, "sweep: {max_length: [8, 200]}")
    assert fact(tiny_experiment.run(other)).state == "done"


class Stages(SilentProgress):
    """Notes what is begun."""

    def __init__(self):
        self.begun = []

    def stage(self, label, expected_s=0.0):
        self.begun.append(label)
        return super().stage(label, expected_s)


@pytest.fixture
def open_jobs(tiny, tmp_path, monkeypatch):
    """Open an experiment and run jobs of its worker one by one, as a pool of one does."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def open_experiment(tried, *overrides):
        path = write_experiment(tmp_path, tiny, tried)
        monkeypatch.chdir(path.parent)
        job_runner._opened.clear()
        loaded = config.load(path, ["seeds=[0, 1]", *overrides])
        session = prepare_session(loaded, Scope(), SilentProgress())
        requests = [RunRequest(session.candidates["found"], seed) for seed in (0, 1)]
        return loaded, session, plan_work(session, requests, 1)

    return open_experiment


@pytest.mark.parametrize(
    "tried", ["sweep: {max_length: [8, 9]}", "search: {max_length: [8, 9]}\n    trials: 2"]
)
def test_trials_that_all_failed_are_not_tried_again_by_the_other_jobs_of_a_command(open_jobs, tried):
    loaded, session, plan = open_jobs(tried)
    first, other = WorkerJob("fit", "found", 0), WorkerJob("fit", "found", 1)
    with job_runner.write_assignment(session, loaded, Scope(), 1) as file:
        for job in [one for one in plan.needs if one.kind == "trial"] or [first]:
            job_runner.run_job(file, job, JobInputs({}))
        job_runner._opened[file].progress = progress = Stages()
        errors = [job_runner.run_job(file, job, JobInputs({})).error for job in (first, other)]
    assert progress.begun == []
    assert len(store.list_trials(session.store)) == 2
    for _, (reason, _) in errors:
        assert reason.startswith("every trial failed: ")
        assert all(f"max_length {most}: all 30 rows" in reason for most in (8, 9))


class KilledPool:
    """A pool of one, in this process, whose worker is killed at the first trial."""

    size = 1

    def __init__(self, file):
        self.file = file

    def run(self, job, known):
        if (job.kind, job.part) == ("trial", 0):
            lost = CandidateFailed("its worker ended 3 times with exit code -9", "fewer workers")
            return JobResult(error=encode_error(lost), killed=True)
        return job_runner.run_job(self.file, job, known)

    def stop(self):
        pass


@pytest.mark.e2e
def test_a_trial_whose_worker_is_killed_is_a_failed_trial_and_the_others_are_chosen_among(
    open_jobs, monkeypatch
):
    monkeypatch.setattr(executors, "open_pool", lambda session, file, threads: nullcontext(KilledPool(file)))
    loaded, session, _ = open_jobs("sweep: {max_length: [190, 200]}", "execution.executor=local")
    candidate = session.candidates["found"]
    executors.make_on_workers(session, loaded, Scope(), [RunRequest(candidate, 0)], [None])
    assert session.failures == {}
    killed, whole = find_stored_weights(session, candidate, 0).training.sweep
    assert killed.params == {"max_length": 190}
    assert killed.error == "its worker ended 3 times with exit code -9; try: fewer workers"
    assert whole.chosen
    assert [t.run.error for t in store.list_trials(session.store) if t.state == "failed"] == [killed.error]


class Killed(BaseException):
    """What ends a worker in the place of a signal."""


class KilledAtStage(Stages):
    """Progress of a worker that is killed as one of its stages begins."""

    def __init__(self, at):
        super().__init__()
        self.at = at

    def stage(self, label, expected_s=0.0):
        found = super().stage(label, expected_s)
        if len(self.begun) == self.at:
            raise Killed
        return found


class KillingSearch(KilledPool):
    """A pool of one, in this process, whose worker is killed while its search is at the second trial."""

    def __init__(self, file):
        super().__init__(file)
        self.asked = []

    def run(self, job, known):
        self.asked.append(job)
        if (job.kind, job.part) != ("fit", 0):
            return job_runner.run_job(self.file, job, known)
        session = job_runner._opened[self.file] = job_runner._prepare(job_runner._read_assignment(self.file))
        session.progress = KilledAtStage(at=4)
        lost = CandidateFailed("its worker ended 3 times with exit code -9", "fewer workers")
        try:
            job_runner.run_job(self.file, job, known)
        except Killed:
            job_runner._opened.clear()
            return JobResult(error=encode_error(lost), killed=True)
        raise AssertionError(session.progress.begun)


@pytest.mark.e2e
def test_a_search_whose_worker_is_killed_goes_on_behind_the_trial_that_it_was_at(open_jobs, monkeypatch):
    pools = []

    def open_pool(session, file, threads):
        pools.append(KillingSearch(file))
        return nullcontext(pools[0])

    monkeypatch.setattr(executors, "open_pool", open_pool)
    loaded, session, _ = open_jobs(
        "search: {max_length: [190, 200]}\n    trials: 3", "execution.executor=local"
    )
    candidate = session.candidates["found"]
    executors.make_on_workers(session, loaded, Scope(), [RunRequest(candidate, 0)], [None])
    assert session.failures == {}
    assert [job.part for job in pools[0].asked if job.kind == "fit"] == [0, 1]
    trials = find_stored_weights(session, candidate, 0).training.sweep
    assert len(trials) == 3
    killed = [t for t in trials if t.error]
    assert killed
    assert {t.error for t in killed} == {"its worker ended 3 times with exit code -9; try: fewer workers"}
    assert any(t.chosen and t.validation is not None for t in trials)


def test_the_first_seed_searches_before_the_others_take_what_it_found(open_jobs):
    plan = open_jobs("search: {max_length: [8, 9]}\n    trials: 2")[-1]
    assert WorkerJob("fit", "found", 0) in plan.needs[WorkerJob("fit", "found", 1)]


@pytest.mark.parametrize(
    ("error", "alone"),
    [
        (CandidateFailed("out of memory", "a smaller batch"), True),
        (Diverged("no number", "a lower rate"), True),
        (RuntimeError("size mismatch"), True),
        (SharedFailure("the judge is not there", "another judge"), False),
        (UserError(Problem("rows", "none", "some", "add rows")), False),
        (HarnessError("the disk is full"), False),
        (FileNotFoundError("rows.jsonl"), False),
    ],
)
def test_a_trial_fails_alone_but_by_what_the_others_would_meet(error, alone):
    assert fails_alone(error) is alone


def test_one_reason_of_all_trials_is_said_once_and_a_divergence_stays_one():
    failed = [({"r": r}, CandidateFailed("out of memory", "a smaller batch")) for r in (2, 4)]
    assert str(phrase_no_trial(failed)) == "every trial failed: out of memory; try: a smaller batch"
    failed = [({"r": r}, Diverged("no number", "a lower rate")) for r in (2, 4)]
    assert isinstance(phrase_no_trial(failed), Diverged)
