"""Facts on the target for a verdict: what a run reached, its gain and win rate over the best untrained one.

Invariant: read from the store; the best untrained candidate is the one that the decision takes.
"""

from collections.abc import Collection, Iterable
from contextlib import suppress
from operator import attrgetter

from harness import plugins, store
from harness.analysis import comparison, human_preferences
from harness.analysis.answers import list_each_answer
from harness.analysis.candidate_facts import CandidateFacts, best_untrained, is_fine_tuned
from harness.analysis.comparison import compare_on_target, correct_estimate, labels_missing
from harness.analysis.economics import apply_budgets
from harness.analysis.estimators import Comparison, Estimate
from harness.analysis.human_preferences import AnswerPairs, Wins, wins_by_judge, wins_by_people
from harness.analysis.judge_correction import JudgedPair, bias_of
from harness.analysis.verdict import TargetFacts
from harness.data import Split
from harness.errors import CandidateFailed, IncompatibleRuns
from harness.evaluation.judges import read_stored_grades
from harness.evaluation.judging_stage import answers_differ, map_shown_pairs, pair_rows, preferences
from harness.experiment.candidate_result import facts_on_target, mark_recipe
from harness.experiment.stored_rows import Facts, Rows, Runs
from harness.experiment.study import Study, correct_reached, is_of_recipe, judge_labels
from harness.metrics import Metric
from harness.records import Run
from harness.spec import PEOPLE, GatePolicy, Recipe, Task, metric_name


def target_facts(study: Study, run: Run, policy: GatePolicy) -> TargetFacts | None:
    """Return the target's facts: score, and gain over the best untrained candidate if the policy needs it."""
    goal, task = policy.target, study.experiment.target
    wanted = (goal.min, goal.gain, goal.win_rate, policy.mode_collapse)
    if not any(limit is not None for limit in wanted) or f"{task.name}/test" not in run.rows:
        return None
    metric, compared = study.primary(task), [study.rows.with_drawn(run, task)]
    best = find_best_untrained(study, run) if (goal.gain, goal.win_rate) != (None, None) else None
    gain = wins = None
    if best is not None:
        if goal.gain is not None:
            gain = compare_on(study, run, best)
            compared.append(study.rows.with_drawn(best, task))
        if goal.win_rate is not None:
            wins = wins_of(study, run, best)
    missing = labels_missing(metric.name, judge_labels(study.store, task, metric.name), *compared)
    return TargetFacts(
        score_on(study, run, task),
        gain,
        missing if policy.uncalibrated_judge == "refuse" else 0,
        wins,
        comparison.compare_commonest_answers(
            *answers_on_target(study, run), alpha=study.experiment.gate.alpha
        )
        if policy.mode_collapse is not None
        else (),
    )


def compare_on(study: Study, run: Run, other: Run | None, task: Task | None = None) -> Comparison | None:
    """Compare two runs on a target, by default the deciding one; None if there is nothing to compare."""
    if other is None:
        return None
    task = task or study.target
    metric = study.primary(task)
    labels = judge_labels(study.store, task, metric.name)
    read = study.rows.with_drawn if labels else study.rows.cut
    base, new = (read(one, task) for one in (other, run))
    return compare_on_target(metric, base, new, labels, study.experiment.gate.max_errors)


def score_on(study: Study, run: Run, task: Task) -> Estimate:
    """Estimate a run's score on a target, corrected by people's labels."""
    metric, rows = study.primary(task), study.rows.with_drawn(run, task)
    labels = judge_labels(study.store, task, metric.name)
    return correct_estimate(metric, comparison.estimate(metric, rows), rows, labels)


def is_answered(study: Study, run: Run, task: Task, split: Split = "test") -> bool:
    """Tell whether a run answered an item of a target at all."""
    there = f"{task.name}/{split}" in run.rows
    return there and any(row.status != "error" for row in study.rows.cut(run, task, split))


