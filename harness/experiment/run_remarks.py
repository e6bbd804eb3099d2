"""Remarks on runs: sentences about rows, prompts, bases and servers, shown as notes in a report."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from harness import plugins
from harness.analysis.admission import may_be_judged
from harness.analysis.alignment import fill_errors
from harness.analysis.seeds import family_of
from harness.analysis.significance import chance_of_an_equal_model, list_spare_items, power_warnings
from harness.config import CommandLine, lint
from harness.errors import Problem
from harness.evaluation import costs, has_instruction
from harness.evaluation.candidate_rows import describe_training_rows
from harness.evaluation.costs import tokens_usd
from harness.evaluation.judges import LIMITS, judge_messages, orders
from harness.evaluation.languages import describe_unspoken
from harness.evaluation.session import MeasuredTask, Session
from harness.evaluation.timing import describe_timing
from harness.experiment.candidate_weights import processes_of
from harness.experiment.stored_rows import FoundRuns, Reader, Runs
from harness.experiment.study import Study
from harness.formatting import count, interval, percent, plain, pluralize, seconds
from harness.models import artefacts, encode_all
from harness.models.hardware import Machine, describe_speed, probe_notes
from harness.models.hub import chat_template, context_length, is_packed, load_tokenizer
from harness.models.openai_api import Settings
from harness.progress import spins_briefly
from harness.prompting import PromptingContext, Step, context_of, describe_prompts
from harness.records import OPENING_CHARS, Example, PromptText, Run, TrainingRecord
from harness.report import advise_on_power, front_sentence, print_tried_value
from harness.spec import Experiment
from harness.stats import paired_delta, t_interval, wilson


def count_rows(study: Study, tasks: Sequence[MeasuredTask], reader: Reader, runs: Runs) -> Iterator[str]:
    """Yield sentences that count failed and ungraded rows of finished runs."""
    finished_runs = [run for run in runs if run.state == "done"]
    metric = study.primary(study.target)
    for run in finished_runs:
        rows = study.rows.cut(run, study.target)
        if failed := [r for r in rows if r.status in ("error", "incomplete")]:
            is_scored = fill_errors(metric, rows, rows).errors.is_scored
            counted = "count as worst" if is_scored else "are left out, because the metric has no worst value"
            some = sum(r.status == "incomplete" for r in failed)
            also = f"; to {some} others some of several answers failed" if some else ""
            errors = f"{len(failed) - some} of {len(rows)} test rows are errors and {counted}{also}"
            yield f"{run.candidate}: {errors}, the first one {failed[0].example_id}: {failed[0].error}"
        answered = [r for r in rows if r.status != "error"]
        if without := [r for r in answered if r.parts[metric.name] is None]:
            part = f"{len(without)} of {pluralize(len(rows), 'test answer')}"
            first = ": ".join(filter(None, (without[0].example_id, without[0].error)))
            yield f"{run.candidate}: {metric.name} gave no score to {part}, which are left out; first {first}"
    # Counts answers to judged tasks that were cut, empty or failed, and so never judged.
    for run, measured in product(finished_runs, [m for m in tasks if m.judged]):
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
            counted_answers = f"{count(n)} of {pluralize(len(rows), 'answer')} to {task.name}"
            reasons = ", ".join(f"{count(k)} {reason}" for reason, k in why.most_common())
            worst = "" if set(why) == {_FAILED} else "; what is cut or empty has the lowest grade"
            ungraded = f"{run.candidate}: {', '.join(measured.judged)} was not asked about {counted_answers}"
            step = _STEP if any(reason.startswith(_CUT) for reason in why) else ""
            yield f"{ungraded}: {reasons}{worst}{step}"


def list_remarks(session: Session, runs: Runs) -> Iterator[str]:
    """Yield the sentences about finished runs."""
    finished_runs = [run for run in runs if run.state == "done"]
    base_digest, candidates = session.source.weights_digest, session.candidates
    other_bases = {run.candidate: run.base_model for run in finished_runs if run.base_digest != base_digest}
    used = {need for name, candidate in candidates.items() for need in candidate.lineage if need != name}
    yield from dict.fromkeys(describe_timing(finished_runs))
    yield from (f"{name}: made from {base}, and measured against that" for name, base in other_bases.items())
    for run in (run for run in finished_runs if plugins.method(run.method).is_remote):
        candidate, name = candidates[run.candidate], run.candidate
        settings = Settings(**candidate.source.params)
        prices = settings.usd_per_million_tokens or session.experiment.decide.usd_per_million_tokens
        cost = "" if prices else "; its requests have no price here without usd_per_million_tokens"
        yield f"{name}: {settings.name}, asked by {settings.protocol}; times include the network{cost}"
        left_out = [m.task.name for m in session.suites if f"{m.task.name}/test" not in run.rows]
        if left_out and not candidate.is_target_only:
            why = "which need token ids or their log-probabilities, and chat has neither"
            yield f"{name}: not evaluated on {', '.join(left_out)}, {why}"
    for run in (run for run in finished_runs if plugins.method(run.method).makes == "artefact"):
        candidate = candidates[run.candidate]
        path = Path(candidate.source.path or "")
        if candidate.given is None:  # names both engines, as another one computed the base's rows
            engine = artefacts.identity(path, session.gguf_command)[0].partition("/")[2]
            base = session.engine(candidate.base)[0].partition("/")[0]
            engines = f"answered by {engine}, its base by {base}: what both differ by is part of its score"
            yield f"{run.candidate}: {path.name}, {engines}"
    for name, candidate in candidates.items():
        if not candidate.method.answers and name not in used:
            unused = "not trained, as it answers nothing and no candidate uses it"
            yield f"{name}: {unused}; next: harness train {name}"


def describe_rows_and_prompts(session: Session, names: Collection[str]) -> list[str]:
    """Describe the target's rows, the training rows, incomplete prompts, and untested languages."""
    names_by_note: dict[str, list[str]] = {}
    targets = [(fold.target.task, fold.target.items) for fold in session.in_folds() or [session]]
    named_trials = [(name, trial) for name in names for trial in session.candidates[name].trials]
    for (name, trial), (task, items) in product(named_trials, targets):
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
        is_generated, n_tokens = suite.task.kind == "generate", suite.task.max_new_tokens
        if is_generated and suite.task.primary_metric in _OF_OPENINGS and n_tokens < _OPENING_TOKENS:
            ends = f"answers end after {n_tokens} tokens"
            note = f"{ends}, and a refusal may be said later in their first {OPENING_CHARS} characters"
            step = f"; next: max_new_tokens: {_OPENING_TOKENS} in the task"
            names_by_note.setdefault(note + step, []).append(suite.task.name)
        shares = [1 / len(e.choices) for e in suite.items.test if e.choices]
        is_set = "chance" in suite.task.model_fields_set or suite.role == "regression"
        if suite.task.kind == "choice" and shares and not is_set:
            guess = fmean(shares)
            note = f"a guess is right in {percent(guess)} % of its items, which the gate takes for skill"
            step = f"; next: chance: {guess:.4g} in the task"
            names_by_note.setdefault(note + step, []).append(suite.task.name)
    in_folds = bool(session.folds)
    return [
        *session.target.items.notes,
        *describe_training_rows(session.candidates, names, session.training_data, in_folds=in_folds),
        *(f"{', '.join(dict.fromkeys(affected))}: {note}" for note, affected in names_by_note.items()),
        *describe_unspoken(session.target, session.suites),
    ]


