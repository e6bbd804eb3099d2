"""Verdict on a run against a baseline: the one place that gathers the inputs of the gate's rules.

Invariant: pure; the same run, baseline and store give the same verdict in a comparison, the gate and a page.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

from harness import store
from harness.analysis import comparison, gating
from harness.analysis.admission import Measurement, admit_tasks, cut_tasks, cut_to_half
from harness.analysis.gating import GateResult
from harness.analysis.rules import (
    cumulative_policy,
    cumulative_rule,
    export_rule,
)
from harness.analysis.verdict import Half, Rule, may_decide
from harness.errors import IncompatibleRuns
from harness.experiment.stored_rows import Rows, documents_of
from harness.experiment.study import ArmsOfPair, Study, SuiteTask
from harness.experiment.target_facts import compare_on, target_facts
from harness.formatting import count
from harness.records import FEWER, RowsIdentity, Run
from harness.spec import TargetPolicy
from harness.store import Champion

FindIdentity = Callable[
    [RowsIdentity, str], RowsIdentity
]  # of a run's rows of a task, and their key in the run


def find_first_base_identity(study: Study, run: Run, own: RowsIdentity, key: str) -> RowsIdentity:
    """Find the first base's rows of a task, as the run's were computed."""
    first = study.first_base
    if first == run.base_digest:
        return find_baseline_identity(study, run, None, own, key)
    wanted = replace(own, weights_digest=first)
    if not study.store.parquet(wanted.digest).exists():
        raise IncompatibleRuns(
            f"{key}: found no rows of the first base {first}; expected them in "
            f"{study.store.folder / 'rows'}; next: {study.typed.command('compare')}, with "
            "base_model= that base"
        )
    return wanted


def measure_over(study: Study, run: Run, weights: str) -> list[Measurement]:
    """Pair a run's rows with those of other weights, computed alike; none if some are not stored."""

    def find(own: RowsIdentity, key: str) -> RowsIdentity:
        return replace(own, weights_digest=weights)

    keys = (f"{one.task.name}/test" for one in study.suite_tasks())
    own = [store.read_identity(study.store, run.rows[key]) for key in keys if key in run.rows]
    stored = all(study.store.parquet(find(one, "").digest).exists() for one in own)
    return measure_arms(study, run, find)[0] if stored else []


def measure_arms(study: Study, run: Run, find: FindIdentity) -> tuple[list[Measurement], list[str]]:
    """Return both arms' rows of each task that the run answered, and notes on items left out.

    A task that the policy only reports is left out if the baseline has not answered it.
    """
    at, rows, weights = study.store, study.rows, study.weights(run)
    arms = list[tuple[SuiteTask, RowsIdentity, RowsIdentity]]()
    for suite_task in study.suite_tasks():
        key = f"{suite_task.task.name}/test"
        if key not in run.rows:
            continue
        own = store.read_identity(at, run.rows[key])
        try:
            arms.append((suite_task, own, find(own, key)))
        except IncompatibleRuns:
            if study.is_judged(suite_task.task):
                raise
    rows.prepare((digest for _, *pair in arms for digest in (of.digest for of in pair)), texts=rows.texts)
    measured, notes = list[Measurement](), list[str]()
    for (task, role, suite), own, base in arms:
        metrics = study.metrics[task.name]
        new_rows, base_rows = (rows.whole(of.digest) for of in (own, base))
        unscored = [name for name in metrics if any(name not in row.parts for row in (*new_rows, *base_rows))]
        if unscored:
            raise IncompatibleRuns(
                f"{task.name}: found stored rows without the metric {', '.join(unscored)}; expected "
                f"scores by every metric of the task as written now; next: {study.typed.command('compare')}"
            )
        if drawn := weights.get(task.name):
            new_rows, base_rows = (
                _cut_to_sample(study, of, one, drawn) for one, of in ((own, new_rows), (base, base_rows))
            )
        else:
            # The order of both arms is the same.
            n_base, most = len(base_rows), task.limit or len(base_rows)
            n = min(len(new_rows), n_base, task.limit or len(new_rows))
            if n < min(n_base, most):
                notes.append(f"{task.name}: judged on {n} of {n_base} items, as many as the run answered")
            new_rows, base_rows = new_rows[:n], base_rows[:n]
        precision = own.precision if base.computes_apart else base.precision
        noise = store.flip_rates(at, run.base_digest, precision).get(task.name)
        documents = documents_of(at, task, role, own.digest)
        measured.append(Measurement(task, role, suite, metrics, base_rows, new_rows, noise, documents))
    return measured, notes


