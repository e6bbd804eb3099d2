"""Trials of a rescue: recipes that may keep what a fine-tune forgot, cheapest first, their costs and results.

Every trial changes one thing of the recipe. Each is judged on two halves of the suites' items. Source: small
learning rates Lin et al. 2025 (arXiv:2509.20758); lower rank Biderman et al. 2024 (arXiv:2405.09673); methods
and regularisers declare the other trials.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from glob import escape as escaped
from pathlib import Path
from typing import Any, NamedTuple

from harness import formatting, plugins, report, stats
from harness.analysis import gate_verdict
from harness.analysis.candidate_facts import CandidateFacts, gain
from harness.analysis.decision import Decision
from harness.analysis.estimators import Estimate
from harness.analysis.margins import scale_share
from harness.analysis.verdict import Half, Verdict
from harness.evaluation.candidates import ResolvedCandidate
from harness.evaluation.costs import Work
from harness.experiment.candidate_problems import find_adapter_config
from harness.metrics import Metric
from harness.models import hub
from harness.plugins import RescueSituation
from harness.records import TrackedPoint, parse_json
from harness.spec import Experiment, GatePolicy, Recipe

_SLOWER, _SMALLER = 10, 4  # by what the learning rate and the rank are divided
_USUAL_MARGIN = 0.02  # of the gate's macro
_ANY_POINT = TrackedPoint(step=1, target=0.0, capability=0.0)  # stands for a training that has not run yet
_NAMES = {"search": "the search half", "confirm": "the other half"}
_UNDECIDED = ("inconclusive", "harness-drift")


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
    if rescue_methods := plugins.list_rescue_methods(step):
        kind = case.makes or method.makes
        able_methods = [m for m in rescue_methods if kind in plugins.method(m).makes.split(plugins.OR)]
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
    for name, declared in plugins.map_rescue_regularizers(step).items():
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


def list_adapters(
    candidates: Iterable[ResolvedCandidate], candidate: ResolvedCandidate
) -> list[ResolvedCandidate]:
    """List the candidates with an own adapter of the same base, which may be merged with a candidate's."""
    return [
        peer
        for peer in candidates
        if peer.method.trains
        and peer.method.makes == "adapter"
        and peer.source_name == peer.name != candidate.source_name
        and peer.served_base == candidate.served_base
    ]


def plan_trials(
    experiment: Experiment,
    metric: Metric,
    candidate: ResolvedCandidate,
    source: Recipe,
    others: Iterable[ResolvedCandidate],
    tracked: tuple[TrackedPoint, ...] | None = None,
) -> TrialSchedule:
    """List what to try for a candidate, given the target's metric and the adapters that may be merged in.

    `tracked` are the points of its training, None before it has run. A margin relative to the base's skill
    counts as the usual one.
    """
    shape, any_point = hub.shape(candidate.base), (_ANY_POINT,) if candidate.source.track else ()
    case = RescueSituation(
        experiment.rescue,
        {**find_adapter_config(candidate), **source.params},
        shape.n_layers if shape else None,
        others={peer.name: peer.source.params for peer in others},
        tracked=any_point if tracked is None else tracked,
        margin=scale_share(experiment.gate.macro) or _USUAL_MARGIN,
        sign=metric.unit.sign,  # −1 where a lower score of the target is better
        makes=candidate.makes,
    )
    return schedule_trials(candidate.name, candidate.recipe, source, case)


class TrialCost(NamedTuple):
    """One trial: what it takes in tokens, seconds and USD, and whether it is stored already."""

    name: str
    step: str
    says: str
    work: Work
    time_s: float
    cost_usd: float
    stored: bool


def plan_document(plan: Sequence[TrialCost], left_out: Sequence[str]) -> report.ResultDocument:
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
    section = report.Section(columns=columns, rows=rows, notes=notes)
    return report.ResultDocument("", [section], f"{total}; the first that passes ends it")


@dataclass(frozen=True, slots=True)
class HalfVerdict:
    """Verdict of the gate on one half of the suites' items, `n_items` of `n_all`.

    `gains`: the target's gain is above 0 on validation in the search, shown on test in the confirmation.
    `lost_on` names more targets without a gain. `labels_missing` of people show no gain by a judge's grades.
    """

    half: Half
    n_items: int
    n_all: int
    verdict: Verdict
    gains: bool
    lost_on: tuple[str, ...] = ()
    labels_missing: int = 0

    @property
    def keeps_gains(self) -> bool:
        """Whether the gains on all targets hold."""
        return self.gains and not self.lost_on and not self.labels_missing

    @property
    def passes(self) -> bool:
        """Whether the gate passes and the gains hold."""
        return self.verdict.outcome == "pass" and self.keeps_gains

    @property
    def sentence(self) -> str:
        """The verdict, with the name of its half."""
        items = f"{formatting.count(self.n_items)} of {formatting.count(self.n_all)} items"
        lost_targets = [*([] if self.gains else ["the target"]), *self.lost_on]
        lost = f"; the gain on {' and '.join(lost_targets)} is gone" if lost_targets else ""
        if self.labels_missing:
            labels = formatting.pluralize(self.labels_missing, "more label")
            lost += f"; a judge's grades show no gain before {labels} of people (harness rate export)"
        return f"on {_NAMES[self.half]} ({items}) {self.verdict.sentence}{lost}"


