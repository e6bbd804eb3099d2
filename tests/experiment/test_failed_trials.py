"""A failed trial does not stop its sweep or search, which chooses among the other trials."""

import pytest
import tiny_experiment
from tiny_experiment import fact_of

from harness import config, store
from harness.errors import CandidateFailed, Diverged, HarnessError, SharedFailure, UserError
from harness.evaluation.row_sets import RunRequest
from harness.experiment import Scope, prepare_session, step_worker
from harness.experiment.executors import plan_for_workers, write_assignment
from harness.experiment.plan import Step
from harness.experiment.step_worker import TRIES
from harness.experiment.trial_search import fails_alone, phrase_no_trial
from harness.progress import SilentProgress
from harness.report.document import markdown
from harness.report.sections import experiment_document
from harness.store import Store

pytestmark = pytest.mark.usefixtures("own_cache")

TRIED = """\
  prompt: {method: base}
  found:
    method: lora
    params: {r: 2, num_train_epochs: 1}
"""


def write_experiment(folder, tiny, search):
    return tiny_experiment.write(folder, tiny, f"{TRIED}    {search}\n")


@pytest.mark.e2e
def test_what_cannot_be_trained_is_a_failed_trial_and_the_others_are_chosen_among(tiny, tmp_path):
    path = write_experiment(tmp_path, tiny, "search: {max_length: [8, 200, 190]}\n    trials: 6")
    report = tiny_experiment.run(path, "suites=[]")
    fact = fact_of(report, "found")
    assert fact.state == "done"
    trials = fact.training.sweep
    assert len(trials) == 6
    failed = [trial for trial in trials if trial.params["max_length"] == 8]
    assert failed
    assert all(trial.validation is None and "8 tokens" in trial.error for trial in failed)
    assert all(trial.validation is not None and not trial.error for trial in trials if trial not in failed)
    assert failed[0].error in markdown(experiment_document(report))
    before = {file: file.stat().st_mtime_ns for file in path.parent.glob("runs/weights/*/fit.json")}
    second_report = tiny_experiment.run(path, "suites=[]")
    assert {file: file.stat().st_mtime_ns for file in path.parent.glob("runs/weights/*/fit.json")} == before
    assert [t.error for t in fact_of(second_report, "found").training.sweep] == [t.error for t in trials]
    listed_trials = store.list_trials(Store(tmp_path / "runs"))
    assert {trial.run.error for trial in listed_trials if trial.state == "failed"} == {failed[0].error}


class Stages(SilentProgress):
    """Progress that records the label of each stage."""

    def __init__(self):
        self.begun = []

    def stage(self, label, expected_s=0.0):
        self.begun.append(label)
        return super().stage(label, expected_s)


class OpenedPlan:
    """A plan with its journal, whose steps workers in this process pull."""

    def __init__(self, loaded):
        self.loaded = loaded
        self.session = prepare_session(loaded, Scope(), SilentProgress())
        candidate = self.session.candidates["found"]
        self.plan = plan_for_workers(self.session, [RunRequest(candidate, seed) for seed in (0, 1)], 1)
        self.file = step_worker.name_assignment(self.session.store)
        self.journal = write_assignment(self.file, self.session, loaded, Scope(), self.plan, 1)

    def pull(self, progress=None):
        """Let a worker make all remaining steps; returns the plan's journal, read again."""
        opened_worker = step_worker._prepare(step_worker._read_assignment(self.file), self.file)
        opened_worker.session.progress = progress or opened_worker.session.progress
        opened_worker.pull()
        self.journal.read()
        return self.journal

    def lose(self, step, n=TRIES):
        """Record lost workers at a step."""
        for _ in range(n):
            self.journal.note("begun", step)


@pytest.fixture
def open_plan(tiny, tmp_path, monkeypatch):
    """Open an experiment for workers in this process."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def open_experiment(search):
        path = write_experiment(tmp_path, tiny, search)
        monkeypatch.chdir(path.parent)
        return OpenedPlan(config.load(path, ["seeds=[0, 1]", "suites=[]"]))

    return open_experiment


def test_trials_that_all_failed_are_not_tried_again_by_the_other_steps_of_a_plan(open_plan):
    opened, progress = open_plan("search: {max_length: [8, 9]}\n    trials: 2"), Stages()
    # The first seed searches before the other seeds take its result.
    assert Step("fit", "found", 0) in opened.plan.needs[Step("fit", "found", 1)]
    journal = opened.pull(progress)
    assert sum("max_length" in label or "training" in label for label in progress.begun) <= 2
    assert len(store.list_trials(opened.session.store)) == 2
    errors = [journal.failed[Step("fit", "found", seed)] for seed in (0, 1)]
    for error in errors:
        assert error.reason.startswith("every trial failed: ")
        assert all(f"max_length {limit}: all 30 rows" in error.reason for limit in (8, 9))


@pytest.mark.e2e
def test_a_fit_whose_worker_is_lost_fails_with_what_waits_for_it_and_the_others_go_on(open_plan):
    opened = open_plan("answer: generate")
    opened.lose(Step("fit", "found", 0))
    failed_steps = opened.pull().failed
    assert {(step.kind, step.seed) for step in failed_steps} == {("fit", 0), ("answer", 0)}
    assert all(
        str(error).startswith(f"its worker ended {TRIES} times without a result at fit found")
        for error in failed_steps.values()
    )


@pytest.mark.parametrize(
    ("error", "alone"),
    [
        (CandidateFailed("out of memory", "a smaller batch"), True),
        (Diverged("no number", "a lower rate"), True),
        (RuntimeError("size mismatch"), True),
        (SharedFailure("the judge is not there", "another judge"), False),
        (UserError("rows", "none", "some", "add rows"), False),
        (HarnessError("the disk is full"), False),
        (FileNotFoundError("rows.jsonl"), False),
    ],
)
def test_a_trial_fails_alone_but_by_what_the_others_would_meet(error, alone):
    assert fails_alone(error) is alone


def test_one_reason_of_all_trials_is_said_once_and_a_divergence_stays_one():
    failures = [({"r": r}, CandidateFailed("out of memory", "a smaller batch")) for r in (2, 4)]
    assert str(phrase_no_trial(failures)) == "every trial failed: out of memory; try: a smaller batch"
    failures = [({"r": r}, Diverged("no number", "a lower rate")) for r in (2, 4)]
    assert isinstance(phrase_no_trial(failures), Diverged)