def find_baseline_identity(
    study: Study, run: Run, champion: Champion | None, own: RowsIdentity, key: str
) -> RowsIdentity:
    """Find the baseline's rows of a task, whose identity differs from the run's only in weights."""
    at, typed = study.store, study.typed
    weights = champion.weights_digest if champion else run.base_digest
    wanted = replace(own, weights_digest=weights)
    if at.parquet(wanted.digest).exists():
        return wanted
    if champion is None and own.computes_apart:
        there = store.list_base_rows(at, run, own, key)
        if len(there) == 1:
            return there[0]
        if rows := study.base_arm(run).get(own.task):
            return store.read_identity(at, rows)
        found = f"rows of the base, computed in {len(there)} ways" if there else "no rows of the base"
        raise IncompatibleRuns(
            f"{key}: found {found} with {run.run_id}; expected those of one run in {at.folder}; "
            f"next: add prompt: {{method: base}}, then {typed.command('compare')}"
        )
    if champion is None:
        same = (wanted.weights_digest, wanted.task, wanted.split)
        alike = (o for o in store.identities(at) if (o.weights_digest, o.task, o.split) == same)
        if other := next((o for o in alike if at.parquet(o.digest).exists()), None):
            comparison.check_comparable(other, wanted, prompting=True)
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
    if run.experiment.endswith(FEWER) and promoted.task_version != own.task_version:
        raise IncompatibleRuns(
            f"{key}: found sampled items of {run.run_id} and the whole task of the champion "
            f"{champion.run_id}; expected both on the same items; next: "
            f"{typed.command('promote', run.run_id)}, which answers whole tasks first, "
            f"{typed.command('compare', '--all-items', '--candidates', run.candidate)}, or --baseline base"
        )
    comparison.check_comparable(promoted, own)
    return promoted


def _cut_to_sample(study: Study, rows: Rows, identity: RowsIdentity, weights: Mapping[str, float]) -> Rows:
    kept = [replace(row, weight=weights[row.example_id]) for row in rows if row.example_id in weights]
    if len(kept) < len(weights):
        raise IncompatibleRuns(
            f"{identity.task}: found answers of {identity.weights_digest} to {count(len(kept))} of the "
            f"{count(len(weights))} sampled items; expected all of them; next: "
            f"{study.typed.command('compare', '--sequential')}"
        )
    return kept


def confirm_in_fp32(study: Study, run: Run, measured: Sequence[Measurement]) -> dict[str, list[str]] | None:
    """Name the pinned items that the candidate also loses in fp32; None if it was not re-scored in fp32."""
    at, found = study.store, dict[str, list[str]]()
    for m in measured:
        own = store.read_identity(at, run.rows[f"{m.task.name}/test"])
        if m.role != "regression":
            continue
        # An endpoint cannot be evaluated in fp32.
        exact = own if own.precision == "fp32" or own.computes_apart else None
        if exact is None:
            known = (o for o in store.list_variants(at, own) if o.template_digest == own.template_digest)
            exact = next((other for other in known if other.precision == "fp32"), None)
        if exact is None:
            return None
        new = store.read_rows(at, exact.digest)[: len(m.base)]
        c = comparison.compare_rows(m.metrics[m.task.primary_metric], m.base, new)
        found[m.task.name] = list(c.lost)
    return found