@dataclass(frozen=True, slots=True)
class TrialResult:
    """One trial, with its verdicts on both halves."""

    name: str
    step: str
    says: str
    recipes: dict[str, dict[str, Any]]
    facts: CandidateFacts
    search: HalfVerdict | None = None
    confirm: HalfVerdict | None = None

    @property
    def capability_change(self) -> Estimate | None:
        """The change of capability on the search half."""
        return self.search.verdict.macro if self.search else None

    @property
    def scale(self) -> float | None:
        """Scale between the base (0) and the fine-tune (1); None for trials of other steps."""
        params = (recipe["params"] for recipe in self.recipes.values() if self.step == "scale")
        return next((float(p["scale"]) for p in params if "scale" in p), None)


@dataclass(frozen=True, slots=True)
class Rescue:
    """A rescue; `original` is the run itself, judged on the same half, `reference` measures gains."""

    experiment: str
    base_model: str
    candidate: str
    seed: int
    metric: str
    reference: str
    original: TrialResult
    tried: tuple[TrialResult, ...]
    left_out: tuple[str, ...]
    macro_margin: float | None
    notes: tuple[str, ...] = ()

    @property
    def rescued_trial(self) -> str | None:
        """Name the trial that passed on both halves."""
        return next((t.name for t in self.tried if t.confirm and t.confirm.passes), None)

    @property
    def confirmed_trial(self) -> TrialResult | None:
        """The trial that was evaluated on the other half, with any result."""
        return next((t for t in self.tried if t.confirm), None)

    @property
    def front(self) -> tuple[str, ...]:
        """Name the runs on the Pareto front of target score and capability."""
        trials = (self.original, *self.tried)
        scored = [(t, f, k) for t in trials if (f := t.facts.target) and (k := t.capability_change)]
        points = [(target.unit.sign * target.score, skill.score) for _, target, skill in scored]
        best = stats.pareto_front(points) if points else []
        return tuple(scored[i][0].name for i in best)

    @property
    def path(self) -> list[tuple[float, TrialResult]]:
        """The scales that were tried, in order, with the run itself as 1."""
        scaled = [(t.scale, t) for t in self.tried if t.scale is not None]
        return sorted([*scaled, (1.0, self.original)], key=lambda pair: pair[0])

    @property
    def sentence(self) -> str:
        """Describe the result in one sentence."""
        if self.rescued_trial:
            trial = next(t for t in self.tried if t.name == self.rescued_trial)
            target = report.target_text(trial.facts)
            g = gain(trial.facts.vs_untrained)
            over = f", {formatting.change(g.unit, g.delta, g.low, g.high)} over {self.reference}" if g else ""
            skill = trial.confirm.verdict.macro if trial.confirm else None
            skill_text = f", capability {formatting.points(*skill[:3])} on the other half" if skill else ""
            scores_text = f"{self.metric} {target}{over}{skill_text}"
            return f"Rescued: {trial.name} ({trial.says}) passes on both halves: {scores_text}."
        if (winner := self.confirmed_trial) and winner.confirm:
            return (
                f"Nothing is rescued: {winner.name} passed on the search half, but {winner.confirm.sentence}."
                " It was evaluated there once; more items would say more."
            )
        n = sum(t.search is not None for t in self.tried)
        if not n:
            return f"Nothing is rescued: no trial of {self.candidate} could be judged."
        return (
            f"Nothing is rescued: none of {n} trials of {self.candidate} passes on the search half; the "
            "table shows what each gains and keeps."
        )


def exit_code(rescue: Rescue, policy: GatePolicy) -> int:
    """Return 0 if a trial passed on both halves, 3 or 4 by the verdicts, 1 without a verdict."""
    if rescue.rescued_trial:
        return 0
    trial = rescue.confirmed_trial
    judged = [trial.confirm] if trial and trial.confirm else [t.search for t in rescue.tried if t.search]
    if not judged:
        return 1
    if any(h.labels_missing and h.gains and not h.lost_on for h in judged):
        return 4
    undecided = [h.verdict for h in judged if h.keeps_gains and h.verdict.outcome in _UNDECIDED]
    return gate_verdict.exit_code(undecided[0], policy) if undecided else 3


