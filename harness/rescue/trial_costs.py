"""What a rescue would try, and what each trial takes, before anything runs.

Invariant: an estimate is of a trial made alone from the fine-tune that is there; what is stored
costs nothing more.
"""

from collections.abc import Sequence
from typing import NamedTuple

from harness import formatting
from harness.evaluation import costs
from harness.evaluation.candidates import base_of, fit_work, source_of, trials
from harness.evaluation.costs import Work
from harness.evaluation.row_sets import suite_sets, target_sets, total_work
from harness.evaluation.session import Session
from harness.experiment.data_scaling import settled
from harness.experiment.run_candidate import base_weights, stored_runs
from harness.models import hub
from harness.records import Run
from harness.rescue.trials import Ladder, Trial, ladder
from harness.spec import Recipe


class Planned(NamedTuple):
    """One trial: what it takes in tokens, seconds and USD, and whether it is stored already."""

    name: str
    step: str
    says: str
    work: Work
    time_s: float
    cost_usd: float
    stored: bool


def ladder_of(session: Session, run: Run) -> Ladder:
    """List what to try for a run, its sweep settled as it was chosen."""
    recipe = session.experiment.candidates[run.candidate]
    source = settled(source_of(session, recipe), run)
    return ladder(run.candidate, recipe, source, session.experiment.rescue, _n_layers(session, recipe))


def planned(session: Session, found: Ladder, seed: int) -> list[Planned]:
    """Estimate every trial, on a session that knows their recipes."""
    return [_planned(session, trial, seed) for trial in found.trials]


def lines(plan: list[Planned], left_out: tuple[str, ...]) -> list[str]:
    """Lay a plan out, the sum at its end."""
    head = f"{'':40} {'trained':>9} {'read':>9} {'generated':>9}  {'about':<13} USD"
    out = [head]
    for one in plan:
        w, took = one.work, "stored" if one.stored else formatting.seconds(one.time_s)
        cells = " ".join(f"{formatting.count(n):>9}" for n in (w.trained, w.read, w.generated))
        out.append(f"{one.name:40} {cells}  {took:<13} {formatting.usd(0 if one.stored else one.cost_usd)}")
    open_ = [one for one in plan if not one.stored]
    total_s, total_usd = sum(o.time_s for o in open_), sum(o.cost_usd for o in open_)
    most = f"at most {formatting.seconds(total_s)} and {formatting.usd(total_usd)} USD"
    said = f"{most}; the first that passes ends it"
    return [*out, *(f"not tried: {reason}" for reason in left_out), said]


def at_most(session: Session, selected: Sequence[str]) -> Work:
    """Estimate all trials of the fine-tune whose rescue takes longest; which it will be, the gate says."""
    works = [sum((_work(session, t, 0) for t in _unsettled(session, name)), Work()) for name in selected]
    return max(works, key=session.seconds, default=Work())


def _unsettled(session: Session, name: str) -> tuple[Trial, ...]:
    """List the trials of a candidate before its sweep has chosen anything; none where nothing is tuned."""
    recipe = session.experiment.candidates[name]
    source = source_of(session, recipe)
    if source.method in ("base", "classifier", "endpoint"):
        return ()
    first = trials(source)[0][1]
    return ladder(name, recipe, first, session.experiment.rescue, _n_layers(session, recipe)).trials


def _planned(session: Session, trial: Trial, seed: int) -> Planned:
    work = _work(session, trial, seed)
    time_s = session.seconds(work, base_of(session, trial.recipe))
    hour = session.experiment.decide.device_hour_usd
    (there,) = stored_runs(session, [(trial.name, trial.recipe, seed)])
    return Planned(
        trial.name,
        trial.step,
        trial.says,
        work,
        time_s,
        costs.price_usd(time_s, session.machine.device, hour),
        there is not None and there.state == "done",
    )


def _work(session: Session, trial: Trial, seed: int) -> Work:
    sets = suite_sets(session, base_weights(session))
    sets += target_sets(session, trial.recipe, base_weights(session), 0)
    return total_work(sets) + fit_work(session, trial.source, seed)


def _n_layers(session: Session, recipe: Recipe) -> int | None:
    shape = hub.shape(base_of(session, recipe))
    return shape.n_layers if shape else None
