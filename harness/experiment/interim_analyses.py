"""Interim analyses of `--sequential`: all runs answer sampled items of large tasks until the verdicts settle.

Invariant: base and candidates answer the same items in the same layout. The first analysis that settles the
gate's rules on the capability suite is the last one, at an alpha corrected for the earlier ones.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from harness import store
from harness.analysis import comparison
from harness.analysis.admission import explain_reported
from harness.analysis.candidate_facts import CandidateFacts, passes_alone
from harness.analysis.margins import is_relative, margin_share
from harness.analysis.verdict import Verdict, is_named_critical
from harness.evaluation import sampling
from harness.evaluation.row_sets import rows_version
from harness.evaluation.session import MeasuredTask, Session
from harness.experiment.candidate_result import facts_of_runs, study_of_session
from harness.experiment.run_verdicts import InterimVerdict, judge_runs
from harness.experiment.stored_rows import Reader, Runs
from harness.formatting import count
from harness.progress import PrefixedProgress
from harness.records import BLOCK, Run, SamplingRecord, digest

_LEAST_SKILL = 0.05  # a margin relative to a lower skill would need every item
_SETTLED_BY_ITEMS = ("macro", "each", "safety", "critical", "validity", "mode collapse")


class InterimAnalysis(NamedTuple):
    """One interim analysis: the suites with their sampled items, its description, and its record."""

    suites: tuple[MeasuredTask, ...]
    sentence: str
    sampling: SamplingRecord


def run_interim_analyses(
    session: Session, base_rows: Mapping[str, str], make_all: Callable[[Sequence[Run | None]], list[Run]]
) -> tuple[list[str], list[Run]]:
    """Make all runs on the items of each interim analysis, until one settles the verdicts.

    `base_rows` are the base's row sets of whole tasks; `make_all` makes the runs that are None.
    """
    runs: list[Run] = []
    sentence = "fewer items: no task is large enough to draw from, so all items were evaluated"
    analyses, progress = plan_interim_analyses(session, base_rows), session.progress
    if not analyses:
        runs = make_all(runs)
        _keep_settled(session, runs)
    for analysis in analyses:
        gate = session.experiment.gate.model_copy(update={"alpha": analysis.sampling.alpha})
        session.experiment = session.experiment.model_copy(update={"gate": gate})
        session.suites, sentence = analysis.suites, analysis.sentence
        session.progress = PrefixedProgress(progress, f"{analysis.sampling.analysis}: ")
        settled_before = set(session.settled)
        runs = make_all([run if run.run_id in session.settled else None for run in runs])
        facts = _keep_settled(session, runs)
        for run in runs:
            if run.state == "done" and run.run_id not in settled_before:
                file = session.store.place(run.run_id, "sampling.json")
                store.write_record(session.store, file, analysis.sampling)
        if is_settled(facts):
            break
    session.progress = progress
    # Notes on runs whose verdict was settled before the last analysis.
    settled = [(run.label, session.settled[run.run_id]) for run in runs if run.run_id in session.settled]
    notes = [
        f"{label}: its verdict was settled on {count(verdict.n)} items, at alpha {verdict.alpha:.2g}"
        for label, verdict in settled
        if verdict.alpha != session.experiment.gate.alpha
    ]
    return [sentence, *notes], runs


def plan_interim_analyses(session: Session, base_rows: Mapping[str, str]) -> list[InterimAnalysis]:
    """Plan the interim analyses from the base's row sets by task; none if all items are evaluated."""
    gate = session.experiment.gate
    sizes = {m.task.name: m.size("test") for m in session.suites}
    rows = {name: store.read_rows(session.store, base_rows[name], n) for name, n in sizes.items()}
    counted = [m for m in session.suites if _counts(m)]
    drawn_tasks = [m for m in counted if not is_named_critical(m.task, m.suite, gate)]
    strata = {m.task.name: sampling.pool_of(rows[m.task.name], m.primary, m.task.chance) for m in drawn_tasks}
    pools = {name: pool for name, pool in strata.items() if pool}
    if not pools:
        return []
    full = [len(rows[m.task.name]) for m in counted if m.task.name not in pools]
    margin, skills = margin_share(gate.macro), list[float]()
    for m in drawn_tasks if is_relative(gate.macro) else ():  # a share of the drawn tasks' mean skill
        if m.task.name in pools:
            bounds, score = m.primary.range, comparison.estimate(m.primary, rows[m.task.name]).score
            skills.append((score - bounds.floor(m.task.chance)) / bounds.span)
    margin *= max(sum(skills) / len(skills), _LEAST_SKILL) if skills else 1.0
    plan = sampling.plan(pools, full, margin, gate.alpha)
    orders = dict[str, tuple[str, ...]]()
    for name, pool in pools.items():
        seed = int(digest([name, session.source.weights_digest, session.first_seed]), 16)
        orders[name] = sampling.order_items(pool, plan.drawn[name], seed)
    whole = {m.task.name: rows_version(m.task, m.versions["test"]) for m in session.suites}
    n_all, analyses = count(sum(pool.n for pool in pools.values())), []
    for k, alpha in enumerate(plan.alphas):
        sampled = list(session.suites)
        for i, m in ((i, m) for i, m in enumerate(sampled) if m.task.name in pools):
            order, pool = orders[m.task.name], pools[m.task.name]
            weights = sampling.weights(pool, plan.drawn[m.task.name][k], order)
            # An analysis that ends within a block has rows of its own, because the batch of a longer block
            # differs. The version names the whole order, so that all analyses share their rows.
            cut = [len(weights)] if len(weights) < pool.n and len(weights) % BLOCK else []
            by_id = {example.id: example for example in m.items.test}
            items = replace(m.items, test=tuple(by_id[item] for item in weights))
            versions = {**m.versions, "test": digest([m.versions["test"], order, *cut])}
            sampled[i] = m._replace(items=items, versions=versions, weights=weights)
        suites, name = tuple(sampled), f"interim analysis {k + 1} of {len(plan.alphas)}"
        sentence = (
            f"fewer items: {count(sum(plan.n(task, k) for task in pools))} of {n_all} items of "
            f"{', '.join(pools)} were evaluated, sampled by the base's answers; {name}, judged at alpha "
            f"{alpha:.2g}, as are its intervals"
        )
        by_task = {m.task.name: dict(m.weights) for m in suites if m.weights is not None}
        record = SamplingRecord(name, alpha, gate.alpha, by_task, {task: whole[task] for task in by_task})
        analyses.append(InterimAnalysis(suites, sentence, record))
    return analyses


