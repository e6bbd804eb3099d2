"""Analysis of finished runs into a report: estimates, paired comparisons, verdicts, the decision, and notes.

Invariant: reads rows from the store and computes nothing that needs a model.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import NamedTuple

from harness import comparison, gating, plugins, store
from harness import decision as decide
from harness.comparison import AnswerDiversity, Comparison
from harness.decision import CandidateFacts, LearningCurve
from harness.errors import IncompatibleRuns
from harness.evaluation.costs.timing import timing_notes
from harness.evaluation.session import Measured, Session
from harness.experiment.analysis import target_comparisons as against
from harness.experiment.analysis.human_labels import calibrations, correct_facts
from harness.experiment.preparation import measured_bases
from harness.experiment.preparation.base_fit import base_remarks
from harness.experiment.runs.candidate_result import facts_of
from harness.experiment.runs.run_candidate import measured_arm
from harness.experiment.runs.stored_rows import Reader, Rows, controls_of, documents_of
from harness.gating import GateResult, Measurement, TargetFacts, TaskComparison, Verdict
from harness.models.openai_api import Settings
from harness.records import Run, SampleResult
from harness.report import ExperimentReport, Flip, Step, flips_of, origin
from harness.spec import GatePolicy, Recipe


def report_of(
    session: Session,
    reader: Reader,
    runs: Sequence[Run],
    *,
    smoke: bool,
    header: dict[str, object],
    notes: Sequence[str],
    curve_of: Callable[[Sequence[CandidateFacts]], LearningCurve | None] = lambda facts: None,
) -> ExperimentReport:
    """Compare, judge and decide over the runs of one experiment; `curve_of` finds its learning curve."""
    judged, results, base = judge_runs(session, reader, runs)
    tasks = {run_id: result.tasks for run_id, result in results.items()}
    steps = _steps(session, reader, runs, base, tasks)
    family = decide.family_of(session.experiment)
    primary, policy = session.target.primary, session.experiment.gate
    curve = curve_of(judged)
    closed_labels = any(e.choices for e in session.target.items.test)
    has_documents = bool(session.target.items.documents)
    decision = decide.decide(
        judged,
        session.experiment.decide,
        closed_labels=closed_labels,
        has_documents=has_documents,
        metric_name=primary.name,
        curve=curve,
        family=family,
    )
    return ExperimentReport(
        experiment=session.experiment.name,
        base_model=session.experiment.base_model,
        metric=primary.name,
        facts=judged,
        comparisons={
            f.label: _comparisons(tasks[f.run_id]) for f in judged if f.run_id in tasks and f.trained
        },
        decision=decision,
        header=header,
        smoke=smoke,
        notes=(*notes, *_unanswered(session, reader, runs), *_noteworthy(session, reader, runs)),
        not_admitted=_not_admitted(tasks.values(), policy),
        one_half={t.task.name: t.half.why for run in tasks.values() for t in run if t.half},
        steps={f.label: steps[f.run_id] for f in judged if steps.get(f.run_id)},
        seeds=decide.summarize_seeds(judged),
        ablations=against.compare_grids(session, reader, runs, judged),
        training_sets=against.compare_training_sets(session, reader, runs, judged),
        curve=curve,
        task=session.target.task.name,
        macro_margin=policy.macro if isinstance(policy.macro, float) else None,
        undecided_fails=policy.on_inconclusive == "fail",
        margins=_margins(tasks.values(), policy),
        flips=_flips(session, reader, runs, judged, tasks, base),
        origins={f.label: origin(run) for f, run in zip(judged, runs, strict=True)},
        policy=session.experiment.decide,
        closed_labels=closed_labels,
        has_documents=has_documents,
        diversity=_diversity(session, reader, runs, judged, base),
        family=family,
        spans={t.task.name: t.span for run in tasks.values() for t in run if gating.is_in_macro(t)},
        labels=calibrations(session, reader, runs, judged),
        sampled=any(m.weights is not None for m in session.suites),
    )


class Settled(NamedTuple):
    """Verdict on a run at the interim analysis that settled it; `corrected` is that among all fine-tunes.

    `alpha` is the one-sided level of that analysis, `n` the items of the suites that it asked.
    """

    result: GateResult
    corrected: Verdict | None
    alpha: float
    n: int


class Judged(NamedTuple):
    """Facts of runs with their verdicts, the results behind these by run, and the bases' rows."""

    facts: tuple[CandidateFacts, ...]
    results: dict[str, GateResult]
    base: dict[str, dict[str, Rows]]


