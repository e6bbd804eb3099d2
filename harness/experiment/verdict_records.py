"""Records of verdicts and decisions in the store, and how a stored verdict would change now.

Invariant: a record holds all inputs of its verdict, so a changed verdict can name the input that changed.
"""

import json
from collections.abc import Iterable, Iterator
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
from harness.spec import Experiment, GatePolicy
from harness.store import DecisionRecord, Store, VerdictRecord

# Fields of a candidate's facts that are stored elsewhere; all others are recorded.
_LARGE = ("verdict", "corrected", "training", "slices", "tokens", "vs_prompt")
_SAME = "the rows, tasks and gate settings are the same; what else was measured or the rules changed"
_OF_VERDICT = ("outcome", "sentence", "macro", "lost", "gained", "items_needed")
_OF_GAIN = ("delta", "low", "high", "n")


def record_verdict(
    study: Study, run: Run, verdict: Verdict, baseline: str = "the base", baseline_digest: str = ""
) -> VerdictRecord:
    """Return the record of a verdict with its inputs: rows, policies, and the settings of judged tasks."""
    settings: dict[str, dict[str, Any]] = {}
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
    policy = _describe_rules(study.experiment)
    plain: dict[str, Any] = to_plain(verdict)
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
        tasks=settings,
        rules=[store.RuleRecord(**rule) for rule in plain["rules"]],
        **{name: plain[name] for name in _OF_VERDICT},
    )


def _describe_rules(experiment: Experiment) -> dict[str, Any]:
    # The gate's settings, and the decision's settings that choose the candidate a gain is measured over.
    policy, decide = experiment.gate, experiment.decide
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
    """Return a stored report with newer verdicts by the same settings, made after `since_s` (Unix time)."""
    by_id = {run.run_id: run for run in runs}
    settings = digest(_describe_rules(experiment))

    def renew(f: CandidateFacts) -> CandidateFacts:
        if f.verdict is None or (run := by_id.get(f.run_id)) is None:
            return f
        newest = store.newest_verdict(at, run.run_id, run.base_digest)
        if newest is None or newest.policy_digest != settings:
            return f
        if datetime.fromisoformat(newest.created).timestamp() <= since_s:
            return f
        verdict_fields = to_plain(f.verdict) | {name: getattr(newest, name) for name in _OF_VERDICT}
        verdict_fields["rules"] = to_plain(newest.rules)
        return replace(f, verdict=load(Verdict, json.dumps(verdict_fields).encode()))

    return replace(report, facts=tuple(map(renew, report.facts)))


def verdict_change(at: Store, now: VerdictRecord) -> str:
    """Describe how a stored verdict would change now, and its causes; empty if it stays the same."""
    before = store.newest_verdict(at, now.run_id, now.baseline_digest)
    if before is None:
        return ""
    on_errors = ([r.outcome for r in verdict.rules if r.name == "errors"] for verdict in (before, now))
    was_invalid, is_invalid = ("inconclusive" in outcomes for outcomes in on_errors)
    if (before.outcome, was_invalid) == (now.outcome, is_invalid):
        return ""
    changes = [*_changes(before, now)]
    fallback, old_outcomes = [_SAME], {r.name: r.outcome for r in before.rules}
    if changed := [r for r in now.rules if old_outcomes.get(r.name, "skipped") != r.outcome]:
        pairs = ((r.name, WORDS[old_outcomes.get(r.name, "skipped")], WORDS[r.outcome]) for r in changed)
        fallback.append(", ".join(f"rule {name} {old} → {new}" for name, old, new in pairs))
    label = f"{now.candidate} (seed {now.seed})" if now.seed else now.candidate
    was = f"{label}: the verdict of {before.created} against {now.baseline} was {WORDS[before.outcome]}"
    return f"{was} and would now be {now.sentence} (since then: {'; '.join(changes or fallback)})"


def _changes(before: VerdictRecord, now: VerdictRecord) -> Iterator[str]:
    defaults = to_plain(GatePolicy())
    for key in dict.fromkeys([*now.policy, *(key for key in before.policy if "." in key)]):
        old_value, new_value = (verdict.policy.get(key, defaults.get(key)) for verdict in (before, now))
        if old_value != new_value:
            yield f"{key if '.' in key else f'gate.{key}'} {old_value} → {new_value}"
    if keys := sorted(key for key in {*before.rows, *now.rows} if before.rows.get(key) != now.rows.get(key)):
        yield f"other answers on {', '.join(keys)}"
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
    """Store every verdict of a report, and the facts of each run that its decision used."""
    if report.smoke:
        return
    for verdict in list_verdict_records(report, runs, study):
        store.save_verdict(study.store, verdict)
    if report.decision is None:
        return
    facts = []  # the figures that the decision weighs, without items and curves
    for f in report.facts:
        plain: dict[str, Any] = {name: value for name, value in to_plain(f).items() if name not in _LARGE}
        gain = plain["vs_untrained"]
        facts.append(plain | {"vs_untrained": gain and {name: gain[name] for name in _OF_GAIN}})
    record = DecisionRecord(
        experiment=report.experiment,
        metric=report.metric,
        action=report.decision.action,
        sentence=report.decision.sentence,
        facts=facts,
        harness=__version__,
        created=timestamp(),
        higher_is_better=report.unit.higher_is_better,
        scale=report.unit.scale,
    )
    store.save_decision(study.store, record)


def list_verdict_records(
    report: ExperimentReport, runs: Iterable[Run], study: Study
) -> Iterator[VerdictRecord]:
    """Yield a record of every verdict of a report."""
    by_id = {run.run_id: run for run in runs}
    for facts in report.facts:
        if facts.verdict is not None and (run := by_id.get(facts.run_id)):
            yield record_verdict(study, run, facts.verdict)
