"""Verdicts and inputs of decisions as records of the store, from which SQL tables are made.

Invariant: a record holds what the report says and nothing else; smoke runs leave none.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, NamedTuple

from harness import __version__, formatting, store
from harness.analysis.candidate_facts import CandidateFacts
from harness.analysis.verdict import WORDS, Verdict, is_invalid
from harness.experiment.study import Study
from harness.provenance import timestamp
from harness.records import Run, digest, load
from harness.report import ExperimentReport, to_plain
from harness.spec import DecidePolicy, Experiment, GatePolicy
from harness.store import DecisionRecord, Store, VerdictRecord

Settings = Mapping[str, Mapping[str, Any]]  # of tasks, by their names
NO_SETTINGS: Settings = {}
_NOTHING_DECIDED = DecidePolicy()

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
_SAME = "the rows, tasks and gate settings are the same; what else was measured or the rules changed"
_OF_VERDICT = ("outcome", "sentence", "macro", "lost", "gained", "items_needed")
_OF_GAIN = ("delta", "low", "high", "n")


class Judgement(NamedTuple):
    """Verdict on a run against a baseline; `policy` is the gate's as it is written, `decide` the decision's.

    `tasks` maps those of the suites that are judged to what the verdict hangs on of them.
    """

    run: Run
    verdict: Verdict
    policy: GatePolicy
    baseline: str
    baseline_digest: str
    tasks: Settings = NO_SETTINGS
    decide: DecidePolicy = _NOTHING_DECIDED

    @property
    def rules(self) -> dict[str, Any]:
        """The settings that it was judged by, as JSON has them."""
        return _describe_rules(self.policy, self.decide)


def judgement_of(
    study: Study, run: Run, verdict: Verdict, baseline: str = "the base", baseline_digest: str = ""
) -> Judgement:
    """Put a verdict on a run beside the policies and the tasks that it was given by."""
    settings = {}  # what the verdict hangs on of a task besides its rows, as JSON has it
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
    against = baseline_digest or run.base_digest
    gate, decide = study.experiment.gate, study.experiment.decide
    return Judgement(run, verdict, gate, baseline, against, settings, decide)


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


def record_verdict(at: Store, judgement: Judgement) -> None:
    """Write a verdict."""
    run, verdict, _, baseline, baseline_digest, tasks, _ = judgement
    plain: dict[str, Any] = to_plain(verdict)
    settings = judgement.rules
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
        tasks={name: dict(of) for name, of in tasks.items()},
        rules=[store.RuleRecord(**rule) for rule in plain["rules"]],
        **{name: plain[name] for name in _OF_VERDICT},
    )
    store.save_verdict(at, record)


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


def verdict_change(at: Store, judgement: Judgement) -> str:
    """Say what a stored verdict on a run would be now, and what changed since; empty where it is the same."""
    run, verdict, _, baseline, baseline_digest, tasks, _ = judgement
    before = store.newest_verdict(at, run.run_id, baseline_digest)
    if before is None:
        return ""
    if (before.outcome, _was_invalid(before)) == (verdict.outcome, is_invalid(verdict.rules)):
        return ""
    found = [*_changes(before, run, judgement.rules, tasks), *_failures(before, verdict)]
    unknown, then = [_SAME if before.tasks else _UNRECORDED], {r.name: r.outcome for r in before.rules}
    if changed := [r for r in verdict.rules if then.get(r.name, "skipped") != r.outcome]:
        pairs = ((r.name, WORDS[then.get(r.name, "skipped")], WORDS[r.outcome]) for r in changed)
        unknown.append(", ".join(f"rule {name} {old} → {new}" for name, old, new in pairs))
    was = f"{run.label}: the verdict of {before.created} against {baseline} was {WORDS[before.outcome]}"
    return f"{was} and would now be {verdict.sentence} (since then: {'; '.join(found or unknown)})"


def _errors_then(before: VerdictRecord) -> store.RuleRecord | None:
    return next((rule for rule in before.rules if rule.name == "errors"), None)


def _was_invalid(before: VerdictRecord) -> bool:
    """Tell of a stored verdict what `is_invalid` tells of one."""
    then = _errors_then(before)
    return then is not None and then.outcome == "inconclusive"


def _changes(before: VerdictRecord, run: Run, rules: Mapping[str, Any], tasks: Settings) -> Iterator[str]:
    """Name the settings, rows, version and tasks that are other than when a verdict was stored."""
    defaults = to_plain(GatePolicy())
    for key in dict.fromkeys([*rules, *(key for key in before.policy if "." in key)]):
        then, now = (of.get(key, defaults.get(key)) for of in (before.policy, rules))
        if then != now:
            yield f"{key if '.' in key else f'gate.{key}'} {then} → {now}"
    if other := sorted(key for key in {*before.rows, *run.rows} if before.rows.get(key) != run.rows.get(key)):
        yield f"other answers on {', '.join(other)}"
    if before.harness != __version__:
        yield f"harness {before.harness} → {__version__}"
    for name in sorted({*before.tasks, *tasks}) if before.tasks else ():  # older records hold no tasks
        old, new = before.tasks.get(name), tasks.get(name)
        if old is None or new is None:
            yield f"task {name} {'was not judged before' if old is None else 'is no longer judged'}"
        else:
            for key in sorted(key for key in {*old, *new} if old.get(key) != new.get(key)):
                yield f"{key} of {name} {old.get(key)} → {new.get(key)}"


def _failures(before: VerdictRecord, verdict: Verdict) -> Iterator[str]:
    """Say how many answers failed, where so many did not then."""
    then = _errors_then(before)
    now = next((r for r in verdict.rules if r.name == "errors" and r.outcome == "inconclusive"), None)
    if now is None or _was_invalid(before):
        return
    share, named = now.numbers["largest_share"], now.numbers["tasks"]
    if then and share == then.numbers.get("largest_share"):
        return
    several = "up to " if isinstance(named, list) and len(named) > 1 else ""
    on = f" on {', '.join(named)}" if isinstance(named, list) and named else ""
    yield f"{several}{formatting.percent(float(str(share)))} % of answers{on} failed"


def report_changes(report: ExperimentReport, runs: Iterable[Run], study: Study) -> Iterator[str]:
    """Say of every verdict of a report that is another than the one stored what has changed."""
    yield from filter(None, (verdict_change(study.store, of) for of in _judgements(report, runs, study)))


def record_report(report: ExperimentReport, runs: Iterable[Run], study: Study) -> None:
    """Write every verdict of a report, and what its decision knew of each run."""
    if report.smoke:
        return
    for judgement in _judgements(report, runs, study):
        record_verdict(study.store, judgement)
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


def _judgements(report: ExperimentReport, runs: Iterable[Run], study: Study) -> Iterator[Judgement]:
    by_id = {run.run_id: run for run in runs}
    for facts in report.facts:
        if facts.verdict is not None and (run := by_id.get(facts.run_id)):
            yield judgement_of(study, run, facts.verdict)


def _brief(facts: CandidateFacts) -> dict[str, Any]:
    """Keep the figures of a run that the decision weighs, without items and curves."""
    plain: dict[str, Any] = {name: of for name, of in to_plain(facts).items() if name not in _LARGE}
    gain = plain["vs_untrained"]
    return plain | {"vs_untrained": gain and {name: gain[name] for name in _OF_GAIN}}
