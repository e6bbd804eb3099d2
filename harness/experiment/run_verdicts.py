"""Verdicts on runs: gathers the inputs of the gate's rules from a study (the stored rows of an experiment).

Invariant: the same run, baseline and store give the same verdict in a comparison, the gate and a page.
Logs of other programs are judged in `lifecycle.gate_of_logs`.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from harness import store
from harness.analysis import comparison
from harness.analysis.admission import Measurement, admit_tasks, cut_tasks, cut_to_half
from harness.analysis.answers import compare_commonest_answers
from harness.analysis.candidate_facts import CandidateFacts, ItemVariances, best_untrained, is_fine_tuned
from harness.analysis.comparison import compare_on_target, correct_estimate, labels_missing
from harness.analysis.estimators import Comparison, Estimate
from harness.analysis.gate_rules_on_answers import cumulative_policy, cumulative_rule, export_rule
from harness.analysis.gate_verdict import GateResult, compare_arms, judge
from harness.analysis.seeds import family_of, item_variances, place_in_family
from harness.analysis.target_scores import TargetScore
from harness.analysis.verdict import Half, Rule, TargetFacts, Verdict, may_decide
from harness.errors import IncompatibleRuns
from harness.experiment.stored_rows import Facts, Runs
from harness.experiment.study import (
    ArmsOfPair,
    Study,
    SuiteTask,
    answers_on_target,
    best_untrained_run,
    correct_reached,
    find_best_untrained,
    find_prompt,
    is_answered,
    is_target_only,
    judge_labels,
    wins_of,
)
from harness.formatting import count
from harness.models.out_of_memory import HALVED
from harness.records import FEWER, RowsIdentity, Run
from harness.spec import GatePolicy, TargetPolicy, Task
from harness.store import Champion

# Returns the identity of a baseline's rows of a task, given the run's rows and their key in the run.
FindIdentity = Callable[[RowsIdentity, str], RowsIdentity]


class InterimVerdict(NamedTuple):
    """Verdict on a run at the interim analysis that settled it; `corrected` accounts for all fine-tunes.

    `alpha` is the one-sided level of that analysis, `n` the number of suite items that it used.
    """

    result: GateResult
    corrected: Verdict | None
    alpha: float
    n: int


class RunVerdicts(NamedTuple):
    """Facts of runs with verdicts, the gate's results by run, and the study."""

    facts: tuple[CandidateFacts, ...]
    results: dict[str, GateResult]
    study: Study


def judge_runs(study: Study, runs: Runs, reached: Facts) -> RunVerdicts:
    """Judge the finished runs, alone and among all fine-tunes; verdicts of interim analyses are kept.

    `reached` are the facts of each run alone (`facts_of_runs`).
    """
    facts, settled = add_comparisons(study, runs, reached), study.settled
    more_targets = dict[str, tuple[TargetScore, ...]]()
    pairs = pair_with_best(runs, facts) if study.experiment.gate.target.win_rate is not None else ()
    wins = {run.run_id: wins_of(study, run, best) for run, best in pairs}
    for task in study.experiment.more_targets:
        for run_id, score in _scores(study, runs, facts, task).items():
            more_targets[run_id] = (*more_targets.get(run_id, ()), score)
    # Baselines are only references to beat; their losses against the base are not judged.
    results = {
        run.run_id: settled[run.run_id].result if run.run_id in settled else judge_stored_run(study, run)
        for run in runs
        if run.state == "done" and not is_target_only(run.method, run.recipe)
    }
    # A candidate that answers no capability suite (a classifier) has no verdict.
    verdicts = {run_id: result.verdict for run_id, result in results.items() if result.tasks}
    judged = [
        replace(
            f,
            wins=wins.get(f.run_id),
            more_targets=more_targets.get(f.run_id, ()),
            verdict=verdicts.get(f.run_id) if f.target else None,
        )
        for f in facts
    ]
    corrected = []
    for f, run in zip(place_in_family(judged, family_of(study.experiment)), runs, strict=True):
        if run.run_id in settled:
            f = replace(f, corrected=settled[run.run_id].corrected)
        elif f.standing and f.verdict and f.standing.level != f.standing.alpha:
            f = replace(f, corrected=judge_stored_run(study, run, level=f.standing.level).verdict)
        corrected.append(f)
    return RunVerdicts(tuple(corrected), results, study)


def pair_with_best(runs: Runs, facts: Facts) -> list[tuple[Run, Run]]:
    """List the finished fine-tunes, each with the run of the best untrained candidate."""
    base = best_untrained_run(runs, facts)
    tuned = (run for f, run in zip(facts, runs, strict=True) if run.state == "done" and is_fine_tuned(f))
    return [(run, base) for run in tuned] if base else []


