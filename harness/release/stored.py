"""Gate of stored runs against the base or the champion, without the model, its machine or its data.

Invariant: both arms' rows have identities that differ in their weights alone, so what is
compared are the same items, prompts, versions, precision and layout, or nothing; items that were added,
mended or dropped since are refused by the digest that differs. How an endpoint computes belongs to it;
its base's rows are computed as in the newest run here on that base.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from harness import comparison, config, decision, gating, plugins, store
from harness.comparison import Estimate
from harness.comparison.corrected_comparison import correct_comparison, correct_estimate, labels_missing
from harness.comparison.estimators import is_judge
from harness.comparison.labelled_answers import Labels, latest_labels
from harness.config import Loaded
from harness.config.rubrics import current_labels
from harness.data import version_of_test
from harness.decision import CandidateFacts
from harness.errors import CandidateFailed, IncompatibleRuns, Problem, UserError, did_you_mean
from harness.evaluation import lm_eval
from harness.evaluation.rows.row_sets import rows_version
from harness.experiment.analysis.human_labels import correct_reached
from harness.experiment.analysis.verdict_records import record_verdict, task_settings, verdict_change
from harness.experiment.preparation import metrics_of, with_lm_eval
from harness.experiment.runs.candidate_result import facts_on_target
from harness.experiment.runs.stored_rows import controls_of, documents_of
from harness.gating import GateResult, Measurement, Rule, TargetFacts
from harness.metrics import Metric, load_metrics
from harness.models.openai_api import WHO_ANSWERS, is_endpoint
from harness.records import FEWER, RowsIdentity, Run, SampleResult, SamplingRecord
from harness.release.champions import Champion, read_champion
from harness.release.graded_rows import refuse_other_grades, refuse_regraded
from harness.release.sampled import analysis_settings, sampled_rows, sampling_note, sampling_of
from harness.spec import Experiment, GatePolicy, Recipe, Role, Task
from harness.store import Store

Baseline = Literal["base", "champion"]
Rows = list[SampleResult]


def gate_stored(
    path: Path,
    candidate: str,
    overrides: Sequence[str] = (),
    baseline: Baseline | None = None,
    seed: int | None = None,
) -> list[GateResult]:
    """Judge a candidate's stored runs against the champion where there is one, else against the base.

    `candidate` is the name of one in the file, or the id of a run. Every seed is judged, or the one `seed`.

    Raises:
        UserError: the file cannot be used, or nobody has this name.
        IncompatibleRuns: a run or the baseline is missing, their rows differ in more than weights, or
            the files of a task have changed since.
    """
    loaded = config.load(path, overrides)
    runs_folder = Store(loaded.folder / "runs")
    champion = read_champion(loaded.folder, loaded.experiment.target.name)
    if baseline == "champion" and champion is None:
        raise IncompatibleRuns(
            f"champion of {loaded.experiment.target.name}: found none in {loaded.folder / 'baselines'}; "
            "expected a promoted run; next: harness promote RUN, or --baseline base"
        )
    against = None if baseline == "base" else champion
    found = candidate_runs(loaded, runs_folder, candidate, sampled=True)
    if any(run.recipe.get("role") == "baseline" and plugins.stored_method(run.method).tunes for run in found):
        expected, step = "a candidate that is judged", "name another, or leave role out of its recipe"
        raise UserError(Problem(candidate, "a baseline, measured on the target alone", expected, step))
    runs = _select_seed(found, candidate, seed)
    return [judge_run(loaded, runs_folder, run, against) for run in runs]


def _asked(recipe: Recipe) -> Recipe:
    """Return a recipe without what changes no answer of an endpoint: prices, patience, the key's variable."""
    if plugins.stored_method(recipe.method).makes != "endpoint":
        return recipe
    named = {name: recipe.params[name] for name in WHO_ANSWERS if name in recipe.params}
    return recipe.model_copy(update={"params": named})


def _select_seed(runs: list[Run], candidate: str, seed: int | None) -> list[Run]:
    """Keep the runs of one seed; all of them where none is named."""
    kept = [run for run in runs if seed in (None, run.seed)]
    if not kept:
        there = ", ".join(str(run.seed) for run in runs)
        raise IncompatibleRuns(
            f"{candidate}: found no run of seed {seed}; expected one of its seeds ({there}); "
            "next: name one of these, or none for the worst of all"
        )
    return kept


