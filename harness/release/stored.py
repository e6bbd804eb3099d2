"""Gate of stored runs against the base or the champion, without the model, its machine or its data.

Invariant: both arms' rows have identities that differ in their weights alone, so what is
compared are the same items, prompts, versions, precision and layout, or nothing; items that were added,
mended or dropped since are refused by the digest that differs.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from harness import config, decision, gating, plugins, store
from harness.data import version_of_test
from harness.errors import HarnessError, IncompatibleRuns, Problem, UserError, did_you_mean
from harness.evaluation import lm_eval
from harness.evaluation.candidates import phrase_silent
from harness.evaluation.rows.row_sets import rows_version
from harness.experiment import (
    Judgement,
    controls_of,
    find_lm_eval_tasks,
    metrics_of,
    record_verdict,
    task_settings,
    verdict_change,
)
from harness.gating import GateResult, Measurement, Rule
from harness.models.openai_api import WHO_ANSWERS
from harness.records import FEWER, Run, SamplingRecord, canonical_json
from harness.release.champions import Champion, answers_suites, champion_note, read_champion
from harness.release.sampled import analysis_settings, describe_sampling, find_sampling
from harness.release.stored_arms import (
    baseline_identity,
    confirm_in_fp32,
    find_first_base_identity,
    measure_arms,
)
from harness.release.stored_experiment import StoredExperiment, open_stored
from harness.release.stored_target import refuse_lost_folds, refuse_regraded, target_facts
from harness.spec import Experiment, Recipe, Role, Task

Baseline = Literal["base", "champion"]
_OF_SEED = re.compile(r"(.+) \(seed (\d+)\)")  # as `Run.label` writes it


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
    stored = open_stored(config.load(path, overrides))
    champion = read_champion(stored.folder, stored.experiment.target.name)
    if baseline == "champion" and champion is None:
        raise IncompatibleRuns(
            f"champion of {stored.experiment.target.name}: found none in {stored.folder / 'baselines'}; "
            f"expected a promoted run; next: {stored.typed.command('promote', 'RUN')}, or --baseline base"
        )
    against = None if baseline == "base" else champion
    found = candidate_runs(stored, candidate, sampled=True)
    if any(run.recipe.get("role") == "baseline" and plugins.find_method(run.method).tunes for run in found):
        expected, step = "a candidate that is judged", "name another, or leave role out of its recipe"
        raise UserError(Problem(candidate, "a baseline, measured on the target alone", expected, step))
    runs = _select_seed(found, candidate, seed)
    return [judge_run(stored, run, against) for run in runs]


def _strip_unasked(recipe: Recipe) -> Recipe:
    """Return a recipe without what changes no answer of an endpoint: prices, patience, the key's variable."""
    if not plugins.find_method(recipe.method).is_remote:
        return recipe
    named = {name: recipe.params[name] for name in WHO_ANSWERS if name in recipe.params}
    return recipe.model_copy(update={"params": named})


def _is_of(run: Run, recipe: Recipe) -> bool:
    """Tell whether a run is of a recipe as it is written: of a search of prompts, with the one it chose."""
    if recipe.tried and not plugins.find_method(recipe.method).trains and _has_tried(run, recipe):
        recipe = next((recipe.with_prompt(one.params) for one in run.training.sweep if one.chosen), recipe)
    return _strip_unasked(Recipe.model_validate(run.recipe)) == _strip_unasked(recipe)


def _has_tried(run: Run, recipe: Recipe) -> bool:
    """Tell whether a run's prompt was chosen among those of a recipe: all of a sweep, some of a search."""
    params = [one.params for one in run.training.sweep]
    if recipe.sweep:
        return set(map(canonical_json, params)) == set(map(canonical_json, recipe.points))
    known = all(of.get(name) in values for of in params for name, values in recipe.search.items())
    return known and len(params) <= recipe.trials


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


