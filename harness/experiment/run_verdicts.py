"""Verdict on a stored run against a baseline: gathers the inputs of the gate's rules from a study.

Invariant: the same run, baseline and store give the same verdict in a comparison, the gate and a page.
Logs of other programs are judged in `lifecycle.gate_of_logs`.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any

from harness import __version__, store
from harness.analysis import comparison
from harness.analysis.admission import Measurement, admit_tasks, cut_tasks, cut_to_half
from harness.analysis.candidate_facts import CandidateFacts
from harness.analysis.gate_rules_on_answers import cumulative_policy, cumulative_rule, export_rule
from harness.analysis.gate_verdict import GateResult, compare_arms, judge
from harness.analysis.verdict import WORDS, Half, Rule, Verdict, may_decide
from harness.errors import IncompatibleRuns
from harness.experiment.study import ArmsOfPair, Study, SuiteTask, compare_on, gate_target
from harness.formatting import count
from harness.provenance import timestamp
from harness.records import FEWER, RowsIdentity, Run, digest, load
from harness.report import ExperimentReport, to_plain
from harness.spec import Experiment, GatePolicy, TargetPolicy
from harness.store import Champion, DecisionRecord, Store, VerdictRecord

# Returns the identity of a baseline's rows of a task, given the run's rows and their key in the run.
FindIdentity = Callable[[RowsIdentity, str], RowsIdentity]


def read_arms_over(study: Study, run: Run, weights: str) -> list[Measurement]:
    """Pair a run's rows with rows of other weights computed in the same way; empty if any are not stored."""

    def find(identity: RowsIdentity, key: str = "") -> RowsIdentity:
        return replace(identity, weights_digest=weights)

    keys = (f"{suite_task.task.name}/test" for suite_task in study.suite_tasks())
    identities = [store.read_identity(study.store, run.rows[key]) for key in keys if key in run.rows]
    stored = all(study.store.parquet(find(identity).digest).exists() for identity in identities)
    return read_arms(study, run, find)[0] if stored else []


def read_arms(study: Study, run: Run, find: FindIdentity) -> tuple[list[Measurement], list[str]]:
    """Return both arms' rows of each task that the run answered, and notes on omitted items.

    Tasks that the policy only reports are skipped if the baseline has not answered them.
    """
    at, rows, weights = study.store, study.rows, study.weights(run)
    arms = list[tuple[SuiteTask, RowsIdentity, RowsIdentity]]()
    for suite_task in study.suite_tasks():
        key = f"{suite_task.task.name}/test"
        if key not in run.rows:
            continue
        new = store.read_identity(at, run.rows[key])
        try:
            arms.append((suite_task, new, find(new, key)))
        except IncompatibleRuns:
            if study.is_judged(suite_task.task):
                raise
    rows.prepare((i.digest for _, *pair in arms for i in pair), texts=rows.texts)
    measured, notes = list[Measurement](), list[str]()
    for (task, role, suite), new, base in arms:
        metrics, command = study.metrics[task.name], study.typed.command
        new_rows, base_rows = (rows.whole(rows_identity.digest) for rows_identity in (new, base))
        unscored = [name for name in metrics if any(name not in row.parts for row in (*new_rows, *base_rows))]
        if unscored:
            raise IncompatibleRuns(
                f"{task.name}: found stored rows without the metric {', '.join(unscored)}; expected "
                f"scores by every metric of the task as written now; next: {command('compare')}"
            )
        if sampled := weights.get(task.name):
            new_rows, base_rows = (
                [replace(row, weight=sampled[row.example_id]) for row in arm if row.example_id in sampled]
                for arm in (new_rows, base_rows)
            )
            for arm, identity in ((new_rows, new), (base_rows, base)):
                if len(arm) < len(sampled):
                    raise IncompatibleRuns(
                        f"{task.name}: found answers of {identity.weights_digest} to {count(len(arm))} of "
                        f"the {count(len(sampled))} sampled items; expected all of them; next: "
                        f"{command('compare', '--sequential')}"
                    )
        else:
            # Both arms have the same order.
            n_base, item_limit = len(base_rows), task.limit or len(base_rows)
            n = min(len(new_rows), n_base, task.limit or len(new_rows))
            if n < min(n_base, item_limit):
                notes.append(f"{task.name}: judged on {n} of {n_base} items, as many as the run answered")
            new_rows, base_rows = new_rows[:n], base_rows[:n]
        precision = new.precision if base.computes_apart else base.precision
        noise = store.flip_rates(at, run.base_digest, precision).get(task.name)
        # lm-eval tasks identify their documents themselves.
        is_known = role == "capability" and not task.lm_eval
        documents = store.document_digests(at, new.digest) if is_known else {}
        measured.append(Measurement(task, role, suite, metrics, base_rows, new_rows, noise, documents))
    return measured, notes