def candidate_runs(loaded: Loaded, at: Store, candidate: str, *, sampled: bool = False) -> list[Run]:
    """Find the finished runs of a candidate as written now, the newest of each seed, or one run by its id.

    Where `sampled`, runs of `--sequential` stand in for seeds that have not answered whole tasks.

    Raises:
        UserError: neither a candidate nor a run has this name.
        IncompatibleRuns: the candidate has no finished run, or only of another recipe.
    """
    known, stored = loaded.experiment.candidates, store.list_runs(at)
    if candidate in known:
        recipe = known[candidate]
        whole = loaded.experiment.name
        of = (f"{whole}{FEWER}", whole) if sampled else (whole,)
        own = [r for name in of for r in stored if (r.candidate, r.experiment) == (candidate, name)]
        done = [
            r for r in own if r.state == "done" and _asked(Recipe.model_validate(r.recipe)) == _asked(recipe)
        ]
        newest = {r.seed: r for r in done if r.seed in loaded.experiment.seeds}
        if newest:
            _refuse_missing_seeds(candidate, newest, loaded.experiment.seeds)
            return [newest[seed] for seed in sorted(newest)]
        found = "only runs of another recipe, or failed ones" if own else "no run"
        raise IncompatibleRuns(
            f"{at.folder}: found {found} of {candidate}; expected a finished run of it as written now; "
            f"next: harness compare --candidates {candidate}"
        )
    by_id = {r.run_id: r for r in stored if r.state == "done"}
    if candidate in by_id:
        return [by_id[candidate]]
    hint = did_you_mean(candidate, [*known, *by_id])
    raise UserError(Problem("candidate", f"{candidate!r}", "a candidate of the file, or a run's id", hint))


def _refuse_missing_seeds(candidate: str, runs: Mapping[int, Run], seeds: Iterable[int]) -> None:
    """Refuse a recipe of which some seeds were not trained: it passes only with all of them."""
    trained = any(plugins.stored_method(r.method).seeded for r in runs.values())
    missing = sorted(set(seeds) - set(runs)) if trained else []
    if missing:
        found = f"no finished run of seed {', '.join(map(str, missing))}"
        raise IncompatibleRuns(
            f"{candidate}: found {found}; expected one of each, because a recipe passes with all of them; "
            f"next: harness compare --candidates {candidate}, or seeds=[{', '.join(map(str, sorted(runs)))}]"
        )


def judge_run(loaded: Loaded, at: Store, run: Run, champion: Champion | None) -> GateResult:
    """Judge one run against a champion, or against its own base.

    Raises:
        UserError: the run has no capability to lose.
        IncompatibleRuns: the baseline is missing, or rows must not be compared.
    """
    sampling = sampling_of(loaded.experiment, at, run)
    loaded = analysis_settings(loaded, run, sampling) if sampling else loaded
    experiment, catalogue = with_lm_eval(loaded.experiment)
    target = experiment.target
    tasks: list[tuple[Task, Role, str]] = [(t, s.role, s.name) for s in experiment.suites for t in s.tasks]
    unanswered = [named for named in tasks if f"{named[0].name}/test" not in run.rows]
    if tasks and len(unanswered) == len(tasks):
        found = f"{run.candidate}, which answered no task of the suites"
        raise UserError(
            Problem("--candidate", found, "one with capability to lose", "harness compare --gate")
        )
    refuse_changed(experiment, catalogue, at, run, sampling)
    refuse_regraded(experiment, at, run)
    left_out = [task.name for task, _, _ in tasks if not gating.is_judged(task.name, experiment.gate)]
    notes = [f"not named by gate.tasks, left out: {', '.join(left_out)}"] if left_out else []
    notes += [sampling_note(sampling)] if sampling else []
    tasks = [named for named in tasks if named[0].name not in left_out]
    known = {t.name: metrics_of(t, catalogue) for t, _, _ in tasks}
    baseline = partial(_baseline_identity, at, run=run, champion=champion)
    arms = partial(_measurements, at, run, tasks=tasks, known=known, sampling=sampling)
    measured = arms(baseline, notes=notes)
    identical = run.weights_digest == (champion.weights_digest if champion else run.base_digest)
    policy = gating.applicable_policy(experiment.gate, trained=run.weights_digest != run.base_digest)
    result = gating.judge(
        measured,
        policy,
        target=_target(loaded, at, run, policy, target),
        identical=identical,
        confirmed=_confirm_in_fp32(at, run, measured),
        controls=controls_of(at, run),
        seed=experiment.seeds[0],
        cumulative=_cumulative(experiment, at, run, champion, arms) if champion else None,
        missing=[named[0].name for named in unanswered if gating.may_decide(*named, experiment.gate)],
    )
    against = f"the champion {champion.candidate} ({champion.run_id})" if champion else "the base"
    digest = champion.weights_digest if champion else run.base_digest
    settings = {t.name: task_settings(t, role, known[t.name][t.primary_metric]) for t, role, _ in tasks}
    if changed := verdict_change(at, run, result.verdict, experiment.gate, against, digest, settings):
        notes.append(changed)
    record_verdict(at, run, result.verdict, experiment.gate, against, digest, settings)
    n_members = count_members(experiment, run.candidate)
    return replace(result, candidate=run.label, baseline=against, notes=tuple(notes), n_members=n_members)