def candidate_runs(stored: StoredExperiment, candidate: str, *, sampled: bool = False) -> list[Run]:
    """Find the finished runs of a candidate as written now, the newest of each seed, or one run.

    One run is named by its id, or with its seed as reports write it: `lora (seed 1)`. Where `sampled`, runs
    of `--sequential` stand in for seeds that have not answered whole tasks.

    Raises:
        UserError: neither a candidate nor a run has this name, or the candidate answers nothing.
        IncompatibleRuns: the candidate has no finished run, or only of another recipe.
    """
    known, runs = stored.experiment.candidates, store.list_runs(stored.store)
    if candidate in known:
        recipe = known[candidate]
        if not plugins.find_method(recipe.method).answers:
            raise UserError(phrase_silent(candidate, recipe.method))
        whole = stored.experiment.name
        of = (f"{whole}{FEWER}", whole) if sampled else (whole,)
        own = [r for name in of for r in runs if (r.candidate, r.experiment) == (candidate, name)]
        done = [r for r in own if r.state == "done" and _is_of(r, recipe)]
        newest = {r.seed: r for r in done if r.seed in stored.experiment.seeds}
        if newest:
            _refuse_missing_seeds(stored, candidate, newest)
            return [newest[seed] for seed in sorted(newest)]
        found = "only runs of another recipe, or failed ones" if own else "no run"
        raise IncompatibleRuns(
            f"{stored.store.folder}: found {found} of {candidate}; expected a finished run of it as written "
            f"now; next: {stored.typed.command('compare', '--candidates', candidate)}"
        )
    by_id = {r.run_id: r for r in runs if r.state == "done"}
    if candidate in by_id:
        return [by_id[candidate]]
    if (one := _OF_SEED.fullmatch(candidate)) and one[1] in known:
        return _select_seed(candidate_runs(stored, one[1], sampled=sampled), one[1], int(one[2]))
    hint = did_you_mean(candidate, [*known, *by_id])
    raise UserError(Problem("candidate", f"{candidate!r}", "a candidate of the file, or a run's id", hint))


def _refuse_missing_seeds(stored: StoredExperiment, candidate: str, runs: Mapping[int, Run]) -> None:
    """Refuse a recipe of which some seeds were not trained: it passes only with all of them."""
    trained = any(plugins.find_method(r.method).seeded for r in runs.values())
    missing = sorted(set(stored.experiment.seeds) - set(runs)) if trained else []
    if missing:
        found = f"no finished run of seed {', '.join(map(str, missing))}"
        raise IncompatibleRuns(
            f"{candidate}: found {found}; expected one of each, because a recipe passes with all of them; "
            f"next: {stored.typed.command('compare', '--candidates', candidate)}, or "
            f"seeds=[{', '.join(map(str, sorted(runs)))}]"
        )


def judge_run(stored: StoredExperiment, run: Run, champion: Champion | None) -> GateResult:
    """Judge one run against a champion, or against its own base.

    Raises:
        UserError: the run has no capability to lose.
        IncompatibleRuns: the run or the baseline lacks answers, or rows must not be compared.
    """
    sampling = find_sampling(stored, run)
    stored = analysis_settings(stored, run, sampling) if sampling else stored
    experiment, catalogue = find_lm_eval_tasks(stored.experiment)
    stored, at, target = stored._replace(experiment=experiment), stored.store, experiment.target
    tasks: list[tuple[Task, Role, str]] = [(t, s.role, s.name) for s in experiment.suites for t in s.tasks]
    unanswered = [named for named in tasks if f"{named[0].name}/test" not in run.rows]
    if tasks and len(unanswered) == len(tasks):
        raise _phrase_unanswered(stored, run, [named[0].name for named in tasks])
    _refuse_changed(stored, catalogue, run, sampling)
    refuse_regraded(stored, run)
    refuse_lost_folds(stored, run)
    left_out = [task.name for task, _, _ in tasks if not gating.is_judged(task.name, experiment.gate)]
    notes = [f"not named by gate.tasks, left out: {', '.join(left_out)}"] if left_out else []
    notes += [describe_sampling(sampling)] if sampling else []
    tasks = [named for named in tasks if named[0].name not in left_out]
    known = {t.name: metrics_of(t, catalogue) for t, _, _ in tasks}
    gated_against = champion if champion and answers_suites(champion.recipe) else None
    if champion and not gated_against:
        notes.append(champion_note(stored, run, champion))
    digest = gated_against.weights_digest if gated_against else run.base_digest
    first = (champion.first_base or champion.base_digest) if champion else digest
    baseline = partial(baseline_identity, stored, run=run, champion=gated_against)
    arms = partial(measure_arms, stored, run, tasks=tasks, known=known, sampling=sampling)
    measured = arms(baseline, notes=notes, texts=experiment.gate.mode_collapse is not None)
    policy = gating.applicable_policy(experiment.gate, trained=run.weights_digest != run.base_digest)
    result = gating.judge(
        measured,
        policy,
        target=target_facts(stored, run, policy, target),
        identical=run.weights_digest == digest,
        confirmed=confirm_in_fp32(at, run, measured),
        controls=controls_of(at, run),
        seed=experiment.seeds[0],
        cumulative=_cumulative(stored, run, first, arms) if first != digest else None,
        missing=[named[0].name for named in unanswered if gating.may_decide(*named, experiment.gate)],
    )
    against = (
        f"the champion {gated_against.candidate} ({gated_against.run_id})" if gated_against else "the base"
    )
    settings = {t.name: task_settings(t, role, known[t.name][t.primary_metric]) for t, role, _ in tasks}
    judgement = Judgement(run, result.verdict, experiment.gate, against, digest, settings)
    if changed := verdict_change(at, judgement):
        notes.append(changed)
    record_verdict(at, judgement)
    n_members = count_members(experiment, run.candidate)
    return replace(result, candidate=run.label, baseline=against, notes=tuple(notes), n_members=n_members)


