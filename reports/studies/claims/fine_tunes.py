"""Claims about fine-tunes: pairs of recipes, trained and judged by the harness on the quickstart's target.

Invariant: both recipes of a claim are trained with the same seeds and answer the same items; a difference is
the mean over the seeds, with an interval for recipes and not for a single checkpoint. Trainings and answers
are stored in the study's folder, so an interrupted claim is resumed.
"""

import json
import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NamedTuple

import harness
from harness import config, formatting, stats, store
from harness.analysis.comparison import compare_recipes, compare_rows, estimate
from harness.analysis.estimators import Comparison, Estimate, orient, rescale
from harness.analysis.seeds import mean_interval
from harness.cli.progress_bar import TerminalProgress
from harness.evaluation.session import MeasuredTask as Task
from harness.evaluation.session import Session
from harness.experiment import Scope, prepare_session
from harness.metrics import Metric
from harness.progress import SilentProgress
from harness.records import Run, SampleResult
from reports.studies.claims.claim import ClaimResult, Verdict, judge, judge_all
from reports.studies.recipe_search import ROOT, dump, read_suite

FOLDER = ROOT / "runs" / "studies" / "claims"
_PARAMS = {"num_train_epochs": 1, "per_device_train_batch_size": 4, "learning_rate": 1e-3}
SEEDS = (0, 1, 2)
N_GOOD = 100  # rows without noise
_LIMIT = 40  # items of each general task
MARGIN = 0.05  # of the target: a smaller loss is an equal gain
Outcome = Literal["target", "capability"]


Recipe = dict[str, Any]


def lora(r: int = 16, *, epochs: int = 1, **recipe: Any) -> Recipe:
    """Return a LoRA's recipe, with further keys."""
    return {"method": "lora", "params": {**_PARAMS, "num_train_epochs": epochs, "r": r}, **recipe}


def full(rate: float, **recipe: Any) -> Recipe:
    """Return the recipe that trains all parameters at a learning rate, with further keys."""
    return {"method": "full", "params": {**_PARAMS, "learning_rate": rate}, **recipe}


RECIPES = {
    "rank-8": lora(8),
    "rank-64": lora(64),
    "plain": lora(),
    "neftune": lora(regularize={"neftune": {"noise_alpha": 5}}),
    "replay": lora(regularize={"replay": {"share": 0.1}}),
    "kl": lora(regularize={"kl": {"strength": 1.0}}),
    "ewc": lora(regularize={"ewc": {"strength": 10.0}}),
    "sam": lora(regularize={"sam": {"rho": 0.05}}),
    "all": full(1e-4),
    "half": full(1e-4, regularize={"half": {"rounds": 4}}),
    "all-1e-5": full(1e-5),
    "all-2e-5": full(2e-5),
    "all-5e-5": full(5e-5),
    "good": lora(train="good.jsonl", epochs=3),
    "noisy": lora(train="noisy.jsonl"),
    "qlora": {"method": "qlora", "params": {**_PARAMS, "r": 16}},
    "spectrum": {"method": "spectrum", "params": {**_PARAMS, "learning_rate": 1e-4, "share": 0.25}},
    "dpo": {"method": "dpo", "init_from": "plain", "params": {"learning_rate": 3e-5, "beta": 0.1}},
    "reward": {"method": "reward"},
    "rloo": {
        "method": "rloo",
        "init_from": "plain",
        "reward": "reward",
        "params": {"learning_rate": 3e-5, "max_completion_length": 24},
    },
}


class Pair(NamedTuple):
    """Two recipes, the compared outcome, and the least difference of the first; below 0 it may be worse.

    `trained` describes the training data and settings if they are unusual.
    """

    new: str
    base: str
    outcome: Outcome
    least: float
    trained: str = f"320 rows, rate {_PARAMS['learning_rate']:g}"


def claim_of(pair: Pair) -> Callable[[], ClaimResult]:
    """Return a function that measures a claim about two recipes."""
    return partial(_measure, pair)


