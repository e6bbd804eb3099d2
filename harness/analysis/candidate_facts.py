"""Candidates' results, and the choices among them on validation.

Invariant: the best untrained candidate and the best fine-tune are chosen by their validation scores alone; a
tie goes to the one that computes fewer tokens.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from statistics import fmean
from typing import Any, Literal, NamedTuple

from harness import formatting, plugins, stats
from harness.analysis.answers import RetrievalUse, SeveralAnswers
from harness.analysis.estimators import Comparison, Estimate, is_judge, orient
from harness.analysis.human_preferences import PREFERENCE, UNCHECKED_PREFERENCE, Wins
from harness.analysis.significance import SpareItems
from harness.analysis.target_scores import LearningCurve, TargetScore, TrivialBaseline
from harness.analysis.verdict import Verdict
from harness.formatting import RATE, Unit
from harness.records import SERVING, Run, TokenCounts, TrainingRecord
from harness.spec import DecidePolicy

Action = Literal[
    "prompt", "few-shot", "rank", "classifier", "rag", "fine-tune", "hybrid", "collect more data", "undecided"
]
_ALTERNATIVES = {  # with the recipe keys for it
    "prompt": "prompt only (prompting: zero_shot)",
    "instruction": "a prompt that says what to do (system: TEXT), without which a gain is not evidence for a"
    " fine-tune",
    "knn": "few-shot with nearest-neighbour shots (prompting: {few_shot: {select: knn}})",
    "rank": "the labels ranked by log-likelihood (answer: rank)",
    "classifier": "a plain text classifier (method: classifier)",
    "rag": "retrieval (prompting: rag)",
}
FEW = 100  # training examples: with fewer, one seed of a fine-tune cannot be trusted
UNCHECKED = "by a judge that too few labels of people check yet"


class FamilyRank(NamedTuple):
    """Place of a fine-tune in the family of `n` members that were judged on the same items.

    `p` is that of its rules alone, None if one is not shown; `level` is Holm's level within `alpha`. `chosen`
    names the recipe that validation chose from its grid.
    """

    n: int
    alpha: float
    p: float | None
    p_adjusted: float
    level: float
    chosen: str


class ItemVariances(NamedTuple):
    """Variances over the items of the mean over a recipe's seeds: of their score, and of their gains."""

    score: stats.Variance
    vs_untrained: stats.Variance | None
    vs_prompt: stats.Variance | None


class BaseSize(NamedTuple):
    """Size of the model that a candidate answers with: parameters, and their GB as served."""

    name: str
    n_parameters: int
    weights_gb: float | None


class UnderLoad(NamedTuple):
    """Concurrent requests: how many, how many a second, times to the first token; None if not timed."""

    n: int
    requests_per_s: float
    first_token_p50_s: float | None = None
    first_token_p95_s: float | None = None
    first_token_alone_s: float | None = None


class UnreadAnswers(NamedTuple):
    """Shares of the answers on test that were cut at `limit` tokens, not parsed, or given no score."""

    cut: float
    unparsable: float
    limit: int
    unscored: float = 0.0


class Speed(NamedTuple):
    """Latency and throughput of a run on the device `measured_on`.

    Figures in `disturbed`, which may include the cost of 1,000 requests, were measured while other work ran;
    their fields are None.
    """

    latency_p50_s: float | None = None
    latency_p95_s: float | None = None
    requests_per_s: float | None = None
    under_load: UnderLoad | None = None
    disturbed: Mapping[str, float] = {}
    measured_on: str = ""


class AnswerFacts(NamedTuple):
    """Properties of the answers on test: use of retrieved documents, draws, truncation.

    `recall` is the share of needed documents that retrieval found.
    """

    recall: float | None = None
    retrieval: RetrievalUse | None = None
    citations: Mapping[str, Estimate] = {}
    several: SeveralAnswers | None = None
    unread: UnreadAnswers | None = None


