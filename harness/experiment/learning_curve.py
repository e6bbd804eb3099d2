"""Learning curve: a fine-tune trained on nested parts of its data, each stored as an ordinary run.

Invariant: every part answers the same validation and test rows of the target, and no suite.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from harness.analysis.candidate_facts import judged_run
from harness.analysis.target_scores import LearningCurve, TrainingSize, learning_curve
from harness.data import part_of
from harness.errors import HarnessError, Problem, UserError
from harness.evaluation.candidates import ResolvedCandidate, base_weights
from harness.evaluation.costs import Work, times
from harness.evaluation.row_sets import RunRequest, target_sets, total_work
from harness.evaluation.session import MeasuredTask, Session, join_items
from harness.experiment.candidate_result import facts_of
from harness.experiment.run_candidate import find_stored_runs, make_run
from harness.experiment.stored_rows import Facts, Reader, Runs, refuse_folds
from harness.experiment.training_fit import fit_work
from harness.records import Run
from harness.spec import Recipe

SHARES = (0.125, 0.25, 0.5)
_LEAST = 8  # rows in the smallest part


def refuse_curve(session: Session, selected: Iterable[str]) -> None:
    """Refuse a learning curve that no selected candidate could have."""
    refuse_folds(session.folds, "--learning-curve", "where a part of all rows would be tested on itself")
    trained = _find_trained(session.candidates, selected)
    if not trained:
        expected, step = "a candidate that is trained here", "add one, or leave --learning-curve out"
        raise UserError(Problem("--learning-curve", "no fine-tune among the candidates", expected, step))
    if (n := max(_n_rows(session, name) for name in trained)) < _LEAST / SHARES[0]:
        expected = f"at least {_LEAST / SHARES[0]:.0f}, so that an eighth of them is {_LEAST}"
        raise UserError(Problem("--learning-curve", f"{n} training rows", expected, "leave it out"))


def estimate_curve_work(session: Session, selected: Iterable[str]) -> Work:
    """Estimate the curve of the fine-tune that takes longest; which one it will be, validation says."""
    works, n = [], len(SHARES)
    for candidate in (session.candidates[name] for name in _find_trained(session.candidates, selected)):
        trains = fit_work(session, candidate.source, session.first_seed)
        evaluation = total_work(target_sets(session, candidate.recipe, base_weights(session.source), 0))
        once = Work(*(round(sum(SHARES) * amount) for amount in trains))._replace(fits=n)
        works.append(times(evaluation, n) + once + Work(opened=n, runs=n))
    return max(works, key=session.seconds, default=Work())


def make_curve(session: Session, runs: Runs, facts: Facts) -> None:
    """Train the fine-tune of the decision on each part of the data that is not done yet."""
    for part, request in _parts(session, runs, facts):
        name = request.candidate.name
        try:
            run = make_run(part, *request)
            session.progress.finish(name, f"{run.candidate}: trained and measured")
        except UserError:
            raise
        except HarnessError as error:
            session.progress.finish(name, f"{name} failed: {error}")


def fit_stored_curve(session: Session, reader: Reader, runs: Runs, facts: Facts) -> LearningCurve | None:
    """Fit the curve of stored parts; None if there are none or fewer than four sizes."""
    name = _curve_candidate(session.candidates, facts)
    known = f"{session.experiment.name}-{name}@"
    if name is None or not any(path.name.startswith(known) for path in session.store.folder.glob("*@*")):
        return None
    found = [(part, find_stored_runs(part, [request])[0]) for part, request in _parts(session, runs, facts)]
    trained = [(part, run) for part, run in found if run and run.state == "done"]
    whole = next(r for r in runs if r.candidate == name and r.state == "done")
    points = [
        TrainingSize(
            _n_rows(of, run.candidate),
            facts_of(of, reader, run).training_cost_usd,
            reader.read(run, of.target),
        )
        for of, run in [*trained, (session, whole)]
    ]
    return learning_curve(name, points, session.target.primary)


def _n_rows(session: Session, name: str) -> int:
    return len(session.training_data(session.candidates[name].source).items.train)


def _parts(session: Session, runs: Runs, facts: Facts) -> Iterator[tuple[Session, RunRequest]]:
    """Yield a session with each share of the training data, and its run; each reuses the base in memory."""
    name = _curve_candidate(session.candidates, facts)
    if name is None or _n_rows(session, name) * SHARES[0] < _LEAST:
        return
    whole = next(r for r in runs if r.candidate == name and r.state == "done")
    candidates = dict(session.experiment.candidates)
    source = candidates[name].weights_of or name
    candidates[source] = settle_sweep(candidates[source], whole)
    last = session
    for share in SHARES:
        target = _share_of(session.target, share, session.first_seed)._replace(judged=session.target.judged)
        training = {key: _share_of(of, share, session.first_seed) for key, of in session.training.items()}
        here = replace(last, target=target, training=training, suites=(), more_targets=())
        part = f"{name}@{_n_rows(here, name)}"
        last = here.with_candidates({**candidates, part: candidates[name]})
        yield last, RunRequest(last.candidates[part], session.first_seed)


def _share_of(whole: MeasuredTask, share: float, seed: int) -> MeasuredTask:
    return join_items(whole.task, whole.role, whole.suite, part_of(whole.items, share, seed))


def settle_sweep(recipe: Recipe, run: Run) -> Recipe:
    """Return the recipe with the values that its sweep or search chose, so that all sizes share them."""
    chosen = next((trial.params for trial in run.training.sweep if trial.chosen), {})
    return recipe.with_params(chosen)


def _curve_candidate(candidates: Mapping[str, ResolvedCandidate], facts: Facts) -> str | None:
    run = judged_run(facts)
    return run.name if run and _find_trained(candidates, [run.name]) else None


def _find_trained(candidates: Mapping[str, ResolvedCandidate], selected: Iterable[str]) -> list[str]:
    return [name for name in selected if candidates[name].method.trains]