def judge_runs(session: Session, reader: Reader, runs: Sequence[Run]) -> Judged:
    """Judge the finished runs of an experiment, alone and among all its fine-tunes.

    A run whose verdict an earlier interim analysis settled keeps that.
    """
    reader.prepare(digest for run in runs for digest in run.rows.values())
    base = bases_of(session, reader, runs)
    measured = decide.apply_budgets(
        (facts_of(session, reader, run) for run in runs), session.experiment.decide
    )
    corrected = correct_facts(session, reader, runs, measured)
    facts = against.add_comparisons(session, reader, runs, corrected)
    results = _gate_results(session, reader, runs, facts, base)
    # What answers no capability suite (a classifier) has no verdict.
    judged = tuple(
        replace(f, verdict=results[f.run_id].verdict)
        if f.target and f.run_id in results and results[f.run_id].tasks
        else f
        for f in facts
    )
    placed = decide.place_in_family(judged, decide.family_of(session.experiment))
    return Judged(_corrected(session, reader, runs, placed, base, results), results, base)


def bases_of(session: Session, reader: Reader, runs: Iterable[Run]) -> dict[str, dict[str, Rows]]:
    """Map digests of the bases that runs are measured against to their rows of each suite's task.

    Raises:
        IncompatibleRuns: the capability suite of a base was not measured as it is written now.
    """
    gated = {name for name, candidate in session.candidates.items() if not candidate.is_target_only}
    done = [run for run in runs if run.state == "done" and run.candidate in gated]
    out: dict[str, dict[str, Rows]] = {}
    for source in measured_bases([session.candidates[run.candidate] for run in done]):
        rows = measured_arm(session, source)
        if rows is not None:
            reader.prepare(rows.values())
            sizes = {m.task.name: m.size("test") for m in session.suites}
            out[source.weights_digest] = {name: reader.rows(rows[name], n) for name, n in sizes.items()}
    if any(run.base_digest not in out for run in done):
        raise IncompatibleRuns(
            f"{session.store.folder}: found no rows of the base on the capability suite as written now; "
            "expected them beside the runs; next: harness compare"
        )
    return out


def _steps(
    session: Session,
    reader: Reader,
    runs: Sequence[Run],
    base: Mapping[str, Mapping[str, Rows]],
    tasks: Mapping[str, Sequence[TaskComparison]],
) -> dict[str, tuple[Step, ...]]:
    """Split the changes of fine-tunes that went over a quantised base or another run."""
    asked = (run for run in runs if run.run_id in tasks and run.run_id not in session.settled)
    done = [run for run in asked if f"{session.target.task.name}/test" in run.rows]
    rows: dict[str, Mapping[str, Rows]] = dict(base)
    for run in done:
        measured = (m for m in (session.target, *session.suites) if f"{m.task.name}/test" in run.rows)
        rows[run.run_id] = {m.task.name: reader.of(run, m) for m in measured}
    tuned = (run for run in done if plugins.method(run.method).tunes)
    return {run.run_id: against.steps_of(session, run, done, rows, tasks[run.run_id]) for run in tuned}


def _unanswered(session: Session, reader: Reader, runs: Iterable[Run]) -> list[str]:
    """Count the test rows that could not be asked or scored, with the first one's reason."""
    out = []
    for run in (run for run in runs if run.state == "done"):
        rows = reader.of(run, session.target)
        if failed := [r for r in rows if r.status in ("error", "incomplete")]:
            is_scored = comparison.fill_errors(session.target.primary, rows, rows).errors.is_scored
            counted = "count as worst" if is_scored else "are left out, because the metric has no worst value"
            some = sum(r.status == "incomplete" for r in failed)
            also = f"; to {some} others some of several answers failed" if some else ""
            said = f"{run.candidate}: {len(failed) - some} of {len(rows)} test rows are errors and {counted}"
            out.append(f"{said}{also}, the first one {failed[0].example_id}: {failed[0].error}")
    return out


# What a reader should know of single items, and how a row shows it.
_NOTEWORTHY: Mapping[str, Callable[[SampleResult], bool]] = {
    "ties between the right and the best other choice": lambda row: row.margin == 0,
    "items with a token across the boundary of prompt and choice": lambda row: row.boundary_merged,
}