def is_settled(facts: Sequence[CandidateFacts]) -> bool:
    """Tell whether more suite items could no longer change a verdict on a fine-tune."""
    alone = all(_is_settled(f.verdict) for f in facts if f.trained and f.verdict)
    among = (f.corrected for f in facts if passes_alone(f))
    return alone and all(_is_settled(verdict) for verdict in among if verdict)


def _is_settled(verdict: Verdict) -> bool:
    outcomes = [rule.outcome for rule in verdict.rules if rule.name in _SETTLED_BY_ITEMS]
    return "fail" in outcomes or "inconclusive" not in outcomes


def _counts(m: MeasuredTask) -> bool:
    return m.role == "capability" and not explain_reported(m.task, m.primary)


def _keep_settled(session: Session, runs: Runs) -> tuple[CandidateFacts, ...]:
    """Judge the runs, and settle the verdicts on fine-tunes that more items cannot change."""
    reader = Reader(session.store, session.tasks)
    judged = judge_runs(study_of_session(session, reader), runs, facts_of_runs(session, reader, runs))
    n, alpha = sum(m.size("test") for m in session.suites), session.experiment.gate.alpha
    for f in judged.facts:
        if f.trained and f.verdict and f.run_id not in session.settled and is_settled([f]):
            session.settled[f.run_id] = InterimVerdict(judged.results[f.run_id], f.corrected, alpha, n)
    return judged.facts