def count_members(experiment: Experiment, candidate: str) -> int:
    """Count the members of the family that a fine-tune belongs to; 1 of any other candidate."""
    family = decision.family_of(experiment)
    return family.size if candidate in family.members else 1


def _cumulative(
    experiment: Experiment,
    at: Store,
    run: Run,
    champion: Champion,
    arms: Callable[..., list[Measurement]],
) -> Rule | None:
    """Judge a run against the first base by that base's own rows; None where the champion is that base.

    `arms` puts the run's rows beside those of a baseline.
    """
    first = champion.first_base or champion.base_digest
    if champion.weights_digest == first:
        return None
    baseline = partial(_first_base_identity, at, run=run, first=first)
    try:
        measured = arms(baseline, notes=[])
    except IncompatibleRuns as error:
        return gating.unmeasured_rule(str(error).partition(";")[0], first)
    identical = run.weights_digest == first
    policy = gating.cumulative_policy(experiment.gate)
    found = gating.judge(measured, policy, target=None, identical=identical, seed=experiment.seeds[0])
    return gating.cumulative_rule(found.verdict, first)


def _first_base_identity(at: Store, own: RowsIdentity, key: str, run: Run, first: str) -> RowsIdentity:
    """Find the first base's rows of a task, as the run's were computed."""
    if first == run.base_digest:
        return _baseline_identity(at, own, key, run, None)
    wanted = replace(own, weights_digest=first)
    if not at.parquet(wanted.digest).exists():
        raise IncompatibleRuns(f"{key}: found no rows of the first base {first}; next: harness compare on it")
    return wanted


def _measurements(
    at: Store,
    run: Run,
    baseline: Callable[[RowsIdentity, str], RowsIdentity],
    *,
    tasks: Iterable[tuple[Task, Role, str]],
    known: Mapping[str, dict[str, Metric]],
    sampling: SamplingRecord | None,
    notes: list[str],
) -> list[Measurement]:
    """Put both arms' rows beside each task that the run answered, all of them read at once."""
    arms: list[tuple[Task, Role, str, RowsIdentity, RowsIdentity]] = []
    for task, role, suite in tasks:
        if (key := f"{task.name}/test") in run.rows:
            own = store.read_identity(at, run.rows[key])
            arms.append((task, role, suite, own, baseline(own, key)))
    rows = store.read_many(at, [one.digest for *_, own, base in arms for one in (own, base)], texts=False)
    measured = []
    for task, role, suite, own, base in arms:
        metrics = known[task.name]
        for one in (own, base):
            _refuse_without(metrics, one, rows[one.digest])
        new_rows, base_rows = rows[own.digest], rows[base.digest]
        if sampling and (weights := sampling.weights.get(task.name)):
            new_rows = sampled_rows(new_rows, own, weights)
            base_rows = sampled_rows(base_rows, base, weights)
        else:
            new_rows, base_rows = _truncate_arms(new_rows, base_rows, task, notes)
        precision = own.precision if is_endpoint(base.engine) else base.precision
        noise = store.flip_rates(at, run.base_digest, precision).get(task.name)
        documents = documents_of(at, task, role, own.digest)
        measured.append(Measurement(task, role, suite, metrics, base_rows, new_rows, noise, documents))
    return measured