_OF_OPENINGS = ("refusal", "no_refusal")  # metrics
_OPENING_TOKENS = OPENING_CHARS // 5  # with 24 tokens 22 % of harmful requests seemed refused, 57 % were
_BARE = (
    "asked without an instruction: neither a system text nor words that all prompts share say what to do; "
    "next: system: TEXT in the task"
)
_CUT, _FAILED = "cut at max_new_tokens:", "failed"
_STEP = " (raise max_new_tokens, or truncated_scores: true in the task lets judges grade cut ones)"
NO_CHANGE = "found nothing to change"
_MOSTLY = 0.5  # share of the prompts of a training on rewards
_WITHIN_NOISE = ", which is within its noise; more steps or a higher learning_rate may move it"


def describe_trainings(study: Study, runs: Runs) -> Iterator[str]:
    """Yield the sentences about the weights of finished runs; several seeds may yield the same one."""
    for run in runs:
        if n := run.training.n_dropped_too_long:
            unit = "training rows" if run.training.n_pairs is None else "pairs"
            yield f"{run.candidate}: {n} {unit} were longer than max_length and left out"
    for run in runs:
        if reason := run.training.not_packed:
            yield f"{run.candidate}: trained without packing, which {reason}"
    for run in runs:
        yield from describe_rewards(run.candidate, run.training)
    for run in runs:
        for trial in (trial for trial in run.training.sweep if trial.chosen):
            point, n = list[str](), len(run.training.sweep)
            for name, value in trial.params.items():
                shown_value = f"{value:g}" if isinstance(value, float) else print_tried_value(value)
                point.append(f"{name} {shown_value}")
            yield f"{run.candidate}: {', '.join(point)} was the best of {n} trials on validation"
    for run in runs:  # an adapter made elsewhere may fit other bases than its own
        if (base := run.training.named_base) and Path(base).name != Path(run.base_model).name:
            yield f"{run.candidate}: its own files name {base} as its base; it was put on {run.base_model}"
    digests = {(run.candidate, run.seed): run.weights_digest for run in runs}
    for run in runs:  # weights equal to those they started from: the method had nothing to change
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
    """Describe the reward signal of a training on rewards or pairs, and whether it was learned."""
    rewards, shares = training.reward, [share for _, share in training.equal_rewards if share is not None]
    if rewards and all(mean is None for _, mean in rewards):
        steps = pluralize(len(rewards), "step")
        yield f"{name}: no answer of its {steps} could be rewarded, so it learned nothing"
    elif shares and (mean := sum(shares) / len(shares)) >= _MOSTLY:
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
    known_rewards = [
        (rewards.cluster, rewards.before, rewards.after)
        for rewards in training.validation_rewards
        if rewards.before is not None and rewards.after is not None
    ]
    if not known_rewards:
        return None
    clusters, before, after = zip(*known_rewards, strict=True)
    mean = paired_delta(before, after, clusters)
    low, high = (None, None) if mean.se is None else t_interval(mean)
    return RewardGain(len(known_rewards), fmean(before), fmean(after), mean.mean, low, high)


