"""Remarks on runs: sentences on rows, prompts, bases and servers, shown as notes in a report."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from harness import plugins
from harness.analysis.alignment import fill_errors
from harness.evaluation import has_instruction
from harness.evaluation.candidate_rows import describe_training_rows
from harness.evaluation.languages import describe_unspoken
from harness.evaluation.session import Session
from harness.evaluation.timing import describe_timing
from harness.experiment.stored_rows import Reader, Runs
from harness.experiment.study import Study
from harness.formatting import count, interval, plain, pluralize
from harness.models import artefacts
from harness.models.openai_api import Settings
from harness.prompting import PromptingContext, describe_prompts
from harness.records import Run, TrainingRecord
from harness.report import front_sentence, print_tried_value
from harness.stats import paired_delta, t_interval, wilson


def count_rows(study: Study, session: Session, reader: Reader, runs: Runs) -> Iterator[str]:
    """Yield counts over the rows of finished runs: failed and ungraded ones."""
    done = [run for run in runs if run.state == "done"]
    for run in done:
        rows = study.rows.cut(run, study.target)
        if failed := [r for r in rows if r.status in ("error", "incomplete")]:
            is_scored = fill_errors(study.primary(study.target), rows, rows).errors.is_scored
            counted = "count as worst" if is_scored else "are left out, because the metric has no worst value"
            some = sum(r.status == "incomplete" for r in failed)
            also = f"; to {some} others some of several answers failed" if some else ""
            said = f"{run.candidate}: {len(failed) - some} of {len(rows)} test rows are errors and {counted}"
            yield f"{said}{also}, the first one {failed[0].example_id}: {failed[0].error}"
    # How many answers to a judged task were cut, empty or failed, and so never judged.
    judged = [measured for measured in session.tasks if measured.judged]
    for run, measured in product(done, judged):
        if f"{measured.task.name}/test" not in run.rows:
            continue
        task, rows, why = measured.task, reader.answers(run, measured), Counter[str]()
        for row in rows:
            if row.status == "truncated" and not task.truncated_scores:
                why[f"{_CUT} {task.max_new_tokens}"] += 1
            elif row.status == "unparsable":
                why["none of the labels" if row.text.strip() else "empty"] += 1
            elif row.finish_reason == "error":
                why[_FAILED] += 1
        if n := why.total():
            of = f"{count(n)} of {pluralize(len(rows), 'answer')} to {task.name}"
            reasons = ", ".join(f"{count(k)} {reason}" for reason, k in why.most_common())
            worst = "" if set(why) == {_FAILED} else "; what is cut or empty has the lowest grade"
            ungraded = f"{run.candidate}: {', '.join(measured.judged)} was not asked about {of}"
            step = _STEP if any(reason.startswith(_CUT) for reason in why) else ""
            yield f"{ungraded}: {reasons}{worst}{step}"


def list_remarks(session: Session, runs: Runs) -> Iterator[str]:
    """Yield the sentences about finished runs."""
    done = [run for run in runs if run.state == "done"]
    own, candidates = session.source.weights_digest, session.candidates
    others = {run.candidate: run.base_model for run in done if run.base_digest != own}
    used = {need for name, one in candidates.items() for need in one.lineage if need != name}
    yield from dict.fromkeys(describe_timing(done))
    yield from (f"{name}: made from {base}, and measured against that" for name, base in others.items())
    yield from _note_endpoints(session, [run for run in done if plugins.method(run.method).is_remote])
    for run in (run for run in done if plugins.method(run.method).makes == "artefact"):
        candidate = candidates[run.candidate]
        path = Path(candidate.source.path or "")
        if candidate.given is None:  # which engine answered, as the base's rows come from another
            engine = artefacts.identity(path, session.gguf_command)[0].partition("/")[2]
            base = session.engine(candidate.base)[0].partition("/")[0]
            said = f"answered by {engine}, its base by {base}: what both differ by is part of its score"
            yield f"{run.candidate}: {path.name}, {said}"
    for name, candidate in candidates.items():
        if not candidate.method.answers and name not in used:
            unused = "not trained, as it answers nothing and no candidate uses it"
            yield f"{name}: {unused}; next: harness train {name}"


def _note_endpoints(session: Session, runs: Runs) -> Iterator[str]:
    for run in runs:
        candidate, name = session.candidates[run.candidate], run.candidate
        settings = Settings(**candidate.source.params)
        prices = settings.usd_per_million_tokens or session.experiment.decide.usd_per_million_tokens
        cost = "" if prices else "; its requests have no price here without usd_per_million_tokens"
        yield f"{name}: {settings.name}, asked by {settings.protocol}; times include the network{cost}"
        left = [m.task.name for m in session.suites if f"{m.task.name}/test" not in run.rows]
        if left and not candidate.is_target_only:
            said = "which need token ids or their log-probabilities, and chat has neither"
            yield f"{name}: not evaluated on {', '.join(left)}, {said}"


def describe_rows_and_prompts(session: Session, names: Collection[str]) -> list[str]:
    """Describe the target's rows, the training rows, incomplete prompts, and untested languages."""
    names_by_note: dict[str, list[str]] = {}
    targets = [(one.target.task, one.target.items) for one in session.in_folds() or [session]]
    asked = [(name, trial) for name in names for trial in session.candidates[name].trials]
    for (name, trial), (task, items) in product(asked, targets):
        context = PromptingContext(task, items.train, items.documents, 0, dry_run=True)
        evaluated = [*items.validation, *items.test]
        notes = [*describe_prompts(trial.recipe.prompting, context, evaluated)]
        is_asked = session.candidates[name].method.makes_language_model
        if is_asked and not has_instruction(task, trial.recipe, evaluated):
            notes.append(_BARE)
        for note in notes:
            names_by_note.setdefault(note, []).append(name)
    for suite in session.suites:
        if suite.task.num_fewshot and not suite.task.lm_eval:
            shots = {"few_shot": {"shots": suite.task.num_fewshot}}
            context = PromptingContext(suite.task, suite.items.train, (), 0, dry_run=True)
            for note in describe_prompts(shots, context, suite.items.test):
                names_by_note.setdefault(note, []).append(suite.task.name)
    in_folds = bool(session.folds)
    return [
        *session.target.items.notes,
        *describe_training_rows(session.candidates, names, session.training_data, in_folds=in_folds),
        *(f"{', '.join(dict.fromkeys(named))}: {note}" for note, named in names_by_note.items()),
        *describe_unspoken(session.target, session.suites),
    ]