def judge_stored_run(
    study: Study,
    run: Run,
    champion: Champion | None = None,
    *,
    items: Half | None = None,
    level: float | None = None,
) -> GateResult:
    """Judge a run against a champion, or against its own base.

    `items` cuts every suite task to one half of its items; on the half on which a rescue searches the target
    is not judged, because test rows choose nothing. `level` replaces the policy's alpha for one of many.

    Raises:
        IncompatibleRuns: rows of the baseline are missing, or must not be compared.
    """
    experiment, digest = study.experiment, champion.weights_digest if champion else run.base_digest
    policy = experiment.gate
    if run.weights_digest == run.base_digest:  # the base's own weights have nothing to gain
        goal = policy.target.model_copy(update={"gain": None, "win_rate": None})
        policy = policy.model_copy(update={"target": goal})
    if items == "search":
        policy = policy.model_copy(update={"target": TargetPolicy()})
    arms = compare_arms(study, run, digest, partial(find_baseline_identity, study, run, champion), items)
    missing = [
        one.task.name
        for one in study.suite_tasks()
        if may_decide(*one, experiment.gate) and f"{one.task.name}/test" not in run.rows
    ]
    # An artefact is judged on the target against the run that it was exported from.
    export, own_run = None, str(run.parity.get("own_run") or "")
    if own_run and items != "search":
        own, against_own = store.read_written_runs(study.store, [own_run]).get(own_run), None
        with suppress(IncompatibleRuns):
            against_own = compare_on(study, run, own)
        export = export_rule(against_own, own_run, study.target, policy)
    result = gating.judge(
        arms.measured,
        policy,
        target=None if items == "search" else target_facts(study, run, policy),
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


def measure(study: Study, run: Run, items: Half | None = None) -> list[Measurement]:
    """Return a run's and its base's rows of each task that both answered, or of one half of it."""
    return compare_arms(
        study, run, run.base_digest, partial(find_baseline_identity, study, run, None), items
    ).measured


def compare_arms(
    study: Study, run: Run, digest: str, find: FindIdentity, items: Half | None = None
) -> ArmsOfPair:
    """Compare a run with the baseline of a digest, or reuse the result of a run with the same rows."""
    names = [f"{one.task.name}/test" for one in study.suite_tasks()]
    key = (digest, run.base_digest, run.weights_digest, items or "", *(run.rows.get(n, "") for n in names))
    if key not in study.compared:
        measured, notes = measure_arms(study, run, find)
        admitted = None
        if items is not None:
            measured = cut_to_half(measured, cut_tasks(measured, study.seed), items)
        else:
            # Once for all runs that answered the same items of the tasks.
            items_key = (digest, *(f"{m.task.name} {len(m.base)}" for m in measured))
            if items_key not in study.admitted:
                study.admitted[items_key] = admit_tasks(measured, study.seed, study.experiment.gate)
            admitted = study.admitted[items_key]
        compared = gating.compare_arms(
            measured,
            study.experiment.gate,
            identical=run.weights_digest == digest,
            seed=study.seed,
            admitted=admitted,
        )
        study.compared[key] = ArmsOfPair(measured, compared, tuple(notes))
    return study.compared[key]


def _judge_cumulative_loss(study: Study, run: Run, digest: str, items: Half | None) -> Rule | None:
    first = study.first_base
    if first in ("", digest):
        return None
    try:
        arms = compare_arms(study, run, first, partial(find_first_base_identity, study, run), items)
    except IncompatibleRuns as error:
        return cumulative_rule(str(error).partition(";")[0], first)
    found = gating.judge(
        arms.measured,
        cumulative_policy(study.experiment.gate),
        target=None,
        identical=run.weights_digest == first,
        compared=arms.compared,
    )
    return cumulative_rule(found.verdict, first)