@dataclass(frozen=True, slots=True)
class CandidateFacts:
    """Measurements of one run of a candidate: everything that a decision and a report need.

    They are filled in stages: the run alone (`facts_of_runs`), compared with other runs
    (`add_comparisons`), judged (`run_verdicts.judge_runs`), and corrected for how many were judged (`seeds`).
    `trained` says that the weights differ from the base's own. `prompting` spells out the parameters.
    `target` is the primary metric's estimate on test, `validation` its value there. The comparisons are
    paired on test: `new` is this run, `base` the best untrained candidate or the prompt. `index_per_1k_usd`
    is not included in the other costs. `over_budget` says which budget or need is broken, `leaves_machine`
    that requests go to an external server. `n_train` counts the training examples of its recipe, which only a
    fine-tune or a classifier uses, 0 if unknown; a teacher was paid `rows_cost_usd`, labelling `n_taught` of
    them. `verdict` is the gate's on this run alone; `standing` is its place among many candidates, and
    `corrected` the verdict at that level. `labels_missing` counts labels needed before a judge's metric may
    decide. `settings` holds the digests of the settings that validation chose from.
    """

    name: str
    run_id: str
    method: str
    prompting: str
    answer: str
    seed: int
    trained: bool
    state: Literal["done", "failed"]
    error: str = ""
    target: Estimate | None = None
    validation: float | None = None
    vs_untrained: Comparison | None = None
    vs_prompt: Comparison | None = None
    slices: dict[str, Estimate] = field(default_factory=dict)
    verdict: Verdict | None = None
    cost_per_1k_usd: float | None = None
    index_per_1k_usd: float = 0.0
    tokens: TokenCounts | None = None
    speed: Speed = field(default_factory=Speed)
    over_budget: str = ""
    baseline: bool = False
    leaves_machine: bool = False
    training_cost_usd: float = 0.0
    rows_cost_usd: float = 0.0
    n_taught: int = 0
    n_train: int = 0
    answers: AnswerFacts = field(default_factory=AnswerFacts)
    over_items: ItemVariances | None = None
    training: TrainingRecord = field(default_factory=TrainingRecord)
    parity: Mapping[str, Any] = field(default_factory=dict)
    standing: FamilyRank | None = None
    corrected: Verdict | None = None
    labels_missing: int = 0
    wins: Wins | None = None
    base: BaseSize | None = None
    more_targets: tuple[TargetScore, ...] = ()
    settings: tuple[str, ...] = ()
    is_instructed: bool = True

    @property
    def label(self) -> str:
        """The name, followed by the seed if it is not 0: `lora (seed 1)`."""
        return f"{self.name} (seed {self.seed})" if self.seed else self.name

    @property
    def is_remote(self) -> bool:
        """Whether it answers at an endpoint, whose model and size are unknown."""
        return plugins.find_method(self.method).is_remote


def facts_without_rows(run: Run) -> CandidateFacts:
    """Return a run's facts without reading its rows; `latency_NAME` of `SERVING` is its latency `NAME`."""
    prefix = "latency_"
    keys = ((f.name, f.name.removeprefix(prefix)) for f in SERVING if f.name.startswith(prefix))
    timed: dict[str, Any] = {name: run.latency[key] for name, key in keys if key in run.latency}
    if run.latency.get("contended"):  # measured while other work took the processors
        timed = {"disturbed": timed}
    return CandidateFacts(
        name=run.candidate,
        run_id=run.run_id,
        method=run.method,
        prompting=run.prompting,
        answer=run.answer,
        seed=run.seed,
        trained=run.weights_digest != run.base_digest,
        state=run.state,
        error=run.error,
        baseline=run.recipe.get("role") == "baseline",
        speed=Speed(**timed) if run.state == "done" else Speed(),
    )


def target_unit(facts: Iterable[CandidateFacts]) -> Unit:
    """Return the unit and direction of the target's metric, taken from the scores."""
    return next((f.target.unit for f in facts if f.target is not None), RATE)


def gain(comparison: Comparison | None) -> Comparison | None:
    """Orient a comparison so that positive is better, whatever the metric's direction."""
    return orient(comparison) if comparison else None


def is_gain_shown(run: CandidateFacts) -> bool:
    """Tell whether the interval of the gain over the best untrained candidate is above 0."""
    g = gain(run.vs_untrained)
    return g is not None and g.low > 0


def is_fine_tuned(run: CandidateFacts) -> bool:
    """Tell whether a run is a language model with other weights than the base's, as an endpoint's are."""
    return run.trained and not run.baseline and not _is_classifier(run)


def _is_classifier(run: CandidateFacts) -> bool:
    return not plugins.find_method(run.method).makes_language_model


def best(runs: Iterable[CandidateFacts]) -> CandidateFacts | None:
    """Return the best run on validation of the recipe with the best mean there; ties go to the cheapest."""
    runs = list(runs)
    sign = target_unit(runs).sign
    scores: dict[str, list[tuple[float, CandidateFacts]]] = {}
    for run in runs:
        if run.state == "done" and run.validation is not None:
            scores.setdefault(run.name, []).append((sign * run.validation, run))
    if not scores:
        return None

    def rank(scored: Sequence[tuple[float, CandidateFacts]]) -> tuple[float, float]:
        run = scored[0][1]
        tokens = inf if run.tokens is None else run.tokens.prompt - run.tokens.cached + run.tokens.output
        return fmean(s for s, _ in scored), -(0.0 if _is_classifier(run) else tokens)

    chosen = max(scores.values(), key=rank)
    return max(chosen, key=lambda scored: scored[0])[1]