def _note_unswept(study: Study, runs: Iterable[Run]) -> Iterator[str]:
    # Names candidates trained at a single learning rate: the best one differs tenfold between methods.
    rates_of, names_of = dict[tuple[str, ...], set[object]](), dict[tuple[str, ...], list[str]]()
    for run in runs:
        recipe = study.experiment.candidates[run.candidate]
        if recipe.weights_of is None and run.training.loss:
            key = (run.base_digest, run.method, str(recipe.params.get("peft_type", "")))
            rates = recipe.tried.get("learning_rate") or [recipe.params.get("learning_rate")]
            rates_of.setdefault(key, set()).update(rates)
            names_of.setdefault(key, []).append(run.candidate)
    once = dict.fromkeys(name for key, names in names_of.items() if len(rates_of[key]) < 2 for name in names)
    if once:
        yield f"learning rate not swept: {', '.join(once)}; another one may do better"


def describe_stored(unknown_bases: Sequence[str], runs: FoundRuns, missing_s: float) -> str:
    """Describe how much of a dry run's plan is stored, and the time of the rest, or why it is unknown."""
    if unknown_bases:
        never = f"{', '.join(unknown_bases)} was never loaded on this machine, and a dry run loads no model"
        return f"unknown whether any of it is stored: {never}"
    n_done = sum(run is not None and run.state == "done" for run in runs)
    stored = f"{count(n_done)} of {count(len(runs))} runs are stored already"
    return f"{stored}; the others take about {seconds(missing_s)}" if 0 < n_done < len(runs) else stored


def first_line(
    experiment: Experiment, machine: Machine, n_candidates: int, whole_s: float | None, missing_s: float
) -> str:
    """Describe candidates, machine, and the time of the missing part and the whole (None: all is stored)."""
    is_shared = whole_s is not None and machine.device == "cpu" and spins_briefly()
    notes = [probe_notes(machine), "other work runs too, so threads spin briefly" if is_shared else ""]
    remarks = f" ({'; '.join(filter(None, notes))})" if any(notes) else ""
    n = pluralize(n_candidates, "candidate")
    took = "all of it stored"
    if whole_s is not None:
        rest = f"about {seconds(missing_s)} for what is missing, " if missing_s < whole_s else ""
        took = f"{rest}about {seconds(whole_s)} from nothing"
    return (
        f"{experiment.name}: {n} on {experiment.base_model}, {machine.name}, {machine.precision}{remarks}, "
        f"{describe_speed(machine.gflops)}; {took}"
    )


def estimate_power(
    experiment: Experiment, suites: Sequence[MeasuredTask], typed: CommandLine
) -> tuple[Sequence[str], str, str]:
    """Estimate the power of the items for one of all fine-tunes; commands repeat `typed` options.

    Returns warnings about margins that the items probably cannot show, advice, and a note: the first warning,
    or how often an equal model passes a judged macro.
    """
    held, judged = {m.task.name: m.held for m in suites}, partial(may_be_judged, policy=experiment.gate)
    counting = [m for m in suites if judged(m.task, m.role, m.suite, m.primary)]
    n_items = {m.task.name: len(m.items.test) for m in counting}
    members = family_of(experiment).size
    warn = partial(power_warnings, experiment.suites, policy=experiment.gate, n_members=members)
    spare = list_spare_items(experiment, (), lambda task: held[task.name])
    warnings, advice = warn(n_items), advise_on_power(n_items, spare, warn, typed).text
    chance = chance_of_an_equal_model(experiment.suites, n_items, experiment.gate, members)
    note = warnings[0] if warnings else ""
    if len(warnings) > 1:
        note = f"power: {note} (and {len(warnings) - 1} more margins; --strict lists them all)"
    elif members and chance is not None and not warnings:
        among = f", as one of {members}," if members > 1 else ""
        chance_shown = f"{100 * chance:.0f} % of the time"
        note = f"power: a fine-tune that lost nothing{among} passes the macro {chance_shown}"
    return warnings, advice, note