def find_baseline_identity(
    study: Study, run: Run, champion: Champion | None, identity: RowsIdentity, key: str
) -> RowsIdentity:
    """Find the identity of the baseline's rows of a task; it differs from the run's only in weights."""
    at, typed = study.store, study.typed
    baseline = replace(identity, weights_digest=champion.weights_digest if champion else run.base_digest)
    if at.parquet(baseline.digest).exists():
        return baseline
    if champion is None and identity.computes_apart:
        stored = store.list_base_rows(at, run, identity, key)
        if len(stored) == 1:
            return stored[0]
        if rows := study.base_arm(run).get(identity.task):
            return store.read_identity(at, rows)
        found = f"rows of the base, computed in {len(stored)} ways" if stored else "no rows of the base"
        raise IncompatibleRuns(
            f"{key}: found {found} with {run.run_id}; expected those of one run in {at.folder}; "
            f"next: add prompt: {{method: base}}, then {typed.command('compare')}"
        )
    if champion is None:
        same = (baseline.weights_digest, baseline.task, baseline.split)
        alike = (o for o in store.identities(at) if (o.weights_digest, o.task, o.split) == same)
        if stored_identity := next((o for o in alike if at.parquet(o.digest).exists()), None):
            comparison.check_comparable(stored_identity, baseline, prompting=True)
        raise IncompatibleRuns(
            f"{key}: found no rows of the base with the digests of {run.run_id}; expected them in "
            f"{at.folder / 'rows'}; next: {typed.command('compare', '--candidates', run.candidate)}"
        )
    digest = champion.rows.get(key)
    if digest is None or not at.parquet(digest).exists():
        raise IncompatibleRuns(
            f"{key}: found no rows of the champion {champion.run_id}; expected them in {at.folder / 'rows'}; "
            f"next: {typed.command('compare', '--candidates', champion.candidate)}, then "
            f"{typed.command('promote', champion.candidate)}, or --baseline base"
        )
    promoted = store.read_identity(at, digest)
    if run.experiment.endswith(FEWER) and promoted.task_version != identity.task_version:
        raise IncompatibleRuns(
            f"{key}: found sampled items of {run.run_id} and the whole task of the champion "
            f"{champion.run_id}; expected both on the same items; next: "
            f"{typed.command('promote', run.run_id)}, which answers whole tasks first, "
            f"{typed.command('compare', '--all-items', '--candidates', run.candidate)}, or --baseline base"
        )
    comparison.check_comparable(promoted, identity)
    return promoted


def confirm_in_fp32(study: Study, run: Run, measured: Sequence[Measurement]) -> dict[str, list[str]] | None:
    """List the pinned items that the candidate also loses in fp32; None if it was not re-scored in fp32."""
    at, lost_items = study.store, dict[str, list[str]]()
    for m in (m for m in measured if m.role == "regression"):
        identity = store.read_identity(at, run.rows[f"{m.task.name}/test"])
        # An endpoint has no fp32.
        in_fp32 = [identity] if identity.precision == "fp32" or identity.computes_apart else []
        if not in_fp32:
            wanted, variants = ("fp32", identity.template_digest), store.list_variants(at, identity)
            in_fp32 = [i for i in variants if (i.precision, i.template_digest) == wanted]
        if not in_fp32:
            return None
        new = store.read_rows(at, in_fp32[0].digest)[: len(m.base)]
        c = comparison.compare_rows(m.metrics[m.task.primary_metric], m.base, new)
        lost_items[m.task.name] = list(c.lost)
    return lost_items


