"""Verdicts and inputs of decisions as records of the store, from which SQL tables are made.

Invariant: a record has exactly the report's numbers; smoke runs write none.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from harness import __version__, store
from harness.analysis.candidate_facts import CandidateFacts
from harness.analysis.verdict import WORDS, Verdict
from harness.experiment.study import Study
from harness.provenance import timestamp
from harness.records import Run, digest, load
from harness.report import ExperimentReport, to_plain
from harness.spec import DecidePolicy, Experiment, GatePolicy
from harness.store import DecisionRecord, Store, VerdictRecord

Settings = Mapping[str, Mapping[str, Any]]  # of tasks, by their names
NO_SETTINGS: Settings = {}
_NOTHING_DECIDED = DecidePolicy()

# Of a candidate's facts, kept elsewhere; a new field of one number is recorded by itself.
_LARGE = ("verdict", "corrected", "training", "slices", "tokens", "vs_prompt")
_SAME = "the rows, tasks and gate settings are the same; what else was measured or the rules changed"
_OF_VERDICT = ("outcome", "sentence", "macro", "lost", "gained", "items_needed")
_OF_GAIN = ("delta", "low", "high", "n")


def record_of(
    run: Run,
    verdict: Verdict,
    gate: GatePolicy,
    baseline: str = "the base",
    baseline_digest: str = "",
    tasks: Settings = NO_SETTINGS,
    decide: DecidePolicy = _NOTHING_DECIDED,
) -> VerdictRecord:
    """Return the record of a verdict with its inputs; `tasks` maps judged tasks to their settings."""
    plain: dict[str, Any] = to_plain(verdict)
    policy = _describe_rules(gate, decide)
    return VerdictRecord(
        run_id=run.run_id,
        experiment=run.experiment,
        candidate=run.candidate,
        seed=run.seed,
        baseline=baseline,
        baseline_digest=baseline_digest or run.base_digest,
        policy=policy,
        policy_digest=digest(policy),
        rows=dict(run.rows),
        harness=__version__,
        created=timestamp(),
        tasks={name: dict(of) for name, of in tasks.items()},
        rules=[store.RuleRecord(**rule) for rule in plain["rules"]],
        **{name: plain[name] for name in _OF_VERDICT},
    )


def record_in_study(
    study: Study, run: Run, verdict: Verdict, baseline: str = "the base", baseline_digest: str = ""
) -> VerdictRecord:
    """Return the record of a verdict with the policies and tasks of a study."""
    settings = {}  # of tasks, on which the verdict depends besides the rows
    for task, role, _ in study.suite_tasks():
        if study.is_judged(task):
            primary = study.primary(task)
            settings[task.name] = {
                "chance": task.chance,
                "margin": task.margin,
                "metric": primary.name,
                "higher_is_better": primary.higher_is_better,
                "bounds": [primary.range.low, primary.range.high],
                "kind": task.kind,
                "role": role,
            }
    gate, decide = study.experiment.gate, study.experiment.decide
    return record_of(run, verdict, gate, baseline, baseline_digest, settings, decide)


def _describe_rules(policy: GatePolicy, decide: DecidePolicy) -> dict[str, Any]:
    """Return the gate's settings, and those of the decision that choose what a gain is measured over."""
    chosen_by = {
        "decide.max_latency_s": decide.max_latency_s,
        "decide.min_requests_per_s": decide.min_requests_per_s,
        "decide.needs": [need for need in decide.needs if need == "sensitive_data"],
    }
    measured = (policy.target.gain, policy.target.win_rate) != (None, None)
    written: dict[str, Any] = to_plain(policy)
    return written | {key: value for key, value in chosen_by.items() if measured and value}