def is_better_on_validation(study: Study, run: Run, other: Run, task: Task) -> bool:
    """Tell whether a run scores higher than another on the validation rows of a target."""
    if not all(is_answered(study, one, task, "validation") for one in (other, run)):
        return False
    metric, rows = study.primary(task), study.rows
    old, new = (comparison.estimate(metric, rows.cut(one, task, "validation")).score for one in (other, run))
    return metric.unit.sign * (new - old) > 0


def find_prompt(study: Study, runs: Iterable[Run], run: Run) -> Run | None:
    """Find the plain prompt among runs, preferably on a run's base, else the first."""
    recipes = study.experiment.candidates
    prompts = [one for one in runs if is_prompt(one) and recipes[one.candidate].role != "baseline"]
    return next((one for one in prompts if one.base_digest == run.base_digest), next(iter(prompts), None))


def answers_on_target(study: Study, run: Run) -> tuple[Rows | None, Rows]:
    """Return the answers to the target's test items of a run's base (None if unknown), and its own.

    They are all that were drawn to an item, if both were drawn in the same way.
    """
    task, rows = study.experiment.target, study.rows
    settings, version = attrgetter("prompting", "answer", "decoding"), _scored_by(study, run)[0]
    stored = [
        other
        for other in reversed(store.list_runs(study.store, study.experiment.name))
        if other.state == "done"
        and other.weights_digest == other.base_digest == run.base_digest
        and _scored_by(study, other)[0] == version
    ]
    alike = [other for other in stored if settings(other) == settings(run)]
    key, plain = f"{task.name}/test", next(iter([*alike, *filter(is_prompt, stored)]), None)
    are_drawn = bool(run.decoding) and (plain is None or plain.decoding == run.decoding)

    def answers(of: Run) -> Rows:
        own = rows.with_drawn(of, task)
        return (list_each_answer(own, rows.drawn(of, key)) if are_drawn else []) or own

    return answers(plain) if plain else None, answers(run)


def is_prompt(run: Run) -> bool:
    """Tell whether a run is the plain prompt on the base's weights."""
    plain = run.prompting == "zero_shot" and run.answer == "generate"
    return plain and plugins.find_method(run.method).keeps_base


def find_best_untrained(study: Study, run: Run) -> Run | None:
    """Find the candidate that the decision takes as the best untrained one.

    Runs with other items or grades than the run's were made before the files changed, and do not count.
    """
    own = _scored_by(study, run)
    if own not in study.untrained:
        experiment, task = study.experiment, study.experiment.target
        runs = [one for one in list_untrained(study) if _scored_by(study, one) == own]
        study.rows.prepare(
            one.rows[f"{task.name}/{split}"] for one in runs for split in ("test", "validation")
        )
        facts = list[CandidateFacts]()
        for one in runs:
            refuse_lost_folds(study, one)
            with suppress(CandidateFailed):
                facts.append(reached_on_target(study, one))
        best = best_untrained(apply_budgets(facts, experiment.decide))
        study.untrained[own] = {one.candidate: one for one in runs}.get(best or "")
    found = study.untrained[own]
    return found if found and found.run_id != run.run_id else None


def _scored_by(study: Study, run: Run) -> tuple[str, str]:
    """Name the items and the scoring of a run's test rows."""
    rows_digest = run.rows.get(f"{study.experiment.target.name}/test")
    if rows_digest is None:
        return "", ""
    of = store.read_identity(study.store, rows_digest)
    return of.task_version, of.scoring_digest


def reached_on_target(study: Study, run: Run, metric: Metric | None = None) -> CandidateFacts:
    """Return a stored run's target score, by default in the deciding metric, corrected by labels.

    Raises:
        CandidateFailed: every test row is an error.
    """
    task, recipes = study.target, study.experiment.candidates
    metric = metric or study.primary(task)
    test, validation = study.rows.with_drawn(run, task), study.rows.with_drawn(run, task, "validation")
    recipe = recipes.get(run.candidate) or Recipe.model_validate(run.recipe)
    facts = mark_recipe(facts_on_target(run, metric, test, validation), recipe, recipes)
    return correct_reached(metric, facts, test, judge_labels(study.store, task, metric.name))