def judge_stored_run(
    study: Study,
    run: Run,
    champion: Champion | None = None,
    *,
    items: Half | None = None,
    level: float | None = None,
) -> GateResult:
    """Judge a run against a champion, or against its own base.

    `items` cuts every suite task to one half of its items. On the half that a rescue searches, the target is
    not judged, because test rows must not choose. `level` replaces the policy's alpha for one of many tests.
    Raises IncompatibleRuns if rows of the baseline are missing or not comparable.
    """
    experiment, digest = study.experiment, champion.weights_digest if champion else run.base_digest
    policy = experiment.gate
    if run.weights_digest == run.base_digest:  # the base cannot gain over itself
        goal = policy.target.model_copy(update={"gain": None, "win_rate": None})
        policy = policy.model_copy(update={"target": goal})
    if items == "search":
        policy = policy.model_copy(update={"target": TargetPolicy()})
    arms = compare_with_baseline(
        study, run, digest, partial(find_baseline_identity, study, run, champion), items
    )
    unanswered = (t for t in study.suite_tasks() if f"{t.task.name}/test" not in run.rows)
    missing = [t.task.name for t in unanswered if may_decide(*t, experiment.gate)]
    # An artefact is judged on the target against the run that it was exported from.
    export, origin_id = None, str(run.parity.get("own_run") or "")
    if origin_id and items != "search":
        origin, against_origin = store.read_written_runs(study.store, [origin_id]).get(origin_id), None
        with suppress(IncompatibleRuns):
            against_origin = compare_on(study, run, origin)
        bounds = study.primary(study.target).range
        export = export_rule(against_origin, origin_id, study.target, policy, bounds)
    result = judge(
        arms.measured,
        policy,
        target=None if items == "search" else gate_target(study, run, policy),
        identical=run.weights_digest == digest,
        confirmed=confirm_in_fp32(study, run, arms.measured),
        controls=study.rows.controls_of(run),
        compared=arms.compared,
        missing=missing,
        level=level,
        cumulative=_judge_cumulative_loss(study, run, digest, items),
        export=export,
    )
    return replace(result, notes=arms.notes)


def read_both_arms(study: Study, run: Run, items: Half | None = None) -> list[Measurement]:
    """Return the rows of a run and its base on each task that both answered, or on one half of it."""
    find = partial(find_baseline_identity, study, run, None)
    return compare_with_baseline(study, run, run.base_digest, find, items).measured


def compare_with_baseline(
    study: Study, run: Run, digest: str, find: FindIdentity, items: Half | None = None
) -> ArmsOfPair:
    """Compare a run with the baseline of these weights, or reuse the result of a run with the same rows."""
    names = [f"{suite_task.task.name}/test" for suite_task in study.suite_tasks()]
    key = (digest, run.base_digest, run.weights_digest, items or "", *(run.rows.get(n, "") for n in names))
    if key not in study.compared:
        (measured, notes), gate, admitted = read_arms(study, run, find), study.experiment.gate, None
        if items is not None:
            measured = cut_to_half(measured, cut_tasks(measured, study.seed), items)
        else:
            # Shared by all runs that answered the same items of the tasks.
            items_key = (digest, *(f"{m.task.name} {len(m.base)}" for m in measured))
            if items_key not in study.admitted:
                study.admitted[items_key] = admit_tasks(measured, study.seed, gate)
            admitted = study.admitted[items_key]
        identical, seed = run.weights_digest == digest, study.seed
        compared = compare_arms(measured, gate, identical=identical, seed=seed, admitted=admitted)
        study.compared[key] = ArmsOfPair(measured, compared, tuple(notes))
    return study.compared[key]


def _judge_cumulative_loss(study: Study, run: Run, digest: str, items: Half | None) -> Rule | None:
    first = study.first_base
    if first in ("", digest):
        return None

    def find(identity: RowsIdentity, key: str) -> RowsIdentity:
        if first == run.base_digest:
            return find_baseline_identity(study, run, None, identity, key)
        first_identity = replace(identity, weights_digest=first)
        if not study.store.parquet(first_identity.digest).exists():
            raise IncompatibleRuns(
                f"{key}: found no rows of the first base {first}; expected them in "
                f"{study.store.folder / 'rows'}; next: {study.typed.command('compare')}, with "
                "base_model= that base"
            )
        return first_identity

    try:
        arms = compare_with_baseline(study, run, first, find, items)
    except IncompatibleRuns as error:
        return cumulative_rule(str(error).partition(";")[0], first)
    policy, identical = cumulative_policy(study.experiment.gate), run.weights_digest == first
    result = judge(arms.measured, policy, target=None, identical=identical, compared=arms.compared)
    return cumulative_rule(result.verdict, first)


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
    fallback, then = [_SAME], {r.name: r.outcome for r in before.rules}
    if changed_rules := [r for r in now.rules if then.get(r.name, "skipped") != r.outcome]:
        pairs = ((r.name, WORDS[then.get(r.name, "skipped")], WORDS[r.outcome]) for r in changed_rules)
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
