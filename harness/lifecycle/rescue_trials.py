"""Trial recipes that may keep what a fine-tune forgot, cheapest first, and what each of them costs.

Every trial changes one thing of the recipe. Source: small learning rates Lin et al. 2025 (arXiv:2509.20758);
lower rank Biderman et al. 2024 (arXiv:2405.09673); methods and regularisers declare the other trials.
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
_ANY_POINT = TrackedPoint(step=1, target=0.0, capability=0.0)  # stands for a training that has not run yet


class RescueTrial(NamedTuple):
    """One trial: a recipe, the weights that it borrows if the candidate borrows, and what it changes."""

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
    changes: list[RescueTrial] = []  # changes to the source, each named by its mark
    left_out: list[str] = []
    policy = case.policy
    for step in policy.steps or plugins.rescue_steps():
        step_changes = _changes(step, recipe.weights_of or name, source, case)
        if isinstance(step_changes, str):
            left_out.append(f"{step}: {step_changes}")
        else:
            changes += step_changes
    kept_trials, n_trained = [], 0
    for change in changes:
        n_trained += change.trained
        if change.trained and n_trained > policy.max_trained:
            left_out.append(f"{change.says}: rescue.max_trained is {policy.max_trained}")
        else:
            trial = change._replace(name=f"{name}+{change.name}")
            if recipe.weights_of is not None:
                borrowed = f"{recipe.weights_of}+{change.name}"
                borrower = recipe.model_copy(update={"weights_of": borrowed})
                trial = trial._replace(recipe=borrower, weights={borrowed: change.recipe})
            kept_trials.append(trial)
    return TrialSchedule(tuple(kept_trials), tuple(left_out))


def _changes(step: str, name: str, source: Recipe, case: RescueSituation) -> Sequence[RescueTrial] | str:
    method = plugins.method(source.method)
    if mending_methods := plugins.list_mending_methods(step):
        kind = case.makes or method.makes
        able_methods = [m for m in mending_methods if kind in plugins.method(m).makes.split(plugins.OR)]
        declared = plugins.method(able_methods[0]).rescue if able_methods else None
        if declared is None:
            return "it fixes weights of another kind"
        settings = declared.settings(case)
        if isinstance(settings, str):
            return settings
        prompting = source.model_dump(include={"prompting", "answer", "system", "template", "serve_on"})
        trials = []
        for setting in settings:  # what a method makes of the candidate's weights, without training
            start = {"merges": (name, *setting.merges)} if setting.merges else {"init_from": name}
            recipe = Recipe(method=able_methods[0], params=setting.params, **start, **prompting)
            trials.append(RescueTrial(declared.name, setting.mark, recipe, False, setting.says))
        return trials
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
        changed = {"learning_rate": rate}
        return [_change_params(step, source, f"lr={rate:g}", f"learning rate {rate:g}", changed)]
    why = f"the training of {source.method} does not take it"
    for name, declared in plugins.map_mending_regularizers(step).items():
        takes = plugins.takes(method, name, source.params)
        if takes and (refused := plugins.refuses(name, source.params)):
            return f"not with {refused}"
        settings = declared.settings(case._replace(present=source.regularize.get(name)))
        if isinstance(settings, str):
            why = settings
        elif takes:
            regularized = [{**source.regularize, name: s.params} for s in settings]
            recipes = [source.model_copy(update={"regularize": more}) for more in regularized]
            return [
                RescueTrial(step, s.mark, r, True, s.says) for s, r in zip(settings, recipes, strict=True)
            ]
        elif leaving := [setting for setting in settings if setting.leaves_out]:
            params = method.params(**source.params)
            without = [(s, method.leave_out(params, s.leaves_out)) for s in leaving if not source.init_from]
            changes = [_change_params(step, source, s.mark, s.says, fewer) for s, fewer in without if fewer]
            return changes or "a part of the layers is left out already, or settled by another candidate"
    return why


def _change_params(step: str, source: Recipe, mark: str, says: str, params: dict[str, Any]) -> RescueTrial:
    recipe = source.model_copy(update={"params": {**source.params, **params}})
    return RescueTrial(step, mark, recipe, True, says)


def describe_situation(
    session: Session, candidate: ResolvedCandidate, source: Recipe, run: Run | None = None
) -> RescueSituation:
    """Describe what to rescue: a run, or what a candidate might need before its sweep has chosen anything.

    A margin relative to the base's skill counts as the usual one.
    """
    others = {
        peer.name: peer.source.params
        for peer in session.candidates.values()
        if peer.method.trains
        and peer.method.makes == "adapter"
        and peer.source_name == peer.name != candidate.source_name
        and peer.served_base == candidate.served_base
        and (run is None or experiment.find_stored_weights(session, peer, run.seed))
    }
    tracked = (_ANY_POINT,) if candidate.source.track else ()
    shape = hub.shape(candidate.base)
    return RescueSituation(
        session.experiment.rescue,
        {**experiment.find_adapter_config(candidate), **source.params},
        shape.n_layers if shape else None,
        others=others,
        tracked=run.training.tracked if run else tracked,
        margin=scale_share(session.experiment.gate.macro) or _USUAL_MARGIN,
        sign=session.target.primary.unit.sign,  # −1 where a lower score of the target is better
        makes=candidate.makes,
    )


class TrialCost(NamedTuple):
    """One trial: what it takes in tokens, seconds and USD, and whether it is stored already."""

    name: str
    step: str
    says: str
    work: Work
    time_s: float
    cost_usd: float
    stored: bool


def estimate_trials(session: Session, schedule: TrialSchedule, seed: int) -> list[TrialCost]:
    """Estimate every trial, on a session that knows their recipes."""
    costs_of, hour = [], session.experiment.decide.device_hour_usd
    for trial in schedule.trials:
        work, candidate = _work(session, trial, seed), session.candidates[trial.name]
        time_s = session.seconds(work, candidate.base)
        cost_usd = costs.price_usd(time_s, session.machine.device, hour)
        (run,) = experiment.find_stored_runs(session, [row_sets.RunRequest(candidate, seed)])
        is_stored = run is not None and run.state == "done"
        costs_of.append(TrialCost(trial.name, trial.step, trial.says, work, time_s, cost_usd, is_stored))
    return costs_of


def plan_document(plan: Sequence[TrialCost], left_out: Sequence[str]) -> ResultDocument:
    """Return the document of each trial's tokens, time and cost, the sum last."""
    rows = [
        [
            cost.name,
            *map(formatting.count, (cost.work.trained, cost.work.read, cost.work.generated)),
            "stored" if cost.stored else formatting.seconds(cost.time_s),
            formatting.usd(0 if cost.stored else cost.cost_usd),
        ]
        for cost in plan
    ]
    columns = ("trial", "trained", "read", "generated", "about", "USD")
    open_ = [cost for cost in plan if not cost.stored]
    total_s, total_usd = sum(o.time_s for o in open_), sum(o.cost_usd for o in open_)
    total = f"at most {formatting.seconds(total_s)} and {formatting.usd(total_usd)} USD"
    notes = [f"not tried: {reason}" for reason in left_out]
    section = Section(columns=columns, rows=rows, notes=notes)
    return ResultDocument("", [section], f"{total}; the first that passes ends it")


def largest_work(session: Session, selected: Sequence[str]) -> Work:
    """Estimate all trials of the fine-tune whose rescue takes longest; only the gate decides which it is."""
    works = [Work()]
    for name in selected:
        candidate = session.candidates[name]
        if candidate.method.tunes and not candidate.is_remote:  # before its sweep has chosen anything
            first = candidate.trials[0].source
            case = describe_situation(session, candidate, first)
            trials = schedule_trials(name, candidate.recipe, first, case).trials
            works.append(sum((_work(session, trial, 0) for trial in trials), Work()))
    return max(works, key=session.seconds)


def _work(session: Session, trial: RescueTrial, seed: int) -> Work:
    suites = row_sets.suite_sets(session, base_weights(session.source))
    sets = [*suites, *experiment.list_answered_sets(session, trial.recipe)]
    making = experiment.fit_work(session, trial.source, seed)
    tracking = experiment.estimate_tracking(session, trial.source)
    return row_sets.total_work(sets) + making + tracking + Work(opened=1, runs=1)
