"""Arms of a stored comparison: a run's rows, and the baseline's whose identities differ in weights alone.

Invariant: how an endpoint computes belongs to it; its base's rows are computed as in the newest run here on
that base.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from harness import comparison, store
from harness.errors import IncompatibleRuns
from harness.experiment.analysis.study import Study, SuiteTask
from harness.experiment.runs.stored_rows import documents_of, has_documents
from harness.formatting import count
from harness.gating import Measurement
from harness.metrics import Metric
from harness.models.openai_api import is_endpoint
from harness.records import FEWER, RowsIdentity, Run, SampleResult
from harness.spec import Task
from harness.store import Champion, Store

Rows = list[SampleResult]
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


def measure_arms(study: Study, run: Run, find: FindIdentity) -> tuple[list[Measurement], list[str]]:
    """Put both arms' rows beside each task that the run answered; returns notes on items left out as well.

    A task that the policy only reports is left out where the baseline has not answered it.
    """
    at, rows, weights = study.store, study.rows, study.weights(run)
    arms = [(one, *pair) for one in study.suite_tasks() if (pair := _find_pair(study, run, one, find))]
    store.read_documents(at, [own.digest for one, own, _ in arms if has_documents(one.task, one.role)])
    rows.prepare((digest for _, *pair in arms for digest in (of.digest for of in pair)), texts=rows.texts)
    measured, notes = list[Measurement](), list[str]()
    for (task, role, suite), own, base in arms:
        metrics = study.metrics[task.name]
        new_rows, base_rows = (rows.whole(of.digest) for of in (own, base))
        for one, of in ((own, new_rows), (base, base_rows)):
            _refuse_without(study, metrics, one, of)
        if drawn := weights.get(task.name):
            new_rows, base_rows = (
                _cut_to_sample(study, of, one, drawn) for one, of in ((own, new_rows), (base, base_rows))
            )
        else:
            new_rows, base_rows = _truncate_arms(new_rows, base_rows, task, notes)
        precision = own.precision if is_endpoint(base.engine) else base.precision
        noise = store.flip_rates(at, run.base_digest, precision).get(task.name)
        documents = documents_of(at, task, role, own.digest)
        measured.append(Measurement(task, role, suite, metrics, base_rows, new_rows, noise, documents))
    return measured, notes


def _find_pair(
    study: Study, run: Run, one: SuiteTask, find: FindIdentity
) -> tuple[RowsIdentity, RowsIdentity] | None:
    """Find the rows of both arms; None where the run has none, or the baseline none of a reported task."""
    key = f"{one.task.name}/test"
    if key not in run.rows:
        return None
    own = store.read_identity(study.store, run.rows[key])
    try:
        return own, find(own, key)
    except IncompatibleRuns:
        if study.is_judged(one.task):
            raise
        return None


def find_baseline_identity(
    study: Study, run: Run, champion: Champion | None, own: RowsIdentity, key: str
) -> RowsIdentity:
    """Find the baseline's rows of a task: those whose identity differs from the run's in weights alone."""
    at, typed = study.store, study.typed
    weights = champion.weights_digest if champion else run.base_digest
    wanted = replace(own, weights_digest=weights)
    if at.parquet(wanted.digest).exists():
        return wanted
    if champion is None and is_endpoint(own.engine):
        return _endpoint_base_identity(study, wanted, key, run)
    if champion is None:
        if (other := _find_same_task(at, wanted)) is not None:
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
    found = store.read_identity(at, digest)
    if run.experiment.endswith(FEWER) and found.task_version != own.task_version:
        raise IncompatibleRuns(
            f"{key}: found sampled items of {run.run_id} and the whole task of the champion "
            f"{champion.run_id}; expected both on the same items; next: "
            f"{typed.command('promote', run.run_id)}, which answers whole tasks first, "
            f"{typed.command('compare', '--all-items', '--candidates', run.candidate)}, or --baseline base"
        )
    comparison.check_comparable(found, own)
    return found


def _endpoint_base_identity(study: Study, wanted: RowsIdentity, key: str, run: Run) -> RowsIdentity:
    """Find the rows of an endpoint's base that compare used: computed as in the newest run on that base."""
    at = study.store
    there = {other.digest: other for other in _computational_variants(at, wanted)}
    runs = (r for r in store.list_runs(at, run.experiment) if r.base_digest == run.base_digest)
    newest = [r.rows[key] for r in runs if r.state == "done" and key in r.rows]
    newest = [rows for rows in newest if at.parquet(rows).exists()]
    for rows in reversed(newest):
        as_base = replace(store.read_identity(at, rows), weights_digest=run.base_digest)
        if as_base.digest in there:
            return there[as_base.digest]
    if len(there) == 1:
        return next(iter(there.values()))
    if own := study.base_arm(run).get(wanted.task):
        return store.read_identity(at, own)
    found = f"rows of the base that were computed in {len(there)} ways" if there else "no rows of the base"
    raise IncompatibleRuns(
        f"{key}: found {found} with {run.run_id}; expected those of one run in {at.folder}; "
        f"next: add prompt: {{method: base}}, then {study.typed.command('compare')}"
    )