_BARE = (
    "asked without an instruction: neither a system text nor words that all prompts share say what to do; "
    "next: system: TEXT in the task"
)
_CUT, _FAILED = "cut at max_new_tokens:", "failed"
_STEP = " (raise max_new_tokens, or truncated_scores: true in the task lets judges grade cut ones)"
NO_CHANGE = "found nothing to change"
_MOSTLY = 0.5  # of the prompts of a training on rewards
_WITHIN_NOISE = ", which is within its noise; more steps or a higher learning_rate may move it"


def describe_trainings(study: Study, runs: Runs) -> Iterator[str]:
    """Yield the sentences about the weights of finished runs; several seeds may yield the same one."""
    for run in runs:
        if n := run.training.n_dropped_too_long:
            what = "training rows" if run.training.n_pairs is None else "pairs"
            yield f"{run.candidate}: {n} {what} were longer than max_length and left out"
    for run in runs:
        if reason := run.training.not_packed:
            yield f"{run.candidate}: trained without packing, which {reason}"
    for run in runs:
        yield from describe_rewards(run.candidate, run.training)
    for run in runs:
        for trial in (trial for trial in run.training.sweep if trial.chosen):
            point, n = list[str](), len(run.training.sweep)
            for name, value in trial.params.items():
                shown = f"{value:g}" if isinstance(value, float) else print_tried_value(value)
                point.append(f"{name} {shown}")
            yield f"{run.candidate}: {', '.join(point)} was the best of {n} trials on validation"
    for run in runs:  # an adapter made elsewhere may fit other bases than its own
        if (named := run.training.named_base) and Path(named).name != Path(run.base_model).name:
            yield f"{run.candidate}: its own files name {named} as its base; it was put on {run.base_model}"
    digests = {(run.candidate, run.seed): run.weights_digest for run in runs}
    for run in runs:  # weights that equal those they were made from, as the method had nothing to change
        init = study.experiment.candidates[run.candidate].init_from
        if init and digests.get((init, run.seed)) == run.weights_digest:
            yield f"{run.candidate}: {run.method} {NO_CHANGE}, so its weights are those of {init}"
    yield from _note_unswept(study, runs)
    sign = study.primary(study.target).unit.sign
    for run in runs:
        has_own_weights = study.experiment.candidates[run.candidate].weights_of is None
        if has_own_weights and (front := front_sentence(run.candidate, run.training, sign)):
            yield f"{run.candidate}: {front}"