def curve_of(*names: str) -> Callable[[], ClaimResult]:
    """Return a function that measures the claim that all recipes but the first equal the last.

    The first is a learning rate outside the range that the claim names.
    """
    return partial(_measure_curve, names)


def _measure_curve(names: Sequence[str]) -> ClaimResult:
    session, runs = run_recipes(prepare(FOLDER, suites=False), names)
    changes = [change_over_seeds(session, [session.target], runs[name], runs[names[-1]]) for name in names[:-1]]
    scores = {name: fmean(_read_score(session, run) for run in runs[name]) for name in names}
    verdicts = [judge(change.low, change.high, least=-MARGIN) for change in changes[1:]]
    worst = min(changes[1:], key=lambda change: change.score)
    curve = ", ".join(f"{formatting.percent(score)} % of {name}" for name, score in scores.items())
    return ClaimResult(
        f"target {curve}; the least in the range against the highest rate "
        f"{formatting.points(worst.score, worst.low, worst.high)} points",
        judge_all(*verdicts),
        scores,
        f"{', '.join(names)}, {len(SEEDS)} seeds, 320 rows, one epoch, {worst.n} items of the target, trainings of "
        f"{', '.join(f'{mean_training_s(runs[name]):.0f}' for name in names)} s",
    )


def run_recipes(path: Path, names: Sequence[str]) -> tuple[Session, dict[str, list[Run]]]:
    """Train and evaluate recipes of an experiment; return its session, and each recipe's runs by seed."""
    settings = [f"seeds={list(SEEDS)}"]
    harness.compare(path, settings, candidates=list(names), progress=TerminalProgress())
    session = prepare_session(config.load(path, settings, list(names)), Scope(), SilentProgress())
    newest = {(run.candidate, run.seed): run for run in store.list_runs(session.store, session.experiment.name)}
    return session, {name: [newest[name, seed] for seed in SEEDS] for name in names}


def _measure(pair: Pair) -> ClaimResult:
    path = prepare(FOLDER, suites=pair.outcome == "capability")
    session, runs = run_recipes(path, (pair.base, pair.new))
    new, base = runs[pair.new], runs[pair.base]
    target = change_over_seeds(session, [session.target], new, base)
    text = f"target {formatting.points(target.score, target.low, target.high)} points"
    figures = list_target_figures(target)
    change = target
    if pair.outcome == "capability":
        tasks = [task for task in session.suites if task.role == "capability"]
        change = change_over_seeds(session, tasks, new, base)
        text = f"capability {formatting.points(change.score, change.low, change.high)} points, {text}"
        figures |= {"capability": change.score, "capability_low": change.low, "capability_high": change.high}
    each = [change_over_seeds(session, [session.target], [n], [b]).score for n, b in zip(new, base, strict=True)]
    return ClaimResult(
        text,
        judge_pair(pair, change, target),
        figures | {f"target_seed_{run.seed}": score for run, score in zip(new, each, strict=True)},
        f"{pair.new} against {pair.base}, {len(new)} seeds (target {', '.join(formatting.points(x) for x in each)}), "
        f"{pair.trained}, {target.n} items of the target"
        + (f", {change.n} general ones" if change is not target else "")
        + f", trainings of {mean_training_s(new):.0f} and {mean_training_s(base):.0f} s",
    )


def judge_pair(pair: Pair, change: Estimate, target: Estimate) -> Verdict:
    """Judge the compared outcome; kept capability counts only with an equal gain on the target."""
    compared = judge(change.low, change.high, least=pair.least)
    gain = judge(target.low, target.high, least=-MARGIN)
    return compared if pair.outcome == "target" else judge_all(compared, gain)


def mean_training_s(runs: Sequence[Run]) -> float:
    """Return the mean seconds of the runs' trainings, made by any call."""
    return fmean((run.training and run.training.wall_s) or 0.0 for run in runs)