def _computational_variants(at: Store, own: RowsIdentity) -> Iterator[RowsIdentity]:
    """Yield the identities of whole rows that differ at most in how they were computed."""
    how = ("template_digest", "precision", "engine", "layout_digest", "device_class")
    for other in store.identities(at):
        alike = replace(own, **{name: getattr(other, name) for name in how})
        if other == alike and at.parquet(other.digest).exists():
            yield other


def _find_same_task(at: Store, wanted: RowsIdentity) -> RowsIdentity | None:
    """Find rows of the same weights and task that were computed in another way."""
    same = (wanted.weights_digest, wanted.task, wanted.split)
    alike = (o for o in store.identities(at) if (o.weights_digest, o.task, o.split) == same)
    return next((other for other in alike if at.parquet(other.digest).exists()), None)


def _refuse_without(study: Study, metrics: Mapping[str, Metric], identity: RowsIdentity, rows: Rows) -> None:
    if missing := [name for name in metrics if any(name not in row.parts for row in rows)]:
        raise IncompatibleRuns(
            f"{identity.task}: found stored rows without the metric {', '.join(missing)}; expected scores by "
            f"every metric of the task as written now; next: {study.typed.command('compare')}"
        )


def _cut_to_sample(study: Study, rows: Rows, identity: RowsIdentity, weights: Mapping[str, float]) -> Rows:
    """Cut the rows of a task to the sampled items, each with its inclusion weight."""
    kept = [replace(row, weight=weights[row.example_id]) for row in rows if row.example_id in weights]
    if len(kept) < len(weights):
        raise IncompatibleRuns(
            f"{identity.task}: found answers of {identity.weights_digest} to {count(len(kept))} of the "
            f"{count(len(weights))} sampled items; expected all of them; next: "
            f"{study.typed.command('compare', '--sequential')}"
        )
    return kept


def _truncate_arms(new: Rows, base: Rows, task: Task, notes: list[str]) -> tuple[Rows, Rows]:
    """Cut both arms, whose order is the same, to the task's limit and to the shorter one."""
    n = min(len(new), len(base), task.limit or len(new))
    if n < min(len(base), task.limit or len(base)):
        notes.append(f"{task.name}: judged on {n} of {len(base)} items, as many as the run answered")
    return new[:n], base[:n]


def confirm_in_fp32(study: Study, run: Run, measured: Sequence[Measurement]) -> dict[str, list[str]] | None:
    """Name the pinned items that the candidate loses in fp32 too; None where it was not re-scored so."""
    at, found = study.store, dict[str, list[str]]()
    for m in measured:
        own = store.read_identity(at, run.rows[f"{m.task.name}/test"])
        if m.role != "regression":
            continue
        # What an endpoint answers is what it is; it cannot be evaluated in fp32.
        exact = own if own.precision == "fp32" or is_endpoint(own.engine) else _find_fp32(at, own)
        if exact is None:
            return None
        new = store.read_rows(at, exact.digest)[: len(m.base)]
        c = comparison.compare_rows(m.metrics[m.task.primary_metric], m.base, new)
        found[m.task.name] = list(c.lost)
    return found


def _find_fp32(at: Store, own: RowsIdentity) -> RowsIdentity | None:
    """Find the rows of the same weights, items and prompts that were computed in fp32."""
    known = _computational_variants(at, own)
    return next((o for o in known if (o.precision, o.template_digest) == ("fp32", own.template_digest)), None)
