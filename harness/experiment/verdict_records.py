"""Verdicts and inputs of decisions as records of the store, from which SQL tables are made.

Invariant: a record holds what the report says and nothing else; smoke runs leave none.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from harness import __version__, store
from harness.decision import CandidateFacts
from harness.gating import Verdict
from harness.provenance import timestamp
from harness.records import Run, digest
from harness.report import ExperimentReport, to_plain
from harness.spec import GatePolicy
from harness.store import DecisionRecord, Store, VerdictRecord

_LARGE = (
    "verdict",
    "corrected",
    "training",
    "slices",
    "tokens",
    "vs_prompt",
)  # of a candidate's facts: kept elsewhere
_UNRECORDED = (
    "the rows and gate settings are the same; the tasks, what else was measured or the rules changed"
)
_OF_GAIN = ("delta", "low", "high", "n")


def record_verdict(
    at: Store, run: Run, verdict: Verdict, policy: GatePolicy, baseline: str, baseline_digest: str
) -> None:
    """Write a verdict on a run against a baseline; `policy` is the gate's as it is written."""
    plain: dict[str, Any] = to_plain(verdict)
    settings: dict[str, Any] = to_plain(policy)
    record = VerdictRecord(
        run_id=run.run_id,
        experiment=run.experiment,
        candidate=run.candidate,
        seed=run.seed,
        baseline=baseline,
        baseline_digest=baseline_digest,
        policy=settings,
        policy_digest=digest(settings),
        rows=dict(run.rows),
        harness=__version__,
        created=timestamp(),
        **{
            name: plain[name]
            for name in ("outcome", "sentence", "macro", "lost", "gained", "items_needed", "rules")
        },
    )
    store.save_verdict(at, record)


def verdict_change(
    at: Store, run: Run, verdict: Verdict, policy: GatePolicy, baseline: str, baseline_digest: str
) -> str:
    """Say what a stored verdict on a run would be now, and what changed since; empty where it is the same."""
    before = store.newest_verdict(at, run.run_id, baseline_digest)
    if before is None or before.outcome == verdict.outcome:
        return ""
    since = "; ".join(_changes(before, run, policy)) or _UNRECORDED
    was = f"{run.label}: the verdict of {before.created} against {baseline} was {before.outcome}"
    return f"{was} and would now be {verdict.sentence} (since then: {since})"


def _changes(before: VerdictRecord, run: Run, policy: GatePolicy) -> Iterator[str]:
    """Name the settings, rows and version that are other than when a verdict was stored."""
    defaults, now = to_plain(GatePolicy()), to_plain(policy)
    for key, value in now.items():
        then = before.policy.get(key, defaults[key])
        if then != value:
            yield f"gate.{key} {then} → {value}"
    if other := sorted(key for key in {*before.rows, *run.rows} if before.rows.get(key) != run.rows.get(key)):
        yield f"other answers on {', '.join(other)}"
    if before.harness != __version__:
        yield f"harness {before.harness} → {__version__}"


def report_changes(
    at: Store, report: ExperimentReport, runs: Iterable[Run], policy: GatePolicy
) -> Iterator[str]:
    """Say of every verdict of a report that is another than the one stored what has changed."""
    by_id = {run.run_id: run for run in runs}
    for facts in report.facts:
        if facts.verdict is not None and (run := by_id.get(facts.run_id)):
            said = verdict_change(at, run, facts.verdict, policy, "the base", run.base_digest)
            if said:
                yield said


def record_report(at: Store, report: ExperimentReport, runs: Iterable[Run], policy: GatePolicy) -> None:
    """Write every verdict of a report, and what its decision knew of each run."""
    if report.smoke:
        return
    by_id = {run.run_id: run for run in runs}
    for facts in report.facts:
        if facts.verdict is not None and (run := by_id.get(facts.run_id)):
            record_verdict(at, run, facts.verdict, policy, "the base", run.base_digest)
    if report.decision is not None:
        store.save_decision(
            at,
            DecisionRecord(
                experiment=report.experiment,
                metric=report.metric,
                action=report.decision.action,
                sentence=report.decision.sentence,
                facts=[_brief(facts) for facts in report.facts],
                harness=__version__,
                created=timestamp(),
                higher_is_better=report.unit.higher_is_better,
                scale=report.unit.scale,
            ),
        )


def _brief(facts: CandidateFacts) -> dict[str, Any]:
    """Keep the figures of a run that the decision weighs, without items and curves."""
    plain: dict[str, Any] = {name: of for name, of in to_plain(facts).items() if name not in _LARGE}
    gain = plain["vs_untrained"]
    return plain | {"vs_untrained": gain and {name: gain[name] for name in _OF_GAIN}}