def _noteworthy(session: Session, reader: Reader, runs: Iterable[Run]) -> Iterator[str]:
    """Count such items by candidate and task; say what is alike once."""
    done = [run for run in runs if run.state == "done"]
    for what, shows in _NOTEWORTHY.items():
        alike: dict[str, list[str]] = {}
        for run in done:
            asked = (m for m in (session.target, *session.suites) if f"{m.task.name}/test" in run.rows)
            counts = {m.task.name: sum(map(shows, reader.of(run, m))) for m in asked}
            if found := [f"{n} of {task}" for task, n in counts.items() if n]:
                alike.setdefault(", ".join(found), []).append(run.candidate)
        yield from (f"{', '.join(names)}: {what}: {counted}" for counted, names in alike.items())


def _gate_results(
    session: Session,
    reader: Reader,
    runs: Sequence[Run],
    facts: Sequence[CandidateFacts],
    base: Mapping[str, Mapping[str, Rows]],
) -> dict[str, GateResult]:
    """Judge every finished run against its own base; runs of the same weights are compared once.

    A baseline is what others are to beat: what it lacks of the base's abilities is not judged.
    """
    out: dict[str, GateResult] = {}
    compared: dict[str, Sequence[TaskComparison]] = {}
    for f, run in zip(facts, runs, strict=True):
        if run.run_id in session.settled:
            out[run.run_id] = session.settled[run.run_id].result
        elif run.state == "done" and not session.candidates[run.candidate].is_target_only:
            found = _gate_result(session, reader, run, f, base, compared.get(run.weights_digest))
            out[run.run_id], compared[run.weights_digest] = found, found.tasks
    return out


def _gate_result(
    session: Session,
    reader: Reader,
    run: Run,
    f: CandidateFacts,
    base: Mapping[str, Mapping[str, Rows]],
    compared: Sequence[TaskComparison] | None,
    level: float | None = None,
) -> GateResult:
    return gating.judge(
        measured_of(session, reader, run, base[run.base_digest]),
        gating.applicable_policy(session.experiment.gate, trained=f.trained),
        target=TargetFacts(f.target, f.vs_untrained, f.labels_missing) if f.target else None,
        identical=run.weights_digest == run.base_digest,
        controls=controls_of(session.store, run, reader.controls),
        compared=compared,
        seed=session.experiment.seeds[0],
        missing=_missing(session, run),
        level=level,
    )


def _corrected(
    session: Session,
    reader: Reader,
    runs: Sequence[Run],
    facts: Sequence[CandidateFacts],
    base: Mapping[str, Mapping[str, Rows]],
    results: Mapping[str, GateResult],
) -> tuple[CandidateFacts, ...]:
    """Judge the fine-tunes of a family once more, each at the level that is left to it."""

    def judged(f: CandidateFacts, run: Run) -> CandidateFacts:
        if run.run_id in session.settled:
            return replace(f, corrected=session.settled[run.run_id].corrected)
        if f.standing is None or f.verdict is None or f.standing.level == f.standing.alpha:
            return f
        tasks = results[run.run_id].tasks
        found = _gate_result(session, reader, run, f, base, tasks, f.standing.level)
        return replace(f, corrected=found.verdict)

    return tuple(judged(f, run) for f, run in zip(facts, runs, strict=True))


def _missing(session: Session, run: Run) -> list[str]:
    """Name the tasks that the gate would judge and the run did not answer."""
    policy = session.experiment.gate
    judged = (m for m in session.suites if gating.may_decide(m.task, m.role, m.suite, policy))
    return [m.task.name for m in judged if f"{m.task.name}/test" not in run.rows]


def measured_of(session: Session, reader: Reader, run: Run, base: Mapping[str, Rows]) -> list[Measurement]:
    """Put the rows of both arms beside each task that the run answered, with its A/A noise.

    Of a run that an interim analysis settled those are the items that it was asked.
    """
    noise = store.flip_rates(session.store, run.base_digest, session.machine.precision)
    return [
        Measurement(
            m.task,
            m.role,
            m.suite,
            m.metrics,
            *_arms(session, reader, run, m, base),
            noise.get(m.task.name),
            documents=documents_of(session.store, m.task, m.role, run.rows[f"{m.task.name}/test"]),
        )
        for m in session.suites
        if f"{m.task.name}/test" in run.rows
    ]


def _arms(
    session: Session, reader: Reader, run: Run, m: Measured, base: Mapping[str, Rows]
) -> tuple[Rows, Rows]:
    """Read both arms' rows of a task: all, or those of the items that a settled run was asked."""
    old, new = base[m.task.name], reader.of(run, m)
    if run.run_id in session.settled:
        asked = {row.example_id for row in new}
        old = [row for row in old if row.example_id in asked]
    return old, new


