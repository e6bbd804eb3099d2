"""Weights of judges that grade here: models by name, and candidates of this experiment or of another one.

Invariant: a candidate of another experiment judges by the weights that are stored there, and is never trained
here; one of this experiment may have none yet, and until then its judge says so.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from harness import config
from harness.config.rubrics import JudgingCandidate
from harness.errors import CandidateFailed, Problem, UserError, did_you_mean, gather, refuse
from harness.evaluation.candidates import ResolvedCandidate, base_weights
from harness.evaluation.judges import list_judging_candidates, read_judged_metrics
from harness.evaluation.session import MeasuredTask, Session
from harness.experiment.candidate_weights import ensure_weights, find_stored_weights
from harness.training import Weights

Prepare = Callable[[config.LoadedExperiment], Session]


def attach_judges(session: Session, prepare: Prepare) -> Session:
    """Return a session whose judged metrics know their judges; `prepare` opens another experiment without.

    Raises:
        UserError: a candidate that is to judge is not there, cannot judge, or is of another experiment and
            not trained yet; with every problem.
    """
    judging: dict[str, Weights | str] = {name: base_weights(of) for name, of in session.sources.items()}
    problems: list[Problem] = []
    for one, where in list_judging_candidates(_metrics(session)).items():
        with gather(problems):
            judging[one.label] = _weights_of(session, one, where, prepare)
    refuse(problems)
    return _add_judging(replace(session, judging=judging))


def train_judges(session: Session) -> Session:
    """Train the candidates of this experiment that judge and have no weights yet.

    One that cannot be trained fails those whose answers it would grade, with the reason.
    """
    judging = dict(session.judging)
    for one in list_judging_candidates(_metrics(session)):
        if one.experiment or not isinstance(judging[one.label], str):
            continue
        try:
            made = ensure_weights(session, session.candidates[one.candidate], session.first_seed)
            judging[one.label] = _require_pinned(one, made, f"candidate {one.candidate}")
        except CandidateFailed as error:
            judging[one.label] = f"{one.candidate}, which judges, cannot be trained: {error.reason}"
    return session if judging == session.judging else _add_judging(replace(session, judging=judging))


def _metrics(session: Session) -> list[str]:
    judged = [metric for m in session.tasks for metric in m.task.metrics]
    return [*judged, session.experiment.gate.target.by]


def _add_judging(session: Session) -> Session:
    def add_judges(m: MeasuredTask) -> MeasuredTask:
        found = read_judged_metrics(m.task, m.items, session.store, session.judging, session.machine)
        return m._replace(judged=found)

    targets, suites = (tuple(map(add_judges, of)) for of in (session.more_targets, session.suites))
    return replace(session, target=add_judges(session.target), more_targets=targets, suites=suites)


def _weights_of(session: Session, one: JudgingCandidate, where: str, prepare: Prepare) -> Weights | str:
    """Find the weights of a candidate that judges; of this experiment, why there are none yet."""
    here = session
    if one.experiment:
        here = prepare(config.load(Path(one.experiment), (), ()))
    candidate = here.candidates.get(one.candidate)
    if candidate is None:
        expected, step = one.experiment or "this experiment", did_you_mean(one.candidate, {*here.candidates})
        raise UserError(Problem(where, f"unknown {one.candidate!r}", f"a candidate of {expected}", step))
    _refuse_unfit(candidate, where, is_here=not one.experiment)
    weights = find_stored_weights(here, candidate, here.first_seed)
    command = f"harness train {one.candidate}" + (f" -c {one.experiment}" if one.experiment else "")
    if weights is None and one.experiment:
        raise UserError(Problem(where, f"{one.label}, which is not trained yet", "its weights", command))
    if weights is None:
        return f"{one.candidate}, which judges, is not trained yet; next: {command}"
    return _require_pinned(one, weights._replace(source=weights.source or candidate.served_base), where)


def _refuse_unfit(candidate: ResolvedCandidate, where: str, *, is_here: bool) -> None:
    """Refuse a candidate whose weights score no text, or hang on the grades that it gives."""
    if candidate.is_remote:
        step = "judge: {base_url: …, model: …}, the parameters of that candidate"
        found = f"{candidate.name}, an endpoint"
        raise UserError(Problem(where, found, "a candidate whose weights are here", step))
    if not candidate.method.makes_language_model:
        found = f"{candidate.name}, whose method {candidate.source.method} makes no language model"
        raise UserError(Problem(where, found, "a candidate that generates text", "name another one"))
    if tried := [name for name, of in candidate.lineage.items() if of.tried] if is_here else []:
        found = f"{candidate.name}, and a sweep or search of {tried[0]}, which would hang on its own grades"
        step = "the chosen params in place of it, or the judge in an experiment of its own"
        raise UserError(Problem(where, found, "weights that no grade of theirs chose", step))


def _require_pinned(one: JudgingCandidate, weights: Weights, where: str) -> Weights:
    """Return the weights where they are those that the rubric pins."""
    if not weights.digest.startswith(one.weights):
        found = f"{one.label} with the weights {weights.digest[: max(8, len(one.weights))]}"
        step = f"weights: {weights.digest[:8]} where these are meant; all answers are then graded again"
        raise UserError(Problem(where, found, f"weights: {one.weights}, as the rubric pins", step))
    return weights
