"""Gate of stored runs against the base or the champion, without a model.

Invariant: the rows of both arms may differ only in the weights. A champion without answers to suites is
compared on the target alone, and the base judges capabilities.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from harness import plugins, store
from harness.analysis.candidate_facts import best
from harness.analysis.gate_verdict import GateResult
from harness.analysis.seeds import family_of
from harness.data import version_of_test
from harness.errors import IncompatibleRuns, UserError, did_you_mean
from harness.evaluation.candidates import phrase_silent
from harness.evaluation.judges import list_stored_digests
from harness.evaluation.lm_eval import bridge
from harness.evaluation.row_sets import rows_version, scoring_digest
from harness.experiment.run_verdicts import judge_stored_run
from harness.experiment.study import (
    Study,
    add_lm_eval,
    is_of_recipe,
    is_target_only,
    list_untrained,
    reached_on_target,
    refuse_lost_folds,
)
from harness.experiment.verdict_records import record_verdict, verdict_change
from harness.formatting import count
from harness.records import FEWER, Run, SamplingRecord
from harness.spec import JUDGE, Experiment, Role, Task
from harness.store import Champion


def is_sampled(experiment: Experiment, run: Run) -> bool:
    """Tell whether a run answered a sample of this experiment's items."""
    return run.experiment == f"{experiment.name}{FEWER}"


_OF_SEED = re.compile(r"(.+) \(seed (\d+)\)")  # as `Run.label` writes it


def select_seed(runs: list[Run], candidate: str, seed: int | None) -> list[Run]:
    """Select the runs of one seed; all runs if none is named."""
    seed_runs = [run for run in runs if seed in (None, run.seed)]
    if not seed_runs:
        seeds = ", ".join(str(run.seed) for run in runs)
        step = "name one of these, or none for the worst of all"
        raise IncompatibleRuns(candidate, f"no run of seed {seed}", f"one of its seeds ({seeds})", step)
    return seed_runs


def candidate_runs(stored: Study, candidate: str, *, sampled: bool = False) -> list[Run]:
    """Find the newest finished run of each seed of a candidate as it is written now, or a single run.

    A single run is named by its id, or with its seed as in reports: `lora (seed 1)`. With `sampled`, runs of
    `--sequential` replace seeds that have not answered whole tasks.
    """
    recipes, runs = stored.experiment.candidates, store.list_runs(stored.store)
    if candidate in recipes:
        recipe, compare = recipes[candidate], stored.typed.command("compare", "--candidates", candidate)
        if not plugins.find_method(recipe.method).answers:
            raise UserError(phrase_silent(candidate, recipe.method))
        whole = stored.experiment.name
        names = (f"{whole}{FEWER}", whole) if sampled else (whole,)
        own_runs = [r for name in names for r in runs if (r.candidate, r.experiment) == (candidate, name)]
        done_runs = [r for r in own_runs if r.state == "done" and is_of_recipe(r, recipe, stored.store)]
        newest = {r.seed: r for r in done_runs if r.seed in stored.experiment.seeds}
        if newest:
            trained = any(plugins.find_method(r.method).seeded for r in newest.values())
            missing = sorted(set(stored.experiment.seeds) - set(newest)) if trained else []
            if missing:
                found = f"no finished run of seed {', '.join(map(str, missing))}"
                expected = "one of each, because a recipe passes with all of them"
                step = f"{compare}, or add 'seeds=[{','.join(map(str, sorted(newest)))}]' to this command"
                raise IncompatibleRuns(candidate, found, expected, step)
            return [newest[seed] for seed in sorted(newest)]
        found = "only runs of another recipe, or failed ones" if own_runs else "no run"
        where, expected = str(stored.store.folder), "a finished run of it as written now"
        raise IncompatibleRuns(where, f"{found} of {candidate}", expected, compare)
    by_id = {r.run_id: r for r in runs if r.state == "done"}
    if candidate in by_id:
        return [by_id[candidate]]
    if (match := _OF_SEED.fullmatch(candidate)) and match[1] in recipes:
        return select_seed(candidate_runs(stored, match[1], sampled=sampled), match[1], int(match[2]))
    hint = did_you_mean(candidate, [*recipes, *by_id])
    raise UserError("candidate", f"{candidate!r}", "a candidate of the file, or a run's id", hint)


def judge_run(stored: Study, run: Run, champion: Champion | None) -> GateResult:
    """Judge one run against a champion, or against its own base."""
    sampling = None
    if is_sampled(stored.experiment, run):
        sampling = store.read_sampling(stored.store, run.run_id)
        sequential = stored.typed.command("compare", "--sequential")
        if sampling is None:
            found, expected = "no record of how its items were sampled", "sampling.json next to run.json"
            step = f"{sequential}, which evaluates nothing again, or --all-items"
            raise IncompatibleRuns(run.run_id, found, expected, step)
        if sampling.of_alpha != stored.experiment.gate.alpha:
            found = f"interim analyses planned for gate.alpha {sampling.of_alpha:g}"
            expected = f"{stored.experiment.gate.alpha:g}, the gate's own"
            raise IncompatibleRuns(run.run_id, found, expected, f"{sequential}, which plans again")
        # The study as its interim analysis sees it: the sampled items, its name, its alpha.
        gate = stored.experiment.gate.model_copy(update={"alpha": sampling.alpha})
        experiment = stored.experiment.model_copy(update={"name": run.experiment, "gate": gate})
        item_weights = sampling.weights
        unknown: dict[str, Any] = {"compared": {}, "admitted": {}, "untrained": {}}
        stored = replace(stored, experiment=experiment, weights=lambda _: item_weights, **unknown)
    study, catalogue = add_lm_eval(stored)
    _refuse_unfit(study, catalogue, run, sampling)
    left_out = [t.task.name for t in study.suite_tasks() if not study.is_judged(t.task)]
    notes = [f"not named by gate.tasks, left out: {', '.join(left_out)}"] if left_out else []
    if sampling:
        sizes = ", ".join(f"{count(len(w))} items of {task}" for task, w in sampling.weights.items())
        notes.append(f"{sampling.analysis} of --sequential, judged at alpha {sampling.alpha:.2g} on {sizes}")
    gated_against = champion if champion and answers_suites(champion.recipe) else None
    if champion and not gated_against:
        notes.append(
            f"the champion {champion.candidate} ({champion.run_id}) answers no task of the suites: those are"
            f" judged against the base; {study.typed.command('decide')} compares both on {study.target.name}"
        )
    result = judge_stored_run(study, run, gated_against)
    digest, against = run.base_digest, "the base"
    if gated_against:
        digest = gated_against.weights_digest
        against = f"the champion {gated_against.candidate} ({gated_against.run_id})"
    record = record_verdict(study, run, result.verdict, against, digest)
    notes += [*result.notes, *filter(None, [verdict_change(study.store, record)])]
    store.save_verdict(study.store, record)
    return replace(
        result,
        tasks=tuple(t for t in result.tasks if study.is_judged(t.task)),
        candidate=run.label,
        baseline=against,
        notes=tuple(notes),
        n_members=count_members(study.experiment, run.candidate),
    )