def recipe_warnings(session: Session, selected: Iterable[str]) -> list[str]:
    """List settings of the selected trainings that differ from published ones or do not suit their rows."""
    names_by_line, policy = dict[str, list[str]](), session.experiment.training.accelerate
    candidates = [session.candidates[name] for name in selected]
    trained = [c for c in candidates if c.name == c.source_name and c.method.trains]
    for candidate, trial in ((c, trial) for c in trained for trial in c.trials):
        method, written = candidate.method, trial.source.params
        params, train = method.params(**written).model_dump(), session.training_data(trial.source).items.train
        lines = [*lint(candidate.source.method, params, candidate.base.n_parameters, written)]
        if method.trains_on_rows and (max_length := params.get("max_length")) is not None:
            n_rows, limit = pluralize(len(train), "row"), f"max_length, {count(max_length)} tokens"
            lines += filter(None, [costs.describe_longer(train, max_length, n_rows, limit)])
        if processes_of(policy, trial.source) < (n_processes := policy.num_processes):
            lines.append(
                f"trains in one process, not in {n_processes} (training.accelerate), as its method or a "
                "regulariser of it cannot share steps"
            )
        for line in lines:
            names_by_line.setdefault(line, []).append(candidate.name)
    return [f"recipe of {', '.join(dict.fromkeys(names))}: {line}" for line, names in names_by_line.items()]


_CHARACTERS = 4  # assumed characters per token of an answer


class PlannedGrades(NamedTuple):
    """Upper bound of one judge's grades for a metric, with tokens `read` and `generated`."""

    task: str
    metric: str
    judge: str
    grades: int
    read: int
    generated: int
    cost_usd: float | None


def plan_grades(session: Session, candidates: Sequence[str]) -> Iterator[PlannedGrades]:
    """Yield the planned grades of each judge, for the candidates' answers and the base's on suites."""
    chosen = [session.candidates[name] for name in candidates]
    target = session.target
    samples = (c.recipe.decoding.samples if c.recipe.decoding else 1 for c in chosen)
    n_answers = sum(len(c.seeds) * n for c, n in zip(chosen, samples, strict=True))
    examples = [*target.items.validation, *target.items.test]
    shows_passages = any(judged.rubric.passages for judged in target.judged.values())
    steps = (session.prompting_step(c.recipe, c.seeds[0]) for c in chosen if shows_passages)
    n_passages = max((passage_tokens(step, examples) for step in steps), default=0)
    yield from _plan_items(target, examples, n_answers, n_passages, n_checks=len(chosen))
    n_own = sum(len(candidate.seeds) for candidate in chosen if not candidate.method.keeps_base)
    for measured in session.more_targets:
        items = [*measured.items.validation, *measured.items.test]
        yield from _plan_items(measured, items, n_answers, n_checks=len(chosen))
    for suite in session.suites:
        yield from _plan_items(suite, suite.items.test, 1 + n_own, n_checks=1 + len(chosen))
    if judged := session.open_judge_of_pairs():  # compares fine-tunes with the best untrained candidate
        n_tuned = sum(len(c.seeds) for c in chosen if c.method.tunes and not c.is_target_only)
        reply = "x" * _CHARACTERS * target.task.max_new_tokens  # an answer as long as the task allows
        pairs = [replace(example, references=(reply,)) for example in target.items.test]
        yield from _plan_items(target._replace(judged={judged.metric: judged}), pairs, n_tuned)


def passage_tokens(step: Step, examples: Sequence[Example]) -> int:
    """Estimate the tokens of the longest passages in the prompts of a step."""
    return max((costs.tokens(context_of(step(e).prompt, e.prompt)) for e in examples), default=0)


