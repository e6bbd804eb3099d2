"""Trial recipes that may keep what a fine-tune forgot, cheapest first, and what each of them costs.

Every trial changes one thing of the recipe. Source: small learning rates Lin et al. 2025 (arXiv:2509.20758);
lower rank Biderman et al. 2024 (arXiv:2405.09673); the others are those of the methods and regularisers that
declare them.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from harness import experiment, formatting, plugins
from harness.analysis.margins import scale_share
from harness.evaluation import costs, row_sets
from harness.evaluation.candidates import ResolvedCandidate, base_weights
from harness.evaluation.costs import Work
from harness.evaluation.session import Session
from harness.models import hub
from harness.plugins import RescueSituation
from harness.records import Run, TrackedPoint
from harness.report import ResultDocument, Section
from harness.spec import Recipe

_SLOWER, _SMALLER = 10, 4  # by what the learning rate and the rank are divided
_USUAL_MARGIN = 0.02  # of the gate's macro
_ANY_POINT = TrackedPoint(step=1, target=0.0, capability=0.0)  # of a training that is not made yet


class RescueTrial(NamedTuple):
    """One trial: a recipe to try, the weights it borrows where the candidate borrows, what it changes."""

    step: str
    name: str
    recipe: Recipe
    trained: bool
    says: str
    weights: Mapping[str, Recipe] = {}

    @property
    def source(self) -> Recipe:
        """The recipe that makes the weights."""
        return next(iter(self.weights.values()), self.recipe)

    @property
    def recipes(self) -> dict[str, Recipe]:
        """Every candidate that has to be in the experiment for this one."""
        return {**self.weights, self.name: self.recipe}


class TrialSchedule(NamedTuple):
    """The trials in order, and what is left out, each with its reason."""

    trials: tuple[RescueTrial, ...]
    left_out: tuple[str, ...]


def schedule_trials(name: str, recipe: Recipe, source: Recipe, case: RescueSituation) -> TrialSchedule:
    """List what to try for a candidate.

    `source` is the recipe of its weights with what a sweep chose; it is `recipe` itself unless that borrows.
    The parameters of the `case` are those of the source.
    """
    changes: list[RescueTrial] = []  # of the source, each under its mark
    left_out: list[str] = []
    policy = case.policy
    for step in policy.steps or plugins.rescue_steps():
        found = _changes(step, recipe.weights_of or name, source, case)
        if isinstance(found, str):
            left_out.append(f"{step}: {found}")
        else:
            changes += found
    kept, n_trained = [], 0
    for change in changes:
        n_trained += change.trained
        if change.trained and n_trained > policy.max_trained:
            left_out.append(f"{change.says}: rescue.max_trained is {policy.max_trained}")
        else:
            trial = change._replace(name=f"{name}+{change.name}")
            if recipe.weights_of is not None:
                borrowed = f"{recipe.weights_of}+{change.name}"
                made = recipe.model_copy(update={"weights_of": borrowed})
                trial = trial._replace(recipe=made, weights={borrowed: change.recipe})
            kept.append(trial)
    return TrialSchedule(tuple(kept), tuple(left_out))


def _changes(step: str, name: str, source: Recipe, case: RescueSituation) -> Sequence[RescueTrial] | str:
    method = plugins.method(source.method)
    if mending := plugins.list_mending_methods(step):
        kind = case.makes or method.makes
        able = [one for one in mending if kind in plugins.method(one).makes.split(plugins.OR)]
        declared = plugins.method(able[0]).rescue if able else None
        if declared is None:
            return "it fixes weights of another kind"
        settings = declared.settings(case)
        if isinstance(settings, str):
            return settings
        prompting = source.model_dump(include={"prompting", "answer", "system", "template", "serve_on"})
        made = []
        for setting in settings:  # what a method makes of the candidate's weights, without training
            start = {"merges": (name, *setting.merges)} if setting.merges else {"init_from": name}
            recipe = Recipe(method=able[0], params=setting.params, **start, **prompting)
            made.append(RescueTrial(declared.name, setting.mark, recipe, False, setting.says))
        return made
    if not method.trains:
        return "the weights were not trained here"
    if step in plugins.TRAINING_STEPS:
        params = method.params(**source.params)
        if step == "rank":
            lowered = {} if source.init_from else method.lower_rank(params, _SMALLER)
            if not lowered:
                return "no new adapter of rank 2 or more is trained, so there is no rank to lower"
            key, rank = next(iter(lowered.items()))
            return [_change_params("rank", source, f"{key}={rank}", f"rank {rank}", lowered)]
        rate = float(f"{params.learning_rate / _SLOWER:.6g}")  # 3e-3 / 10 is not 3e-4 in binary
        return [
            _change_params(step, source, f"lr={rate:g}", f"learning rate {rate:g}", {"learning_rate": rate})
        ]
    why = f"the training of {source.method} does not take it"
    for name, declared in plugins.map_mending_regularizers(step).items():
        takes = plugins.takes(method, name, source.params)
        if takes and (refused := plugins.refuses(name, source.params)):
            return f"not with {refused}"
        settings = declared.settings(case._replace(present=source.regularize.get(name)))
        if isinstance(settings, str):
            why = settings
        elif takes:
            return [
                RescueTrial(step, one.mark, source.model_copy(update={"regularize": more}), True, one.says)
                for one in settings
                for more in [{**source.regularize, name: one.params}]
            ]
        elif leaving := [setting for setting in settings if setting.leaves_out]:
            params = method.params(**source.params)
            without = [
                (one, method.leave_out(params, one.leaves_out)) for one in leaving if not source.init_from
            ]
            changes = [
                _change_params(step, source, one.mark, one.says, left) for one, left in without if left
            ]
            return changes or "a part of the layers is left out already, or settled by another candidate"
    return why


def _change_params(step: str, source: Recipe, mark: str, says: str, params: dict[str, Any]) -> RescueTrial:
    made = source.model_copy(update={"params": {**source.params, **params}})
    return RescueTrial(step, mark, made, True, says)


def schedule_for_run(session: Session, run: Run) -> TrialSchedule:
    """List what to try for a run, its sweep settled as it was chosen."""
    candidate = session.candidates[run.candidate]
    source = experiment.settle_sweep(candidate.source, run)
    others = {
        one.name: one.source.params
        for one in _list_other_adapters(session.candidates, candidate)
        if experiment.find_stored_weights(session, one, run.seed)
    }
    case = _situation(session, candidate, source)._replace(others=others, tracked=run.training.tracked)
    return schedule_trials(run.candidate, candidate.recipe, source, case)


def _situation(session: Session, candidate: ResolvedCandidate, source: Recipe) -> RescueSituation:
    """Describe what to rescue; a margin relative to the base's skill counts as the usual one."""
    macro, shape = session.experiment.gate.macro, hub.shape(candidate.base)
    return RescueSituation(
        session.experiment.rescue,
        {**experiment.find_adapter_config(candidate), **source.params},
        shape.n_layers if shape else None,
        margin=scale_share(macro) or _USUAL_MARGIN,
        sign=session.target.primary.unit.sign,  # −1 where a lower score of the target is better
        makes=candidate.makes,
    )