def renew_verdicts(
    at: Store, report: ExperimentReport, runs: Iterable[Run], experiment: Experiment, since_s: float
) -> ExperimentReport:
    """Return a kept report with the verdicts by the same settings that were made after it was written.

    `since_s` is when that was, in seconds since 1970.
    """
    by_id = {run.run_id: run for run in runs}
    settings = digest(_describe_rules(experiment.gate, experiment.decide))

    def renew(f: CandidateFacts) -> CandidateFacts:
        if f.verdict is None or (run := by_id.get(f.run_id)) is None:
            return f
        newest = store.newest_verdict(at, run.run_id, run.base_digest)
        if newest is None or newest.policy_digest != settings:
            return f
        if datetime.fromisoformat(newest.created).timestamp() <= since_s:
            return f
        found = to_plain(f.verdict) | {name: getattr(newest, name) for name in _OF_VERDICT}
        found["rules"] = to_plain(newest.rules)
        return replace(f, verdict=load(Verdict, json.dumps(found).encode()))

    return replace(report, facts=tuple(map(renew, report.facts)))


def verdict_change(at: Store, now: VerdictRecord) -> str:
    """Describe how a stored verdict would differ now, and what changed since; empty if it is the same."""
    before = store.newest_verdict(at, now.run_id, now.baseline_digest)
    if before is None or (before.outcome, _is_invalid(before)) == (now.outcome, _is_invalid(now)):
        return ""
    found = [*_changes(before, now)]
    unknown, then = [_SAME], {r.name: r.outcome for r in before.rules}
    if changed := [r for r in now.rules if then.get(r.name, "skipped") != r.outcome]:
        pairs = ((r.name, WORDS[then.get(r.name, "skipped")], WORDS[r.outcome]) for r in changed)
        unknown.append(", ".join(f"rule {name} {old} → {new}" for name, old, new in pairs))
    label = f"{now.candidate} (seed {now.seed})" if now.seed else now.candidate
    was = f"{label}: the verdict of {before.created} against {now.baseline} was {WORDS[before.outcome]}"
    return f"{was} and would now be {now.sentence} (since then: {'; '.join(found or unknown)})"


def _is_invalid(record: VerdictRecord) -> bool:
    """Tell whether a recorded verdict is invalid (see `Verdict.is_invalid`)."""
    return any(rule.name == "errors" and rule.outcome == "inconclusive" for rule in record.rules)


def _changes(before: VerdictRecord, now: VerdictRecord) -> Iterator[str]:
    defaults = to_plain(GatePolicy())
    for key in dict.fromkeys([*now.policy, *(key for key in before.policy if "." in key)]):
        was, written = (of.policy.get(key, defaults.get(key)) for of in (before, now))
        if was != written:
            yield f"{key if '.' in key else f'gate.{key}'} {was} → {written}"
    if other := sorted(key for key in {*before.rows, *now.rows} if before.rows.get(key) != now.rows.get(key)):
        yield f"other answers on {', '.join(other)}"
    if before.harness != now.harness:
        yield f"harness {before.harness} → {now.harness}"
    for name in sorted({*before.tasks, *now.tasks}):
        old, new = before.tasks.get(name), now.tasks.get(name)
        if old is None or new is None:
            yield f"task {name} {'was not judged before' if old is None else 'is no longer judged'}"
        else:
            for key in sorted(key for key in {*old, *new} if old.get(key) != new.get(key)):
                yield f"{key} of {name} {old.get(key)} → {new.get(key)}"


def record_report(report: ExperimentReport, runs: Iterable[Run], study: Study) -> None:
    """Write every verdict of a report, and what its decision knew of each run."""
    if report.smoke:
        return
    for record in list_verdict_records(report, runs, study):
        store.save_verdict(study.store, record)
    if report.decision is not None:
        store.save_decision(
            study.store,
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


def list_verdict_records(
    report: ExperimentReport, runs: Iterable[Run], study: Study
) -> Iterator[VerdictRecord]:
    """Yield a record of every verdict of a report."""
    by_id = {run.run_id: run for run in runs}
    for facts in report.facts:
        if facts.verdict is not None and (run := by_id.get(facts.run_id)):
            yield record_in_study(study, run, facts.verdict)


def _brief(facts: CandidateFacts) -> dict[str, Any]:
    """Keep the figures of a run that the decision weighs, without items and curves."""
    plain: dict[str, Any] = {name: of for name, of in to_plain(facts).items() if name not in _LARGE}
    gain = plain["vs_untrained"]
    return plain | {"vs_untrained": gain and {name: gain[name] for name in _OF_GAIN}}