def list_untrained(study: Study) -> list[Run]:
    """List the newest finished runs of what trains no language model, and of baselines, by seeds."""
    # Candidates with randomness have one run per seed of the file, all others one.
    experiment = study.experiment
    place = {seed: at for at, seed in enumerate(experiment.seeds)}
    newest: dict[tuple[str, int], Run] = {}
    for run in store.list_runs(study.store, experiment.name):
        method, recipe = plugins.find_method(run.method), experiment.candidates.get(run.candidate)
        if run.state != "done" or recipe is None or (method.seeded and run.seed not in place):
            continue
        trained = run.weights_digest != run.base_digest and method.makes_language_model
        if (not trained or recipe.role == "baseline") and is_of_recipe(run, recipe, study.store):
            newest[run.candidate, place[run.seed] if method.seeded else 0] = run
    return [newest[key] for key in sorted(newest, key=lambda key: key[1])]


def refuse_lost_folds(study: Study, run: Run) -> None:
    """Refuse test rows that models of folds answered if nothing says which one answered which item."""
    at, test = study.store, run.rows[f"{study.experiment.target.name}/test"]
    if store.read_identity(at, test).weights_digest != run.weights_digest and not store.read_folds(at, test):
        raise IncompatibleRuns(
            f"{run.run_id}: found test rows of several folds without {at.rows(test) / 'folds.json'}; "
            f"expected the fold of each item; next: {study.typed.command('compare')}, which writes it again"
        )


def wins_of(study: Study, run: Run, base: Run) -> Wins:
    """Read the win rate of a run over another on the target."""
    at, policy, task, runs = study.store, study.experiment.gate, study.target, (base, run)
    rows = study.rows.cut(base, task), study.rows.cut(run, task)
    # Two answers that do not differ are a tie, also where both failed.
    clusters = {now.example_id: now.cluster or now.example_id for _, now in pair_rows(*rows)}
    differing = {now.example_id for old, now in pair_rows(*rows) if answers_differ(old, now)}
    pairs = AnswerPairs(
        {item: cluster for item, cluster in clusters.items() if item in differing},
        {item: cluster for item, cluster in clusters.items() if item not in differing},
    )
    digests = [one.rows[f"{task.name}/test"] for one in runs]
    votes = human_preferences.map_counted_shares(
        store.list_ratings(at, task.name), map_shown_pairs(*rows), *digests
    )
    by = policy.target.by
    if by == PEOPLE:
        return open_where_failed(wins_by_people(runs[0].candidate, pairs, votes), rows[0], policy.max_errors)
    preferred = preferences(read_stored_grades(by, at), *rows)
    found = wins_by_judge(runs[0].candidate, metric_name(by), pairs, preferred.won, votes)
    found = open_where_failed(found, rows[0], policy.max_errors, preferred.unread)
    found = found._replace(
        bias=bias_of(
            {
                now.example_id: JudgedPair(
                    preferred.won[now.example_id],
                    preferred.first[now.example_id],
                    (len(old.text), len(now.text)),
                    clusters[now.example_id],
                    votes.get(now.example_id),
                )
                for old, now in pair_rows(*rows)
                if now.example_id in preferred.first
            }
        )
    )
    return found._replace(missing=0) if policy.uncalibrated_judge == "allow" else found


def open_where_failed(wins: Wins, base: Rows, most: float, unread: Collection[str] = ()) -> Wins:
    """Leave a win rate open if more than a share `most` of the items failed or were read as nothing."""
    failed = {row.example_id for row in base if row.status == "error"}.union(unread)
    if wins.rate is None or len(failed) <= most * len(base):
        return wins
    return wins._replace(rate=wins.rate._replace(low=0.0, high=1.0), is_open=True)


def pair_with_best(runs: Runs, facts: Facts) -> list[tuple[Run, Run]]:
    """List the finished fine-tunes, each with the run of the best untrained candidate."""
    best = best_untrained(facts)
    base = next((run for run in runs if run.candidate == best and run.state == "done"), None)
    tuned = (run for f, run in zip(facts, runs, strict=True) if run.state == "done" and is_fine_tuned(f))
    return [(run, base) for run in tuned] if base else []