def _refuse_unfit(
    study: Study, catalogue: Mapping[str, bridge.LmEvalTask], run: Run, sampling: SamplingRecord | None
) -> None:
    tasks = list(study.suite_tasks())
    if tasks and not any(f"{t.task.name}/test" in run.rows for t in tasks):
        # It never answers the suites, or has not answered them yet.
        if not answers_suites(run.recipe):
            found = f"the method {run.method}, which answers no task of the suites"
            step = f"{study.typed.command('decide')}, which compares it on {study.target.name}"
            raise UserError(run.candidate, found, "a language model, with capability to lose", step)
        found = f"no answers to {', '.join(t.task.name for t in tasks)}"
        step = study.typed.command("compare", "--candidates", run.candidate)
        raise IncompatibleRuns(run.run_id, found, "those to the suites as written now", step)
    # Compare the versions of its rows with those of the current files; for a sampled task, the version of the
    # whole task. A run of another experiment (such as a limited one, named by id) answered other items on
    # purpose.
    experiment, changed = study.experiment, []
    for task in experiment.tasks if run.experiment == experiment.name else ():
        if (key := f"{task.name}/test") in run.rows:
            stored_version = store.read_identity(study.store, run.rows[key]).task_version
            stored_version = sampling.versions.get(task.name, stored_version) if sampling else stored_version
            if task.lm_eval:
                current_version = rows_version(catalogue[task.name].task, catalogue[task.name].version)
            else:
                current_version = rows_version(task, version_of_test(task, experiment.seeds[0]))
            if stored_version != current_version:
                changed.append(f"{key} (task_version {stored_version!r} then, {current_version!r} now)")
    if changed:
        found = f"other items, definitions or evaluation code than it answered: {'; '.join(changed)}"
        step = f"{study.typed.command('compare')}, which computes what changed"
        raise IncompatibleRuns(run.run_id, found, "the files as they were", step)
    refuse_regraded(study, run)
    goal = study.experiment.gate.target
    if (goal.gain, goal.win_rate) != (None, None):
        for untrained_run in list_untrained(study):
            _refuse_other_grades(study, study.target, "target", untrained_run)
    refuse_lost_folds(study, run)


def count_members(experiment: Experiment, candidate: str) -> int:
    """Count the members of a fine-tune's family; 1 for other candidates."""
    family = family_of(experiment)
    return family.size if candidate in family.members else 1


def refuse_regraded(stored: Study, run: Run) -> None:
    """Refuse a run whose rows were graded by another judge or rubric than the files name now."""
    _refuse_other_grades(stored, stored.experiment.target, "target", run)
    for suite in stored.experiment.suites:
        for task in suite.tasks:
            _refuse_other_grades(stored, task, suite.role, run)


def _refuse_other_grades(stored: Study, task: Task, role: Role, run: Run) -> None:
    key = f"{task.name}/test"
    if key not in run.rows or not any(written.startswith(JUDGE) for written in task.metrics):
        return
    then = store.read_identity(stored.store, run.rows[key]).scoring_digest
    graded = list_stored_digests(task, stored.store)
    if then not in {
        scoring_digest(task, role, judged, unspaced) for judged in graded for unspaced in (False, True)
    }:
        found = f"grades of {key} by another judge or rubric, or another scoring of it"
        step = f"{stored.typed.command('compare')}, which grades the same answers again"
        raise IncompatibleRuns(run.run_id, found, "those of the files as they are now", step)


def find_run(stored: Study, name: str) -> Run:
    """Find a run by id, the best seed of a candidate on validation, or the champion of a target."""
    champion = store.read_champion(stored.folder, name) if name == stored.target.name else None
    is_champion = champion is not None and name not in stored.experiment.candidates
    return best_run(stored, candidate_runs(stored, champion.run_id if champion and is_champion else name))


def best_run(stored: Study, runs: list[Run]) -> Run:
    """Return the run that is best on validation."""
    if len(runs) == 1:
        return runs[0]
    chosen = best([reached_on_target(stored, run) for run in runs])
    return next((run for run in runs if chosen and run.run_id == chosen.run_id), runs[0])


def answers_suites(recipe: Mapping[str, Any]) -> bool:
    """Tell whether a candidate of this recipe answers the suites: a language model that is not a baseline."""
    method = recipe["method"]
    return plugins.find_method(method).makes_language_model and not is_target_only(method, recipe)
