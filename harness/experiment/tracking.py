"""Points along a training: what kept checkpoints score on the target's validation rows, and what they forgot.

Invariant: no test row of the target is read. General items are those of the half that the search of a rescue
sees, so whoever chooses a point by them has not looked at the other half; what is stored is not evaluated
again.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from harness import comparison, gating, store
from harness.errors import Problem
from harness.evaluation.candidate_rows import training_data
from harness.evaluation.candidates import ResolvedCandidate, base_weights, read_weights
from harness.evaluation.costs import Work, times
from harness.evaluation.judging_stage import answer_and_score
from harness.evaluation.row_sets import prompting_step, suite_set, target_sets, work_of
from harness.evaluation.session import MeasuredTask, Session
from harness.experiment.capability_on_validation import capability_change, mean_score
from harness.experiment.training_fit import processes_of
from harness.gating import Measurement, cut_to_half
from harness.gating.halves import cluster_name, split
from harness.models.hub import is_packed, load_tokenizer
from harness.plugins import methods
from harness.records import SampleResult, TrackedPoint, digest
from harness.regularizers import has_hook
from harness.spec import Recipe
from harness.training import TRACKED, SupervisedParams, Weights, map_tracked_folders, tokenize
from harness.training import plan_tracked_steps as plan_supervised


def check_tracking(candidate: ResolvedCandidate) -> Iterator[Problem]:
    """Yield that a method keeps no checkpoints to measure."""
    if candidate.recipe.track and not candidate.method.tracks:
        found = f"track with the method {candidate.recipe.method}, which keeps no weights along its training"
        expected = f"one of the methods {', '.join(methods(tracks=True))}"
        yield Problem(f"candidate {candidate.name}", found, expected, "remove track")


def plan_tracked_steps(session: Session, candidate: ResolvedCandidate) -> list[int]:
    """List the steps whose weights a candidate's training may keep; none where nobody knows them beforehand.

    They are known where rows alone are learnt from, those that fit, with nothing to try and one process.
    """
    source, base = candidate.source, candidate.trained_base
    params = candidate.method.params(**source.params)
    alone = not (source.tried or session.folds or has_hook(source.regularize, "mix") or is_packed(base))
    alone = alone and processes_of(session, source) == 1
    if not (source.track and alone and isinstance(params, SupervisedParams)) or params.packing:
        return []
    rows, tokenizer = training_data(session, source).items.train, load_tokenizer(base)
    found: set[int] = set()
    for seed in candidate.seeds:
        prompts = [*map(prompting_step(session, source, seed), rows)]
        answers = [example.references[:1] for example in prompts]
        made = tokenize(prompts, answers, session.target.task.chat_template, tokenizer, base)
        if n := sum(len(whole) <= params.max_length for _, (whole,) in made):
            found |= {*plan_supervised(params, n, source.track.points)}
    return sorted(found)


def read_tracked_weights(candidate: ResolvedCandidate, weights: Weights) -> dict[int, Weights]:
    """Read the weights that were kept along a candidate's training, by step, as they are served."""
    if not candidate.source.track or not weights.folder:
        return {}
    found = {
        step: read_weights(candidate, folder)
        for step, folder in map_tracked_folders(weights.folder / TRACKED).items()
    }
    return {step: made for step, made in found.items() if made}


def measure_points(
    session: Session, candidate: ResolvedCandidate, weights: Weights, seed: int, base_rows: Mapping[str, str]
) -> tuple[TrackedPoint, ...]:
    """Measure the points along a candidate's training, as far as that is not done yet.

    `base_rows` are the base's row sets of each task of the suites.

    Raises:
        CandidateFailed: weights are damaged, or cannot be opened.
    """
    source, kept = candidate.source, read_tracked_weights(candidate, weights)
    if not source.track or not kept:
        return ()
    sampled = _sample(session, base_rows, source.track.items)
    return tuple(measure_point(session, candidate, step, made, seed, sampled) for step, made in kept.items())


def estimate_tracking(session: Session, source: Recipe) -> Work:
    """Estimate what the points along a training answer: validation rows and sampled general items each."""
    if not source.track:
        return Work()
    base = base_weights(session.source)
    once = work_of(target_sets(session, source, base, 0)[0].job())
    tasks = [m for m in session.suites if m.role == "capability"]
    n_items = sum(m.size("test") for m in tasks)
    suites = sum((work_of(suite_set(session, base, m).job()) for m in tasks), Work())
    share = min(source.track.items, n_items / 2) / n_items if n_items else 0.0
    general = Work(*(round(share * amount) for amount in suites))
    return times(once + general + Work(opened=1), source.track.points)


def _sample(
    session: Session, base_rows: Mapping[str, str], n_items: int
) -> list[tuple[MeasuredTask, list[SampleResult]]]:
    """Sample items of the search half evenly from the tasks that count there; beside them the base's rows."""
    rows = {
        m.task.name: store.read_rows(session.store, base_rows[m.task.name], m.size("test"))
        for m in session.suites
        if m.task.name in base_rows
    }
    seed = session.first_seed
    alike = [
        Measurement(m.task, m.role, m.suite, m.metrics, rows[m.task.name], rows[m.task.name])
        for m in session.suites
        if m.task.name in rows
    ]
    part = cut_to_half(alike, split(rows, seed), "search")
    counting = gating.name_admitted_tasks(part)
    there = {m.task.name: m.base for m in part if m.task.name in counting}
    each = -(-n_items // max(1, len(there)))
    sampled = []
    for m in (m for m in session.suites if m.task.name in there):
        ordered = sorted(
            there[m.task.name], key=lambda row: (digest([seed, cluster_name(row)]), row.example_id)
        )
        base = ordered[:each]
        ids = sorted(row.example_id for row in base)
        items = replace(m.items, test=tuple(e for e in m.items.test if e.id in set(ids)))
        versions = {**m.versions, "test": digest([m.versions["test"], ids])}  # which names the items
        sampled.append((m._replace(items=items, versions=versions, weights=None), base))
    return sampled


def measure_point(
    session: Session,
    candidate: ResolvedCandidate,
    step: int,
    made: Weights,
    seed: int,
    sampled: Sequence[tuple[MeasuredTask, list[SampleResult]]] = (),
) -> TrackedPoint:
    """Measure the weights at a step on the target's validation rows, and on sampled general items.

    Raises:
        CandidateFailed: weights are damaged, or cannot be opened.
    """
    validation = target_sets(session, candidate.source, made, seed)[0]
    general = [suite_set(session, made, measured) for measured, _ in sampled]
    name = f"{candidate.source_name} at step {step}"
    answer_and_score(session, made, [validation, *general], name, candidate.base)
    target = mean_score(session.target.primary, validation.read(session.store))
    if not sampled:
        return TrackedPoint(step=step, target=target)
    changes = [
        capability_change(measured.primary, base, rows.read(session.store))
        for (measured, base), rows in zip(sampled, general, strict=True)
    ]
    mean = comparison.mean_change(changes)
    return TrackedPoint(
        step=step, target=target, capability=mean.score, low=mean.low, high=mean.high, n_general=mean.n
    )