def _phrase_unanswered(stored: StoredExperiment, run: Run, tasks: Sequence[str]) -> HarnessError:
    """Say why nothing tells what a run forgot: it never answers the suites, or has not answered them yet."""
    if not answers_suites(run.recipe):
        found = f"the method {run.method}, which answers no task of the suites"
        step = f"{stored.typed.command('decide')}, which compares it on {stored.experiment.target.name}"
        return UserError(Problem(run.candidate, found, "a language model, with capability to lose", step))
    return IncompatibleRuns(
        f"{run.run_id}: found no answers to {', '.join(tasks)}; expected those to the suites as written now; "
        f"next: {stored.typed.command('compare', '--candidates', run.candidate)}"
    )


def count_members(experiment: Experiment, candidate: str) -> int:
    """Count the members of the family that a fine-tune belongs to; 1 of any other candidate."""
    family = decision.family_of(experiment)
    return family.size if candidate in family.members else 1


def _cumulative(
    stored: StoredExperiment, run: Run, first: str, arms: Callable[..., list[Measurement]]
) -> Rule:
    """Judge a run against the first base by that base's own rows."""
    # `arms` puts the run's rows beside those of a baseline.
    baseline = partial(find_first_base_identity, stored, run=run, first=first)
    try:
        measured = arms(baseline, notes=[])
    except IncompatibleRuns as error:
        return gating.make_unmeasured_rule(str(error).partition(";")[0], first)
    identical = run.weights_digest == first
    policy, seed = gating.cumulative_policy(stored.experiment.gate), stored.experiment.seeds[0]
    found = gating.judge(measured, policy, target=None, identical=identical, seed=seed)
    return gating.cumulative_rule(found.verdict, first)


def _refuse_changed(
    stored: StoredExperiment,
    catalogue: Mapping[str, lm_eval.LmEvalTask],
    run: Run,
    sampling: SamplingRecord | None,
) -> None:
    """Compare the versions of a run's rows with those that its files make now."""
    # Of a task that was sampled that is the version of the whole task. A run of another experiment (a limited
    # one, named by its id) answered other items on purpose.
    experiment, changed = stored.experiment, []
    if run.experiment != experiment.name:
        return
    for task in experiment.tasks:
        if (key := f"{task.name}/test") in run.rows:
            own = store.read_identity(stored.store, run.rows[key]).task_version
            then = sampling.versions.get(task.name, own) if sampling else own
            now = _version(task, catalogue, experiment.seeds[0])
            if then != now:
                changed.append(f"{key} (task_version {then!r} then, {now!r} now)")
    if changed:
        raise IncompatibleRuns(
            f"{run.run_id}: found other items, definitions or evaluation code than it answered: "
            f"{'; '.join(changed)}; expected the files as they were; next: "
            f"{stored.typed.command('compare')}, which computes what changed"
        )


def _version(task: Task, catalogue: Mapping[str, lm_eval.LmEvalTask], seed: int) -> str:
    if task.lm_eval:
        return rows_version(catalogue[task.name].task, catalogue[task.name].version)
    return rows_version(task, version_of_test(task, seed))