def _list_other_adapters(
    candidates: Mapping[str, ResolvedCandidate], candidate: ResolvedCandidate
) -> list[ResolvedCandidate]:
    return [
        one
        for one in candidates.values()
        if one.method.trains
        and one.method.makes == "adapter"
        and one.source_name == one.name != candidate.source_name
        and one.served_base == candidate.served_base
    ]


class TrialCost(NamedTuple):
    """One trial: what it takes in tokens, seconds and USD, and whether it is stored already."""

    name: str
    step: str
    says: str
    work: Work
    time_s: float
    cost_usd: float
    stored: bool


def estimate_trials(session: Session, found: TrialSchedule, seed: int) -> list[TrialCost]:
    """Estimate every trial, on a session that knows their recipes."""
    costs_of, hour = [], session.experiment.decide.device_hour_usd
    for trial in found.trials:
        work, candidate = _work(session, trial, seed), session.candidates[trial.name]
        time_s = session.seconds(work, candidate.base)
        cost_usd = costs.price_usd(time_s, session.machine.device, hour)
        (run,) = experiment.find_stored_runs(session, [row_sets.RunRequest(candidate, seed)])
        is_stored = run is not None and run.state == "done"
        costs_of.append(TrialCost(trial.name, trial.step, trial.says, work, time_s, cost_usd, is_stored))
    return costs_of


def plan_document(plan: Sequence[TrialCost], left_out: Sequence[str]) -> ResultDocument:
    """Lay out the tokens, time and cost of each trial, and the sum last."""
    rows = [
        [
            one.name,
            *map(formatting.count, (one.work.trained, one.work.read, one.work.generated)),
            "stored" if one.stored else formatting.seconds(one.time_s),
            formatting.usd(0 if one.stored else one.cost_usd),
        ]
        for one in plan
    ]
    columns = ("trial", "trained", "read", "generated", "about", "USD")
    open_ = [one for one in plan if not one.stored]
    total_s, total_usd = sum(o.time_s for o in open_), sum(o.cost_usd for o in open_)
    most = f"at most {formatting.seconds(total_s)} and {formatting.usd(total_usd)} USD"
    notes = [f"not tried: {reason}" for reason in left_out]
    return ResultDocument(
        "", [Section(columns=columns, rows=rows, notes=notes)], f"{most}; the first that passes ends it"
    )


def largest_work(session: Session, selected: Sequence[str]) -> Work:
    """Estimate all trials of the fine-tune whose rescue takes longest; which it will be, the gate says."""
    works = [Work()]
    for name in selected:
        candidate = session.candidates[name]
        if candidate.method.tunes and not candidate.is_remote:  # before its sweep has chosen anything
            first = candidate.trials[0].source
            others = {
                one.name: one.source.params for one in _list_other_adapters(session.candidates, candidate)
            }
            tracked = (_ANY_POINT,) if candidate.source.track else ()
            case = _situation(session, candidate, first)._replace(others=others, tracked=tracked)
            trials = schedule_trials(name, candidate.recipe, first, case).trials
            works.append(sum((_work(session, trial, 0) for trial in trials), Work()))
    return max(works, key=session.seconds)


def _work(session: Session, trial: RescueTrial, seed: int) -> Work:
    suites = row_sets.suite_sets(session, base_weights(session.source))
    sets = [*suites, *experiment.list_answered_sets(session, trial.recipe)]
    making = experiment.fit_work(session, trial.source, seed)
    tracking = experiment.estimate_tracking(session, trial.source)
    return row_sets.total_work(sets) + making + tracking + Work(opened=1, runs=1)