def n_settings(facts: Iterable[CandidateFacts]) -> int:
    """Count the distinct settings that validation chose from: recipes, or the trials of a sweep or search."""
    first_runs: dict[str, CandidateFacts] = {}
    for f in facts:
        if f.state == "done":
            first_runs.setdefault(f.name, f)
    settings: set[str] = set()
    for f in first_runs.values():
        # Without digests the settings are named by their positions, as if all differed.
        settings.update(f.settings or (f"{f.name} {i}" for i in range(max(1, len(f.training.sweep)))))
    return len(settings)


def best_untrained_facts(facts: Iterable[CandidateFacts]) -> CandidateFacts | None:
    """Return the best untrained candidate within the budgets; if there is none, the best of all."""
    runs = [f for f in facts if not is_fine_tuned(f)]
    return best(f for f in runs if not f.over_budget) or best(runs)


def strongest_run(facts: Iterable[CandidateFacts]) -> CandidateFacts | None:
    """Return the best fine-tune within the budgets, whatever its gate says."""
    return best(f for f in facts if is_fine_tuned(f) and not f.over_budget)


def list_passing_runs(facts: Iterable[CandidateFacts]) -> list[CandidateFacts]:
    """List the fine-tunes within the budgets that pass the gate with every seed after correction."""
    facts = list(facts)
    tuned = [f for f in facts if is_fine_tuned(f) and f.state == "done" and not f.over_budget]
    stopped = {f.name for f in tuned if not passes(f) or list_failed_seeds(facts, f)}
    return [f for f in tuned if f.name not in stopped]


def judged_run(facts: Iterable[CandidateFacts]) -> CandidateFacts | None:
    """Return the fine-tune that a decision is about: the best that passes the gate, else the strongest."""
    facts = list(facts)
    return best(list_passing_runs(facts)) or strongest_run(facts)


def is_cross_validated(run: CandidateFacts) -> bool:
    """Tell whether a run's gain comes from one model per fold, each tested on items it did not see."""
    return run.vs_untrained is not None and run.vs_untrained.estimator == "folds"


def seeds_of(facts: Iterable[CandidateFacts], run: CandidateFacts) -> list[CandidateFacts]:
    """List the finished seeds of a run's recipe, itself included."""
    return [f for f in facts if f.name == run.name and f.state == "done"]


def find_stopping_seed(facts: Iterable[CandidateFacts], run: CandidateFacts) -> CandidateFacts:
    """Return the seed that keeps a run's recipe from passing: a failing, else an open one, else the run."""
    ranks = {"harness-drift": 0, "fail": 1, "inconclusive": 2, "pass": 3}
    return min([run, *seeds_of(facts, run)], key=lambda f: ranks[f.verdict.outcome] if f.verdict else 2)


def list_failed_seeds(facts: Iterable[CandidateFacts], run: CandidateFacts) -> list[int]:
    """List the seeds of a run's recipe that failed to run: a recipe passes only with all of its seeds."""
    return [f.seed for f in facts if f.name == run.name and f.state == "failed"]


def passes(f: CandidateFacts) -> bool:
    """Tell whether a run passes its gate, corrected for the candidates judged together with it."""
    is_shown = f.standing is None or f.standing.p_adjusted < f.standing.alpha
    return f.verdict is not None and f.verdict.outcome == "pass" and is_shown


def passes_alone(f: CandidateFacts) -> bool:
    """Tell whether a run passes its gate, but not after correction for the other candidates."""
    return f.verdict is not None and f.verdict.outcome == "pass" and not passes(f)


def best_untrained(facts: Iterable[CandidateFacts]) -> str | None:
    """Name the candidate without fine-tuning that is best on validation, within the budgets if any is."""
    run = best_untrained_facts(facts)
    return run.name if run else None


def action_of(run: CandidateFacts) -> Action:
    """Return the action that shipping this candidate means."""
    if is_fine_tuned(run):
        return "hybrid" if "rag" in run.prompting else "fine-tune"
    if _is_classifier(run):
        return "classifier"
    if "rag" in run.prompting:
        return "rag"
    if run.answer == "rank":
        return "rank"
    return "few-shot" if "few_shot" in run.prompting else "prompt"


def list_missing_alternatives(
    facts: Iterable[CandidateFacts], closed_labels: bool, has_documents: bool
) -> dict[str, list[str]]:
    """Map each fair alternative that was not measured on the base to its failed candidates."""
    needed = ["prompt", "knn"]  # nearest shots did better than fixed ones wherever both were measured
    needed += ["rank", "classifier"] if closed_labels else []
    needed += ["rag"] if has_documents else []
    measured, failed = set[str](), dict[str, list[str]]()
    for run in facts:
        if run.baseline or is_fine_tuned(run):
            continue
        for kind in _kinds(run):
            if run.state == "done":
                measured.add(kind)
            elif run.name not in failed.setdefault(kind, []):
                failed[kind].append(run.name)
    if "bare prompt" in measured:
        needed = ["instruction" if kind == "prompt" else kind for kind in needed if kind not in measured]
    return {_ALTERNATIVES[kind]: failed.get(kind, []) for kind in needed if kind not in measured}