def prepare(folder: Path, *, suites: bool) -> Path:
    """Write the experiment of all recipes, with or without a part of the general suite; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    target = read_suite("support")
    (task,) = target["tasks"]
    dump(folder / "support.yaml", target)
    _write_training_sets(folder, Path(task["data"]["train"]))
    general = read_suite("general")
    general["tasks"] = [t for t in general["tasks"] if t["kind"] != "bits_per_byte"]
    for general_task in general["tasks"]:
        general_task["limit"] = _LIMIT
    dump(folder / "general.yaml", general)
    name = "claims" if suites else "claims-target"
    keys = {
        "name": name,
        "base_model": "smollm2-135m",
        "target": "support.yaml",
        "suites": ["general.yaml"] if suites else [],
        "candidates": RECIPES,
    }
    dump(folder / f"{name}.yaml", keys)
    return folder / f"{name}.yaml"


def _write_training_sets(folder: Path, train: Path) -> None:
    """Write the first hundred rows, and all rows with every other answer from another row of its kind."""
    rows = [json.loads(line) for line in train.read_text("utf-8").splitlines()]
    noisy = {}
    for ranked in (True, False):
        mixed = [row for row in rows[::2] if ("choices" in row) is ranked]
        answers = [row["reference"] for row in mixed]
        random.Random(0).shuffle(answers)
        noisy |= {row["id"]: {**row, "reference": answer} for row, answer in zip(mixed, answers, strict=True)}
    sets = {"good": rows[:N_GOOD], "noisy": [noisy.get(row["id"], row) for row in rows]}
    for name, set_rows in sets.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in set_rows), "utf-8")


def list_target_figures(target: Estimate) -> dict[str, float]:
    """Return a change of the target and its interval as stored figures."""
    return {"target": target.score, "target_low": target.low, "target_high": target.high}


def change_over_seeds(
    session: Session, tasks: Sequence[Task], new: Sequence[Run], base: Sequence[Run]
) -> Estimate:
    """Return the difference of two recipes, as a share of the range and the mean over tasks.

    The variances over items and between the seeds of each recipe are added.
    """
    rows = [(task.primary, _read_rows(session, task, base), _read_rows(session, task, new)) for task in tasks]
    changes = [[_compare(metric, b[i], n[i]) for metric, b, n in rows] for i in range(len(new))]
    differences = [compare_recipes(metric, b, n) for metric, b, n in rows]
    items = [
        stats.Variance(d.change.variance / (task.primary.range.span * len(tasks)) ** 2, d.change.df)
        for d, task in zip(differences, tasks, strict=True)
    ]
    arms = [[fmean(getattr(c, arm) for c in of_seed) for of_seed in changes] for arm in ("new", "base")]
    between = [stats.seed_variance([scores]) for scores in arms]
    seeds = [stats.Variance(v.variance / len(new), v.df) for v in between if v]
    mean = fmean(c.delta for of_seed in changes for c in of_seed)
    low, high = mean_interval(mean, stats.satterthwaite([*items, *seeds]))
    return Estimate(mean, low, high, sum(d.n for d in differences))


def _compare(metric: Metric, base: Sequence[SampleResult], new: Sequence[SampleResult]) -> Comparison:
    """Compare two runs' rows of a task, as a share of the metric's range; more is better."""
    return orient(rescale(compare_rows(metric, base, new), metric.range.span))


def _read_rows(session: Session, task: Task, runs: Sequence[Run]) -> list[tuple[SampleResult, ...]]:
    digests = [run.rows[f"{task.task.name}/test"] for run in runs]
    return [tuple(store.read_rows(session.store, digest, task.size("test"))) for digest in digests]


def _read_score(session: Session, run: Run) -> float:
    """Return a run's score on the target."""
    (rows,) = _read_rows(session, session.target, [run])
    return estimate(session.target.primary, rows).score