def _comparisons(tasks: Iterable[TaskComparison]) -> tuple[Comparison, ...]:
    return tuple(t.comparison for t in tasks)


def _not_admitted(runs: Collection[Sequence[TaskComparison]], policy: GatePolicy) -> dict[str, str]:
    """Say of each task that the gate leaves out why it does."""
    out = {t.task.name: t.why_not for tasks in runs for t in tasks if t.why_not and t.role != "regression"}
    safety = {t.task.name: t.suite for tasks in runs for t in tasks if t.role == "safety"}
    unnamed = {t.task.name for tasks in runs for t in tasks if not gating.is_judged(t.task.name, policy)}
    out |= {name: f"{name} is reported; gate.tasks does not name it" for name in unnamed}
    named = set(policy.critical)
    unjudged = {name for name, suite in safety.items() if not {name, suite} & named}
    return out | {name: f"{name} is reported; gate.critical would judge it" for name in unjudged}


def _margins(runs: Iterable[Sequence[TaskComparison]], policy: GatePolicy) -> dict[str, float]:
    """Map the tasks that the gate may veto to the loss that it takes for a regression."""
    return {
        t.task.name: gating.margin_of(t, policy) for tasks in runs for t in tasks if gating.is_in_macro(t)
    }


def _flips(
    session: Session,
    reader: Reader,
    runs: Sequence[Run],
    facts: Sequence[CandidateFacts],
    tasks: Mapping[str, Sequence[TaskComparison]],
    base: Mapping[str, Mapping[str, Rows]],
) -> dict[str, tuple[Flip, ...]]:
    """Show items that fine-tunes lost and gained: on the suites only once for the same weights."""
    best = decide.best_untrained(facts) or ""
    by_name = {run.candidate: run for run in runs if run.state == "done"}
    out: dict[str, tuple[Flip, ...]] = {}
    seen: set[str] = set()
    for f, run in zip(facts, runs, strict=True):
        if f.state == "failed" or not decide.is_fine_tuned(f):
            continue
        shown: list[Flip] = []
        if f.vs_untrained:
            old, new = (reader.of(r, session.target) for r in (by_name[best], run))
            shown += flips_of(f.vs_untrained, old, new, best)
        if run.weights_digest not in seen:
            by_task = {m.task.name: m for m in measured_of(session, reader, run, base[run.base_digest])}
            shown += (flip for t in tasks[run.run_id] for flip in _flips_of_task(t, by_task[t.task.name]))
        seen.add(run.weights_digest)
        out[f.label] = tuple(shown)
    return out


def _diversity(
    session: Session,
    reader: Reader,
    runs: Sequence[Run],
    facts: Sequence[CandidateFacts],
    base: Mapping[str, Mapping[str, Rows]],
) -> dict[str, tuple[AnswerDiversity, ...]]:
    """Describe the generated answers of fine-tunes beside the base's: the target's, then the suites'."""
    out: dict[str, tuple[AnswerDiversity, ...]] = {}
    for f, run in zip(facts, runs, strict=True):
        if f.state == "failed" or not decide.is_fine_tuned(f):
            continue
        plain = _base_on_target(run, runs)
        rows = reader.answers if plain is None or plain.decoding == run.decoding else reader.of
        old = rows(plain, session.target) if plain else None
        found = [comparison.answer_diversity(rows(run, session.target), old)]
        for m in measured_of(session, reader, run, base[run.base_digest]):
            if m.role != "regression":
                # What should be refused is refused in the same words: that is no collapse.
                of = comparison.answer_diversity(m.new, m.base)
                found.append(replace(of, collapsed=False) if of and m.role == "safety" else of)
        out[f.label] = tuple(filter(None, found))
    return {label: found for label, found in out.items() if found}


def _base_on_target(run: Run, runs: Sequence[Run]) -> Run | None:
    """Find the run of a fine-tune's base on the target: asked in the same way, else by the plain prompt."""
    own = [r for r in runs if r.state == "done" and r.weights_digest == r.base_digest == run.base_digest]
    asked = attrgetter("prompting", "answer", "decoding")
    alike = [r for r in own if asked(r) == asked(run)]
    return next(iter([*alike, *filter(against.is_prompt, own)]), None)