def _plan_items(
    measured: MeasuredTask,
    examples: Sequence[Example],
    n_answers: int,
    n_passages: int = 0,
    n_checks: int = 1,
) -> Iterator[PlannedGrades]:
    """Yield the grades of `n_answers` to each item; an endpoint grades its anchors again at each check."""
    for judged in measured.judged.values():
        n_each = n_answers * len(orders(judged.rubric))
        more = n_passages if judged.rubric.passages else 0
        # Each prompt has its texts, and an answer of the task's maximal length.
        (order, *_), answer = orders(judged.rubric), measured.task.max_new_tokens
        prompts = (judge_messages(judged.rubric, example, "", order) for example in examples)
        longest = [sum(costs.tokens(turn["content"]) for turn in turns) + answer + more for turns in prompts]
        for judge in judged.judges:
            again = n_checks * min(judged.rubric.anchors, n_each * len(examples)) if judge.settings else 0
            grades = judge.attempts * n_each * len(examples) + again
            read = judge.attempts * n_each * sum(longest) + again * max(longest, default=0)
            written = grades * LIMITS.max_new_tokens
            cost = tokens_usd(judge.prices, read, written) if judge.prices else None
            yield PlannedGrades(measured.task.name, judged.metric, judge.name, grades, read, written, cost)


_SHORTER = (
    "shorter criteria, fewer graded examples, a smaller max_new_tokens, or a judge with a longer context"
)


class ShortContext(NamedTuple):
    """A judge whose context is too short for some prompts; `problem` is set if it is for all prompts."""

    text: str
    problem: Problem | None


def short_contexts(session: Session, names: Sequence[str]) -> list[ShortContext]:
    """List the judges whose context is too short for some prompts about the candidates' answers."""
    judged_items = [
        (judged, m, [*m.items.validation, *m.items.test], 1)
        for m in session.tasks
        for judged in m.judged.values()
    ]
    if pairs := session.open_judge_of_pairs():  # the reference is another candidate's answer
        items = [replace(example, references=("",)) for example in session.target.items.test]
        judged_items.append((pairs, session.target, items, 2))
    short = []
    for judged, measured, examples, n_answers in judged_items:
        for judge in judged.judges:
            source = session.candidates[judge.name].served_base if judge.absent else None
            source = judge.weights.source if judge.weights else source
            context = context_length(source) if source and not is_packed(source) else None
            if source is None or context is None or not examples:
                continue
            answers = n_answers * measured.task.max_new_tokens
            if judged.rubric.passages and measured.role == "target":
                chosen = (session.candidates[name] for name in names)
                steps = (session.prompting_step(candidate.recipe, candidate.seeds[0]) for candidate in chosen)
                answers += max((passage_tokens(step, examples) for step in steps), default=0)
            # Counts each item's prompt with an empty answer, and the longest grade.
            order, chat = orders(judged.rubric)[0], bool(chat_template(source))
            grade = ("" if chat else " ") + max(judged.rubric.grades, key=len)
            prompts = (judge_messages(judged.rubric, example, "", order) for example in examples)
            texts = [PromptText(turns, grade, chat) for turns in prompts]
            sizes = [len(e.context) + len(e.continuation) for e in encode_all(load_tokenizer(source), texts)]
            n_long, n_sure = (sum(size + more > context for size in sizes) for more in (answers, 0))
            if not n_long:
                continue
            task = measured.task.name
            share = f"{count(n_long)} of {count(len(sizes))} items of {task}"
            sure = f", {count(n_sure)} of them with any answer" if n_sure else ""
            text = (
                f"{judged.metric}: the context of {judge.name} holds {count(context)} tokens; with the"
                f" longest answer that it may be shown, the prompts of {share} are longer (up to "
                f"{count(max(sizes) + answers)} tokens){sure}. Such an answer gets no grade; next: {_SHORTER}"
            )
            found = f"prompts of {count(min(sizes))} tokens and more for {task}, before any answer"
            expected = f"at most {count(context)}, the context of {judge.name}"
            problem = Problem(f"{judged.metric}: judge", found, expected, _SHORTER)
            short.append(ShortContext(text, problem if n_sure == len(sizes) else None))
    return short


def list_plan_notes(session: Session, selected: Sequence[str], *, computes: bool, dry_run: bool) -> list[str]:
    """List the notes shown before a comparison of the selected candidates starts."""
    short = short_contexts(session, selected) if computes else []
    policy = session.experiment.execution
    is_idle = policy.executor == "in_process" and (policy.workers or 1) > 1
    idle = f"workers: {policy.workers}, and no executor: one process does it all; try --executor local"
    return [
        *describe_rows_and_prompts(session, selected),
        *recipe_warnings(session, selected),
        *([idle] if is_idle else []),
        *(context.text for context in short if dry_run or not context.problem),  # a problem is refused later
    ]