def missing_texts(missing: Mapping[str, Sequence[str]]) -> list[str]:
    """Name the alternatives that were not measured, with the failed candidates."""
    return [f"{name}: {', '.join(failed)} failed" if failed else name for name, failed in missing.items()]


def advise_on_missing(missing: Mapping[str, Sequence[str]], failed: Iterable[str] = ()) -> str:
    """Say what to do about alternatives that were not measured: fix those that `failed`, add the others."""
    failed = list(dict.fromkeys([*failed, *(name for names in missing.values() for name in names)]))
    absent = [name for name, names in missing.items() if not names]
    steps = [f"fix {', '.join(failed)} and compare again"] if failed else []
    steps += [f"add {', '.join(absent)}"] if absent else []
    return ", and ".join(steps)


def _kinds(run: CandidateFacts) -> set[str]:
    """Return which fair alternatives a candidate is; knn shots with ranked labels are two."""
    if _is_classifier(run):
        return {"classifier"}
    kinds = {"rank"} if run.answer == "rank" else set()
    if "rag" in run.prompting:
        return kinds | {"rag"}
    if "few_shot" in run.prompting:
        return kinds | {"knn" if "knn" in run.prompting else "fixed"}
    return kinds or ({"prompt"} if run.is_instructed else {"bare prompt"})


class Case(NamedTuple):
    """The facts of one decision, with the choices made on validation.

    `winner` is the best fine-tune that passes its gate, `strongest` the best of all fine-tunes, and
    `alternative` the best untrained candidate; all are within the budgets, but `alternative` only if an
    untrained candidate is. `by_metric` holds the gains by the target's
    metric, by run, if the declared `win_rate` decides. `unchecked` says that the metric is a judge's, not
    corrected by labels. `can_fold` says that the target could be tested in folds, but is not. `spare` are the
    suites' unused items; `relative` says that the macro's margin is a share of the base's skill. `base` is
    the experiment's base, as `BaseSize` names it; empty if unknown.
    """

    facts: Sequence[CandidateFacts]
    policy: DecidePolicy
    metric: str
    alternative: CandidateFacts | None = None
    winner: CandidateFacts | None = None
    strongest: CandidateFacts | None = None
    missing: Mapping[str, Sequence[str]] = {}
    curve: LearningCurve | None = None
    win_rate: float | None = None
    by_metric: Mapping[str, Comparison | None] | None = None
    unchecked: bool = False
    trivial: TrivialBaseline | None = None
    can_fold: bool = False
    spare: Sequence[SpareItems] = ()
    relative: bool = False
    base: str = ""

    @property
    def unit(self) -> Unit:
        """The unit and direction of gains: those of the target's metric, or a win rate's."""
        win_gain = self.judged.vs_untrained if self.by_wins and self.judged else None
        return win_gain.unit if win_gain else target_unit(self.facts)

    @property
    def by_wins(self) -> bool:
        """Whether the gain of the judged fine-tune is its win rate."""
        run = self.judged
        run_gain = run.vs_untrained if run else None
        return run_gain is not None and run_gain.unit in (PREFERENCE, UNCHECKED_PREFERENCE)

    @property
    def n_labels_missing(self) -> int:
        """Number of labels of people that a decision by the target's metric still needs; 0 if wins decide."""
        runs = () if self.by_wins else (self.judged, self.alternative)
        return max((run.labels_missing for run in runs if run), default=0)

    @property
    def judged(self) -> CandidateFacts | None:
        """The fine-tune that the arithmetic is about."""
        return self.winner or self.strongest


def score_text(case: Case, run: CandidateFacts) -> str:
    """Format a candidate's test score: `81.0 [75, 86] exact_match`."""
    if run.target is None:
        return f"unknown {case.metric} on test"
    failed = formatting.errors(run.target.n_errors)
    by = f" ({UNCHECKED})" if is_unchecked(case, run) else ""
    return f"{formatting.score(run.target.unit, *run.target[:3])} {case.metric}{failed}{by}"


def is_unchecked(case: Case, run: CandidateFacts) -> bool:
    """Tell whether a run's score on the target's metric rests on a judge that no labels correct."""
    return is_judge(case.metric) and (case.unchecked or run.labels_missing > 0)


def gain_text(g: Comparison | None) -> str:
    """Format a gain with its unit: `+7.0 [+2, +12] points`."""
    if g is None:
        return "an unknown amount"
    return f"{formatting.change(g.unit, g.delta, g.low, g.high)} {g.unit.name}"