def _baseline_identity(
    at: Store, own: RowsIdentity, key: str, run: Run, champion: Champion | None
) -> RowsIdentity:
    """Find the baseline's rows of a task: those whose identity differs from the run's in weights alone."""
    weights = champion.weights_digest if champion else run.base_digest
    wanted = replace(own, weights_digest=weights)
    if at.parquet(wanted.digest).exists():
        return wanted
    if champion is None and is_endpoint(own.engine):
        return _endpoint_base_identity(at, wanted, key, run)
    if champion is None:
        if (other := _same_task(at, wanted)) is not None:
            comparison.check_comparable(other, wanted, prompting=True)
        raise IncompatibleRuns(
            f"{key}: found no rows of the base with the digests of {run.run_id}; expected them in "
            f"{at.folder / 'rows'}; next: harness compare --candidates {run.candidate}"
        )
    digest = champion.rows.get(key)
    if digest is None or not at.parquet(digest).exists():
        raise IncompatibleRuns(
            f"{key}: found no rows of the champion {champion.run_id}; expected them in {at.folder / 'rows'}; "
            "next: compare it again and promote it, or --baseline base"
        )
    found = store.read_identity(at, digest)
    if run.experiment.endswith(FEWER) and found.task_version != own.task_version:
        raise IncompatibleRuns(
            f"{key}: found sampled items of {run.run_id} and the whole task of the champion "
            f"{champion.run_id}; expected both on the same items; next: harness promote {run.run_id}, which "
            f"answers whole tasks first, harness compare --all-items --candidates {run.candidate}, or "
            "--baseline base"
        )
    comparison.check_comparable(found, own)
    return found


def _endpoint_base_identity(at: Store, wanted: RowsIdentity, key: str, run: Run) -> RowsIdentity:
    """Find the rows of an endpoint's base that compare used: computed as in the newest run on that base.

    Raises:
        IncompatibleRuns: there are none, or several and no run says which.
    """
    there = {other.digest: other for other in _computational_variants(at, wanted)}
    runs = (r for r in store.list_runs(at, run.experiment) if r.base_digest == run.base_digest)
    stored = [r.rows[key] for r in runs if r.state == "done" and at.parquet(r.rows.get(key, "")).exists()]
    for rows in reversed(stored):
        as_base = replace(store.read_identity(at, rows), weights_digest=run.base_digest)
        if as_base.digest in there:
            return there[as_base.digest]
    if len(there) == 1:
        return next(iter(there.values()))
    found = f"rows of the base that were computed in {len(there)} ways" if there else "no rows of the base"
    raise IncompatibleRuns(
        f"{key}: found {found} beside {run.run_id}; expected those of one run in {at.folder}; "
        "next: add prompt: {method: base}, then harness compare"
    )


def _computational_variants(at: Store, own: RowsIdentity) -> Iterator[RowsIdentity]:
    """Yield the identities of whole rows that differ at most in how they were computed."""
    how = ("template_digest", "precision", "engine", "layout_digest", "device_class")
    for path in sorted((at.folder / "rows").glob("*/identity.json")):
        other = store.read_identity(at, path.parent.name)
        alike = replace(own, **{name: getattr(other, name) for name in how})
        if other == alike and at.parquet(path.parent.name).exists():
            yield other


def _same_task(at: Store, wanted: RowsIdentity) -> RowsIdentity | None:
    """Find rows of the same weights and task that were computed in another way."""
    for path in sorted((at.folder / "rows").glob("*/identity.json")):
        found = store.read_identity(at, path.parent.name)
        same = (found.weights_digest, found.task, found.split)
        if same == (wanted.weights_digest, wanted.task, wanted.split) and at.parquet(found.digest).exists():
            return found
    return None


def _refuse_without(metrics: Mapping[str, Metric], identity: RowsIdentity, rows: Rows) -> None:
    if missing := [name for name in metrics if any(name not in row.parts for row in rows)]:
        raise IncompatibleRuns(
            f"{identity.task}: found stored rows without the metric {', '.join(missing)}; expected scores by "
            "every metric of the task as written now; next: harness compare"
        )


def _truncate_arms(new: Rows, base: Rows, task: Task, notes: list[str]) -> tuple[Rows, Rows]:
    """Cut both arms, whose order is the same, to the task's limit and to the shorter one."""
    n = min(len(new), len(base), task.limit or len(new))
    if n < min(len(base), task.limit or len(base)):
        notes.append(f"{task.name}: judged on {n} of {len(base)} items, as many as the run answered")
    return new[:n], base[:n]


def _target(loaded: Loaded, at: Store, run: Run, policy: GatePolicy, task: Task) -> TargetFacts | None:
    """Read what was reached on the target; the gain over the best untrained candidate if the policy asks."""
    if (policy.target.min is None and policy.target.gain is None) or f"{task.name}/test" not in run.rows:
        return None
    metric = load_metrics(task)[task.primary_metric]
    limit = task.data.limits.test
    rows = store.read_rows(at, run.rows[f"{task.name}/test"], limit)
    score: Estimate = comparison.estimate(metric, rows)
    labels = latest_labels(current_labels(store.list_labels(at, task.name), task), metric.name)
    base = _best_untrained_rows(loaded, at, metric) if policy.target.gain is not None else None
    gain = None
    if base is not None and comparison.is_comparable(metric, base, rows):
        found = correct_comparison(metric, comparison.compare_rows(metric, base, rows), base, rows, labels)
        gain = comparison.refuse_failed(found, metric.range.span, policy.max_errors)
    missing = labels_missing(metric.name, labels, *(of for of in (rows, base) if of is not None))
    return TargetFacts(
        correct_estimate(metric, score, rows, labels),
        gain,
        missing if policy.uncalibrated_judge == "refuse" else 0,
    )