def describe_rewards(name: str, training: TrainingRecord) -> Iterator[str]:
    """Describe the signal of a training on rewards or pairs, and whether it was learned."""
    rewards, known = training.reward, [share for _, share in training.equal_rewards if share is not None]
    if rewards and all(mean is None for _, mean in rewards):
        steps = pluralize(len(rewards), "step")
        yield f"{name}: no answer of its {steps} could be rewarded, so it learned nothing"
    elif known and (mean := sum(known) / len(known)) >= _MOSTLY:
        yield (
            f"{name}: {100 * mean:.0f} % of the prompts had one reward for all answers, which "
            "teaches nothing; a graded reward, more num_generations or a higher temperature may help"
        )
    by, accuracy, n = "its reward model ", training.reward_model_accuracy, training.n_heldout
    if training.heldout_accuracy:
        by, accuracy = "", training.heldout_accuracy[-1][1]
    if accuracy is not None and n:
        low, high = wilson(accuracy * n, n)
        yield (
            f"{name}: {by}rates the chosen answer higher in {interval(accuracy, low, high)} % of "
            f"{pluralize(n, 'held-out pair')}{', which may be chance' if low <= 0.5 else ''}"
        )
    if gain := measure_reward_gain(training):
        is_noise = gain.low is None or gain.high is None or gain.low <= 0 <= gain.high
        yield (
            f"{name}: reward on {pluralize(gain.n, 'validation prompt')} "
            f"{plain(gain.before)} before and {plain(gain.after)} after the training, "
            f"{plain(gain.change, gain.low, gain.high, sign=True)}{_WITHIN_NOISE if is_noise else ''}"
        )


class RewardGain(NamedTuple):
    """Mean reward of answers to validation prompts, and its change with a 95 % interval; None if unknown."""

    n: int
    before: float
    after: float
    change: float
    low: float | None
    high: float | None


def measure_reward_gain(training: TrainingRecord) -> RewardGain | None:
    """Estimate the change of the reward on validation, over the clusters of its prompts; None without any."""
    known = [
        (one.cluster, one.before, one.after)
        for one in training.validation_rewards
        if one.before is not None and one.after is not None
    ]
    if not known:
        return None
    clusters, before, after = zip(*known, strict=True)
    mean = paired_delta(before, after, clusters)
    low, high = (None, None) if mean.se is None else t_interval(mean)
    return RewardGain(len(known), fmean(before), fmean(after), mean.mean, low, high)


def _note_unswept(study: Study, runs: Iterable[Run]) -> Iterator[str]:
    # Methods trained at only one learning rate: the best rate differs tenfold between methods.
    tried, named = dict[tuple[str, ...], set[object]](), dict[tuple[str, ...], list[str]]()
    for run in runs:
        recipe = study.experiment.candidates[run.candidate]
        if recipe.weights_of is None and run.training.loss:
            key = (run.base_digest, run.method, str(recipe.params.get("peft_type", "")))
            rates = recipe.tried.get("learning_rate") or [recipe.params.get("learning_rate")]
            tried.setdefault(key, set()).update(rates)
            named.setdefault(key, []).append(run.candidate)
    once = dict.fromkeys(name for key, names in named.items() if len(tried[key]) < 2 for name in names)
    if once:
        yield f"learning rate not swept: {', '.join(once)}; another one may do better"