def rows(rescue: Rescue) -> list[tuple[str, ...]]:
    """List the run and its trials best first: the rescued one, then the Pareto front, by target score."""
    front = rescue.front

    def key(t: TrialResult) -> tuple[bool, bool, bool, float]:
        score = t.facts.target.unit.sign * t.facts.target.score if t.facts.target else 0.0
        return t.name != rescue.rescued_trial, t.search is None, t.name not in front, -score

    table: list[tuple[str, ...]] = []
    for t in sorted((rescue.original, *rescue.tried), key=key):
        v, skill = t.search.verdict if t.search else None, t.capability_change
        table.append(
            (
                t.name,
                report.target_text(t.facts),
                formatting.points(*skill[:3]) if skill else formatting.UNKNOWN,
                f"{formatting.count(v.lost)}/{formatting.count(v.gained)}" if v else formatting.UNKNOWN,
                "yes" if t.name in front else "",
                _word(t.search) if t.facts.state == "done" else report.verdict_word(t.facts),
                _word(t.confirm),
            )
        )
    return table


def sentences(rescue: Rescue) -> list[str]:
    """List the sentences under the table, the summary last."""
    keep_lines = []
    if trial := next((t for t in rescue.tried if t.name == rescue.rescued_trial), None):
        keep_lines.append("to keep it, add to candidates: in the file (nothing is computed again):")
        new_names = {
            name: re.sub(r"[^A-Za-z0-9_.\-]+", "-", name.partition("+")[0]).strip("-") + "-rescued"
            for name in trial.recipes
        }
        for name, recipe in trial.recipes.items():
            plain = Recipe.model_validate(recipe).model_dump(mode="json", exclude_defaults=True)
            if plain.get("weights_of") in new_names:
                plain["weights_of"] = new_names[plain["weights_of"]]
            keep_lines.append(f"  {new_names[name]}: {json.dumps(plain, ensure_ascii=False)}")
    judged = [(t, half) for t in rescue.tried for half in (t.search, t.confirm) if half]
    search, items = rescue.original.search, formatting.UNKNOWN
    if search:
        items = f"{formatting.count(search.n_items)} of {formatting.count(search.n_all)} items, by cluster"
    return [
        f"forgetting is that of the search half ({items}); the other half is evaluated once",
        *(f"{t.name}: {half.sentence}" for t, half in judged),
        *(f"{t.name} failed: {t.facts.error}" for t in rescue.tried if t.facts.state == "failed"),
        *rescue.notes,
        *(f"not tried: {reason}" for reason in rescue.left_out),
        *keep_lines,
        rescue.sentence,
    ]


def rescue_document(rescue: Rescue) -> report.ResultDocument:
    """Return the document of a rescue: the table, its sentences, and the summary last."""
    *notes, last = sentences(rescue)
    title = f"Rescue of {rescue.candidate} in {rescue.experiment}"
    target = f"target {rescue.metric}"
    columns = ("trial", target, "other skills", "lost/gained", "front", "search half", "other half")
    trials = report.Section("trials", columns=columns, rows=rows(rescue), notes=notes)
    finished_facts = [t.facts for t in (rescue.original, *rescue.tried) if t.facts.state == "done"]
    more = replace(report.targets_section(finished_facts), lead="")
    return report.ResultDocument(title, [trials, *([more] if more.rows else [])], last)


def to_json(rescue: Rescue) -> dict[str, Any]:
    """Convert a rescue to plain types, with the values derived from its fields."""
    plain: dict[str, Any] = report.to_plain(rescue)
    summed = {"rescued": rescue.rescued_trial, "front": list(rescue.front), "sentence": rescue.sentence}
    return {**summed, **plain}


def report_files(folder: Path, experiment: str) -> list[Path]:
    """List the files that hold the last rescue of each run of an experiment as plain types."""
    return sorted(folder.glob(f"{escaped(experiment)}.rescue-*.json"))


def read(path: Path) -> Rescue | None:
    """Read a rescue from its JSON file; None if the file holds none."""
    try:
        rescue: Rescue = report.restore(Rescue, parse_json(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return rescue


def write(rescue: Rescue, folder: Path) -> list[Path]:
    """Write Markdown, JSON and the picture next to the reports; return the files."""
    stem = f"{rescue.experiment}.rescue-{rescue.candidate}" + (f"-s{rescue.seed}" if rescue.seed else "")
    # The picture plots gain against kept capability, with a ring for the rescued trial; else empty.
    picture_report = report.ExperimentReport(
        rescue.experiment,
        rescue.base_model,
        rescue.metric,
        tuple(
            replace(t.facts, verdict=t.search.verdict) for t in (rescue.original, *rescue.tried) if t.search
        ),
        decision=Decision("fine-tune", rescue.rescued_trial, rescue.sentence, (), {}, ()),
        macro_margin=rescue.macro_margin,
    )
    page, picture = report.markdown(rescue_document(rescue)), report.front_file(picture_report)
    plain = json.dumps(to_json(rescue), indent=2, ensure_ascii=False) + "\n"
    forms = {".md": page, ".json": plain, ".front.svg": picture}
    return report.write_forms(folder, stem, forms)


def _word(half: HalfVerdict | None) -> str:
    if half is None:
        return formatting.UNKNOWN
    return report.WORDS[half.verdict.outcome] if half.keeps_gains else "NO GAIN"