def _best_untrained_rows(loaded: Loaded, at: Store, metric: Metric) -> Rows | None:
    """Read the target's rows of the stored candidate that the decision takes as the best untrained one."""
    task, experiment = loaded.experiment.target, loaded.experiment
    runs = _untrained(store.list_runs(at, experiment.name), experiment)
    found = current_labels(store.list_labels(at, task.name), task) if is_judge(metric.name) else ()
    labels = latest_labels(found, metric.name)
    facts = _facts_on_target(at, task, metric, runs, labels)
    best = decision.best_untrained(decision.apply_budgets(facts, experiment.decide))
    if best is None:
        return None
    run = {run.candidate: run for run in runs}[best]
    return store.read_rows(at, run.rows[f"{task.name}/test"], task.data.limits.test)


def _untrained(runs: Iterable[Run], experiment: Experiment) -> list[Run]:
    """Keep the newest finished runs of baselines and of what trains no language model, in the order of seeds.

    Of what draws at random that is one run of each seed of the file, of all else one.
    """
    place = {seed: at for at, seed in enumerate(experiment.seeds)}
    newest: dict[tuple[str, int], Run] = {}
    for run in runs:
        method = plugins.stored_method(run.method)
        trained = run.weights_digest != run.base_digest and method.makes_language_model
        recipe = experiment.candidates.get(run.candidate)
        known = recipe is not None and (run.seed in place or not method.seeded)
        untrained = not trained or (recipe is not None and recipe.role == "baseline")
        if run.state == "done" and known and untrained:
            newest[run.candidate, place[run.seed] if method.seeded else 0] = run
    return [newest[key] for key in sorted(newest, key=lambda key: key[1])]


def _facts_on_target(
    at: Store, task: Task, metric: Metric, runs: Iterable[Run], labels: Labels
) -> list[CandidateFacts]:
    """Say what runs reached on the target, of those that could answer any test item."""
    limits, facts = task.data.limits, []
    for run in runs:
        refuse_other_grades(task, "target", at, run)
        test = store.read_rows(at, run.rows[f"{task.name}/test"], limits.test)
        validation = store.read_rows(at, run.rows[f"{task.name}/validation"], limits.validation)
        with suppress(CandidateFailed):
            facts.append(
                correct_reached(metric, facts_on_target(run, metric, test, validation), test, labels)
            )
    return facts


def _confirm_in_fp32(at: Store, run: Run, measured: Sequence[Measurement]) -> dict[str, list[str]] | None:
    """Name the pinned items that the candidate loses in fp32 too; None where it was not re-scored so."""
    found: dict[str, list[str]] = {}
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


def refuse_changed(
    experiment: Experiment,
    catalogue: Mapping[str, lm_eval.Found],
    at: Store,
    run: Run,
    sampling: SamplingRecord | None,
) -> None:
    """Compare the versions of a run's rows with those that its files make now.

    Of a task that was sampled that is the version of the whole task. A run of another experiment (a limited
    one, named by its id) answered other items on purpose.

    Raises:
        UserError: a file of a task cannot be read.
        IncompatibleRuns: a task's definition, its items or the code that evaluates them have changed.
    """
    if run.experiment != experiment.name:
        return
    changed = []
    for task in experiment.tasks:
        if (key := f"{task.name}/test") in run.rows:
            own = store.read_identity(at, run.rows[key]).task_version
            then = sampling.versions.get(task.name, own) if sampling else own
            now = _version(task, catalogue, experiment.seeds[0])
            if then != now:
                changed.append(f"{key} (task_version {then!r} then, {now!r} now)")
    if changed:
        raise IncompatibleRuns(
            f"{run.run_id}: found other items, definitions or evaluation code than it answered: "
            f"{'; '.join(changed)}; expected the files as they were; next: harness compare, which computes "
            "what changed"
        )


def _version(task: Task, catalogue: Mapping[str, lm_eval.Found], seed: int) -> str:
    if task.lm_eval:
        return rows_version(catalogue[task.name].task, catalogue[task.name].version)
    return rows_version(task, version_of_test(task, seed))