def add_comparisons(
    study: Study, runs: Runs, facts: Facts, target: Task | None = None
) -> list[CandidateFacts]:
    """Add the paired differences on a target from the best untrained candidate and from the plain prompt.

    Recipes with several seeds also get the variances of their mean over the items, unless people's labels
    correct a judge's grades: these vary from more than the items.
    """
    task = target or study.target
    metric, best = study.primary(task), best_untrained_run(runs, facts)
    labels = judge_labels(study.store, task, metric.name)
    by_name, seeds = {run.candidate: run for run in runs if run.state == "done"}, dict[str, list[Run]]()

    def against(run: Run, opponent: Run | None) -> Comparison | None:
        if opponent is None or run.state == "failed" or run.run_id == opponent.run_id:
            return None
        return compare_on(study, run, opponent, task)

    def over_items(seeds: Runs, *opponents: Run | None) -> ItemVariances | None:
        rows_of_seeds = [study.rows.cut(run, task) for run in seeds]
        rows = [study.rows.cut(opponent, task) if opponent else None for opponent in opponents]
        return item_variances(metric, rows_of_seeds, *rows) if len(rows_of_seeds) > 1 and not labels else None

    baselines = {r.run_id: (best, find_prompt(study, by_name.values(), r)) for r in runs}
    for run in (run for run in runs if run.state == "done"):
        seeds.setdefault(run.candidate, []).append(run)
    variances = {name: over_items(group, *baselines[group[0].run_id]) for name, group in seeds.items()}
    return [
        replace(
            f,
            vs_untrained=against(run, baselines[run.run_id][0]),
            vs_prompt=against(run, baselines[run.run_id][1]),
            over_items=variances.get(run.candidate) if run.state == "done" else None,
        )
        for f, run in zip(facts, runs, strict=True)
    ]


def _scores(study: Study, runs: Runs, facts: Facts, task: Task) -> dict[str, TargetScore]:
    metric, answered, answered_facts = study.primary(task), list[Run](), list[CandidateFacts]()
    labels = judge_labels(study.store, task, metric.name)
    for run, f in zip(runs, facts, strict=True):
        if is_answered(study, run, task):
            rows, validation = study.rows.with_drawn(run, task), None
            if f"{task.name}/validation" in run.rows:
                validation = comparison.estimate(metric, study.rows.cut(run, task, "validation")).score
            scored = replace(f, target=comparison.estimate(metric, rows), validation=validation)
            answered.append(run)
            answered_facts.append(correct_reached(metric, scored, rows, labels))
    compared = add_comparisons(study, answered, answered_facts, task)
    best = best_untrained(compared)
    return {
        f.run_id: TargetScore(task.name, metric.name, f.target, best, f.vs_untrained, f.vs_prompt)
        for f in compared
        if f.target is not None
    }


def compare_on(study: Study, run: Run, other_run: Run | None, task: Task | None = None) -> Comparison | None:
    """Compare two runs on a target, by default the deciding one; None if there is nothing to compare."""
    if other_run is None:
        return None
    task = task or study.target
    metric = study.primary(task)
    labels = judge_labels(study.store, task, metric.name)
    read_rows = study.rows.with_drawn if labels else study.rows.cut
    base, new = (read_rows(arm, task) for arm in (other_run, run))
    return compare_on_target(metric, base, new, labels, study.experiment.gate.max_errors)


def score_on(study: Study, run: Run, task: Task) -> Estimate:
    """Estimate a run's score on a target, corrected by people's labels."""
    metric, rows = study.primary(task), study.rows.with_drawn(run, task)
    labels = judge_labels(study.store, task, metric.name)
    return correct_estimate(metric, comparison.estimate(metric, rows), rows, labels)


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
    # lm-eval tasks identify their documents themselves.
    own_tasks = ((t, new) for t, new, _ in arms if t.role == "capability" and not t.task.lm_eval)
    documents = store.document_digests(at, (new.digest for _, new in own_tasks))
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
        if any(origin.halved for arm in (new, base) for origin in store.origins(at, arm.digest).values()):
            notes.append(f"{task.name}: {HALVED}")
        rates = store.flip_rates(at, run.base_digest, new if base.computes_apart else base)
        noise = rates.get(task.name)
        item_documents = documents.get(new.digest, {})
        measured.append(Measurement(task, role, suite, metrics, base_rows, new_rows, noise, item_documents))
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


def gate_target(study: Study, run: Run, policy: GatePolicy) -> TargetFacts | None:
    """Return the target's facts: score, and gain over the best untrained candidate if the policy needs it."""
    goal, task = policy.target, study.experiment.target
    limits = (goal.min, goal.gain, goal.win_rate, policy.mode_collapse)
    if not any(limit is not None for limit in limits) or f"{task.name}/test" not in run.rows:
        return None
    metric, compared = study.primary(task), [study.rows.with_drawn(run, task)]
    best = find_best_untrained(study, run) if (goal.gain, goal.win_rate) != (None, None) else None
    gain = wins = None
    if best and goal.gain is not None:
        gain = compare_on(study, run, best)
        compared.append(study.rows.with_drawn(best, task))
    if best and goal.win_rate is not None:
        wins = wins_of(study, run, best)
    missing = labels_missing(metric.name, judge_labels(study.store, task, metric.name), *compared)
    commonest: tuple[Comparison, ...] = ()
    if policy.mode_collapse is not None:
        alpha = study.experiment.gate.alpha
        commonest = compare_commonest_answers(*answers_on_target(study, run), alpha=alpha)
    missing = missing if policy.uncalibrated_judge == "refuse" else 0
    return TargetFacts(score_on(study, run, task), gain, missing, wins, commonest)


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