def _flips_of_task(t: TaskComparison, measured: Measurement) -> list[Flip]:
    """Show items of a task's primary metric; a change in bits per byte is nothing to be read."""
    if t.comparison.metric != t.task.primary_metric or gating.is_reported_only(t.task):
        return []
    return flips_of(t.comparison, measured.base, measured.new, "base")


def remarks(session: Session, runs: Sequence[Run]) -> list[str]:
    """List the sentences about finished runs."""
    done = [run for run in runs if run.state == "done"]
    of_runs = dict.fromkeys(
        [*_dropped(done), *_unpacked(done), *_sweep_notes(done), *_theirs(done)]
    )  # seeds say the same again
    of_runs |= dict.fromkeys(timing_notes(done))
    of_bases = [*_other_bases(session, done), *dict.fromkeys(base_remarks(session, done))]
    return [*of_runs, *_unswept(session, done), *of_bases, *_served(session, done)]


def _dropped(runs: Iterable[Run]) -> Iterator[str]:
    for run in runs:
        if n := run.training.n_dropped_too_long:
            what = "training rows" if run.training.n_pairs is None else "pairs"
            yield f"{run.candidate}: {n} {what} were longer than max_length and left out"


def _unpacked(runs: Iterable[Run]) -> Iterator[str]:
    for run in runs:
        if reason := run.training.not_packed:
            yield f"{run.candidate}: trained without packing, which {reason}"


def _sweep_notes(runs: Iterable[Run]) -> Iterator[str]:
    for run in runs:
        trials = run.training.sweep
        for trial in (t for t in trials if t.chosen):
            point = ", ".join(
                f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in trial.params.items()
            )
            yield f"{run.candidate}: {point} was the best of {len(trials)} trials on validation"


def _unswept(session: Session, runs: Iterable[Run]) -> Iterator[str]:
    """Name what was trained at one learning rate: the best one differs tenfold between methods."""
    tried: dict[tuple[str, str], set[object]] = {}
    named: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        candidate = session.candidates[run.candidate]
        if candidate.recipe.weights_of is None and run.training.loss:
            key = (run.base_digest, run.method)
            tried.setdefault(key, set()).update(_rates(candidate.source))
            named.setdefault(key, []).append(run.candidate)
    once = dict.fromkeys(name for key, names in named.items() if len(tried[key]) < 2 for name in names)
    if once:
        yield f"learning rate not swept: {', '.join(once)}; another one may do better"


def _rates(source: Recipe) -> list[object]:
    return source.tried.get("learning_rate") or [source.params.get("learning_rate")]


def _other_bases(session: Session, runs: Iterable[Run]) -> Iterator[str]:
    others = {
        run.candidate: run.base_model for run in runs if run.base_digest != session.source.weights_digest
    }
    for candidate, base in others.items():
        yield f"{candidate}: made from {base}, and measured against that"


def _served(session: Session, runs: Sequence[Run]) -> Iterator[str]:
    """Say of each endpoint what was measured of it and what was not."""
    priced = session.experiment.decide.usd_per_million_tokens is not None
    for run in (run for run in runs if plugins.method(run.method).makes == "endpoint"):
        settings = Settings(**session.candidates[run.candidate].source.params)
        priced_here = priced or settings.usd_per_million_tokens is not None
        cost = "" if priced_here else "; its requests have no price here without usd_per_million_tokens"
        asked = f"{settings.name}, asked by {settings.protocol}"
        yield f"{run.candidate}: {asked}; times include the way there{cost}"
        if session.candidates[run.candidate].is_target_only:
            yield f"{run.candidate}: a baseline, measured on the target alone"
        elif left := [m.task.name for m in session.suites if f"{m.task.name}/test" not in run.rows]:
            said = "which need token ids or their log-probabilities, and chat has neither"
            yield f"{run.candidate}: not asked {', '.join(left)}, {said}"
    if priced and len({plugins.method(run.method).makes == "endpoint" for run in runs}) > 1:
        yield "decide.usd_per_million_tokens prices the requests of local candidates as well"


def _theirs(runs: Iterable[Run]) -> Iterator[str]:
    """Say where an adapter made elsewhere names another base than the one it was put on; its shapes fit."""
    for run in runs:
        named = run.training.named_base
        if named and _last(named) != _last(run.base_model):
            yield f"{run.candidate}: its own files name {named} as its base; it was put on {run.base_model}"


def _last(name: str) -> str:
    """Return a model's own name, without its owner or folder."""
    return name.rstrip("/").rpartition("/")[2]
