"""Rows, preference pairs and system texts that a candidate writes, as a teacher or by its own answers.

Invariant: no row or pair has an evaluated question, and a proposer sees training rows only. The same weights,
rows and seed give the same rows. Ties, and truncated or unscored answers, give no pair.
Source: Kim and Rush 2016, https://arxiv.org/abs/1606.07947 (distillation); Zhou et al. 2023, arXiv:2211.01910
(prompts from a few examples); Xu et al. 2023, arXiv:2312.16682 (pairs of the best and the worst of n samples)
"""

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from harness import __version__, plugins
from harness.data import Notes, SourcedExample, readers, splits
from harness.data import examples as items_of
from harness.data.edit.changes import Change, EditedRow, drop
from harness.data.edit.save import Edit, digest_of
from harness.data.examples import FIELD
from harness.data.text_files import Row, display_path
from harness.errors import Problem, Unscored, UserError, did_you_mean, refuse
from harness.evaluation import seed_of
from harness.evaluation.candidate_rows import row_files
from harness.evaluation.judge_calls import GradeAccount
from harness.evaluation.judges import GradeReader, key_problems
from harness.evaluation.row_sets import prompting_digest
from harness.evaluation.session import Session
from harness.evaluation.stored_scores import grade_answers
from harness.experiment import writers
from harness.experiment.candidate_weights import ensure_weights
from harness.experiment.stored_rows import refuse_folds
from harness.formatting import count, pluralize, price
from harness.metrics import item_scores, normalize
from harness.metrics import version as metric_version
from harness.prompting import Step
from harness.provenance import digest_code
from harness.records import Example, Limits, Message, Output, fold_text, is_unspaced
from harness.spec import Fields, Task, is_path, metric_name, metric_plugin
from harness.training import Reward, open_scorer, reward_problems, rewards_of

_REWRITE = """\
Rewrite the answer to the question below, and reply with the rewritten answer alone. How to rewrite it:
{instruction}

Question:
{question}

Answer:
{answer}"""


class Distillation(NamedTuple):
    """Request to a teacher to answer rows, or to rewrite their answers as `rewrite` says, with limits.

    `prompts` is a file of rows that need no answer. `min_score` is in the target's metric.
    """

    rewrite: str = ""
    prompts: str | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int | None = None
    min_score: float | None = None
    n_rows: int | None = None
    max_cost: float | None = None
    seed: int = 0


def prepare_distillation(
    session: Session, name: str, request: Distillation, out: str
) -> writers.PreparedRequests[writers.MadeRows]:
    """Read the rows for a candidate to answer or rewrite, and build its prompts; nothing is sent yet."""
    candidate, target, task = session.candidates[name], session.target, session.target.task
    refuse_folds(session.folds, "harness data distill", "in which every training row is tested too")
    if request.prompts and (request.rewrite or request.min_score is not None):
        option = "--rewrite" if request.rewrite else "--min-score"
        found = "rows whose own answers are not read, by --prompts"
        raise UserError(option, found, "the target's training rows", "leave one of them out")
    metric = target.primary
    if request.min_score is not None and (target.judged or not metric.higher_is_better):
        found = f"{metric.name}, whose higher scores are not always better answers"
        raise UserError("--min-score", found, "a metric that grows with the answer", "leave it out")
    if task.fields != Fields() and not FIELD.fullmatch(task.fields.reference):
        found = f"fields: reference: {task.fields.reference!r}, which an answer cannot be taken apart into"
        step = "make one column of it, or name the columns prompt and reference"
        raise UserError(f"task {task.name}", found, "a single column", step)
    if request.prompts:
        rows = items_of.prompts(task, readers.read(request.prompts, "train"), Notes([], []))
    else:
        rows = target.items.list_sourced("train")
    if not rows:
        step = "name a file of prompts: --prompts FILE"
        raise UserError(f"task {task.name}", "no training rows", "rows for the teacher", step)
    rows = writers.draw_prompts(rows, request.n_rows, request.seed)
    writer = writers.candidate_writer(session, name, request.max_cost)
    step_to = session.prompting_step(candidate.recipe, session.first_seed)
    max_new_tokens = request.max_new_tokens or task.max_new_tokens
    limits = Limits(max_new_tokens, task.stop, request.temperature, request.top_p)
    prompts = []
    for example in (row.example for row in rows):
        if request.rewrite:
            texts = {"question": example.question, "answer": example.references[0]}
            content = _REWRITE.format(instruction=request.rewrite, **texts)
            messages: tuple[Message, ...] = ({"role": "user", "content": content},)
        else:
            messages = step_to(example).messages
        seed = seed_of(request.seed, example.id, 0) if request.temperature > 0 else None
        prompts.append(writers.PromptRequest(messages, limits, seed))
    distill = partial(_distill, session, name, request, out, writer, rows, prompts)
    return writers.PreparedRequests(writers.plan_requests(writer, prompts), distill)


def _distill(
    session: Session,
    name: str,
    request: Distillation,
    out: str,
    writer: writers.Writer,
    rows: Sequence[SourcedExample],
    prompts: Sequence[writers.PromptRequest],
) -> writers.MadeRows:
    target = session.target
    candidate = session.candidates[name]
    notes = writers.check_contamination(session.tasks, rows, "train", request.prompts or out)
    budgeted = writers.BudgetedWriter(writer, request.max_cost, session.progress)
    answers = budgeted.answers(prompts, f"{pluralize(len(prompts), 'answer')} of {name}")
    once = {prompt.key: answer for prompt, answer in zip(prompts, answers, strict=True)}
    spent = writers.sum_usage(writer, [a for a in once.values() if a.finish_reason != "error"])
    metric = target.primary
    file = request.prompts or target.task.data.source("train") or ""
    sources = {row.where: row for row in readers.read(file, "train").rows}
    outcomes: list[EditedRow] = []
    scored: list[float] = []
    for (example, where, _), answer in zip(rows, answers, strict=True):
        source = sources.get(where)
        score: float | None = None
        if not target.judged and answer.finish_reason != "error" and not request.rewrite:
            with suppress(Unscored):
                text = Output(answer.text.strip())
                parts = metric.score(text, example) if example.references else None
                if parts is not None:
                    score = float(metric.aggregate(np.array([parts]), np.ones(1)))
        scored += [] if score is None else [score]
        if target.task.fields != Fields():  # keeps the columns that the task names
            written = sources[where]
        else:
            question, groups = writers.write_question(example)
            marks = (splits.SOURCE, splits.ORIGIN) if source and splits.is_augmented(source) else ()
            groups |= {name: source.fields[name] for name in marks if source and name in source.fields}
            documents = {"documents": list(example.documents)} if example.documents else {}
            written = Row(where, {**question, **groups, **documents})
        outcomes.append(_outcome(target.task, written, answer, score, request))
    if not any(outcome.row for outcome in outcomes):
        reasons = ", ".join(dict.fromkeys(o.change.reason for o in outcomes if o.change))
        found = f"{len(outcomes):,} prompts, and none gives a row: {reasons}"
        step = "a larger --max-new-tokens, a system text that says the form of the answer"
        step += ", or another teacher"
        raise UserError("harness data distill", found, "answers to train on", step)
    prompting = prompting_digest(target, candidate.recipe, session.first_seed)
    used = {
        "teacher": name,
        "recipe": candidate.recipe.model_dump(mode="json", exclude_defaults=True),
        "weights": writer.weights_digest,
        "prompting": "" if request.rewrite else prompting,
        "answers": writers.AnswerBook(writer.folder, writer.identity).path.name,
        **request._asdict(),
        "max_new_tokens": request.max_new_tokens or target.task.max_new_tokens,
        "spent": spent._asdict(),
        "leak_check": writers.record_contamination(session.tasks, notes),
    }
    edit = Edit("distill", used, (file,), cost_usd=spent.cost_usd, taught=not request.rewrite)
    remarks = [*notes]
    if scored:
        share = metric.unit.scale * float(np.mean(scored))
        scores = f"{metric.name} of the answers against the rows' own"
        remarks.append(f"{scores}: {share:.1f} over all rows that have one")
    took = f"{spent.n_output_tokens:,} tokens and {price(spent.cost_usd)}"
    remarks.append(f"the teacher's answers took {took}, kept in the manifest")
    return writers.MadeRows(edit, outcomes, tuple(remarks), spent)


def _outcome(task: Task, row: Row, answer: Output, score: float | None, request: Distillation) -> EditedRow:
    if answer.finish_reason == "error":
        return drop(row, f"the teacher failed ({answer.error})" if answer.error else "the teacher failed")
    text = answer.text.strip()
    if not text:
        return drop(row, "an empty answer")
    if answer.finish_reason == "length" and not task.truncated_scores:
        return drop(row, "an answer cut at max_new_tokens")
    labels = {normalize(label): label for label in task.labels}
    if labels and normalize(text) not in labels:
        return drop(row, "an answer that is not a label of the task")
    if request.min_score is not None and score is not None and score < request.min_score:
        return drop(row, "an answer that scores below --min-score")
    field_match = FIELD.fullmatch(task.fields.reference)
    column = field_match[1] if field_match else "reference"
    copied = {name: value for name, value in row.fields.items() if name != "references" or name == column}
    fields = {**copied, column: labels.get(normalize(text), text)}
    reason = "rewritten by the teacher" if request.rewrite else "labelled by the teacher"
    return EditedRow(Row(row.where, fields), Change(row.where, "changed", (reason,)))


_ASK = """\
Write a system text for a language model that has to do this task.

{task}
{examples}
The text says what to do, which form the answer has, and what to watch out for. Begin it with: {start}
Reply with the system text alone."""
# Openings that make greedy texts differ.
_STARTS = ("You are", "Read", "Your task is", "Answer", "Think about", "Given")


class PromptProposal(NamedTuple):
    """Request to a proposer: number of texts, number of training rows shown, length, cost limit."""

    n: int = 6
    n_examples: int = 4
    max_new_tokens: int = 200
    temperature: float = 0.7
    max_cost: float | None = None
    seed: int = 0


class ProposedPrompts(NamedTuple):
    """Distinct system texts, with their provenance and cost."""

    texts: tuple[str, ...]
    provenance: dict[str, Any]


def prepare_proposal(
    session: Session, name: str, request: PromptProposal
) -> writers.PreparedRequests[ProposedPrompts]:
    """Sample the training rows to show to a proposer, and build its prompts; nothing is sent yet."""
    refuse_folds(session.folds, "harness data propose-prompts", "in which every training row is tested too")
    writer = writers.candidate_writer(session, name, request.max_cost)
    task, rows = session.target.task, session.target.items.train
    if not rows:
        found, step = "no training rows", "train: among its data; no other rows are shown to a proposer"
        raise UserError(f"task {task.name}", found, "rows that show the questions", step)
    shown_rows = random.Random(f"{request.seed}/proposals").sample(rows, min(request.n_examples, len(rows)))
    about = [task.description, f"Its labels: {', '.join(task.labels)}." if task.labels else ""]
    about += [f"Its present system text: {task.system}" if task.system else ""]
    shown = [f"{e.question}\nRight answer: {e.references[0]}\n" for e in shown_rows]
    limits, prompts = Limits(request.max_new_tokens, (), request.temperature), []
    texts = {"task": "\n".join(filter(None, about)) or f"The task is called {task.name}."}
    texts["examples"] = "\n".join(f"Example {i}:\n{text}" for i, text in enumerate(shown, 1))
    for k in range(request.n):  # each text has its own opening and seed
        content = _ASK.format(**texts, start=_STARTS[k % len(_STARTS)])
        seed = seed_of(request.seed, "proposal", k) if request.temperature else None
        prompts.append(writers.PromptRequest(({"role": "user", "content": content},), limits, seed))

    def propose() -> ProposedPrompts:
        budgeted = writers.BudgetedWriter(writer, request.max_cost, session.progress)
        outputs = budgeted.answers(prompts, f"{request.n} system texts by {name}")
        answers = [output for output in outputs if output.finish_reason != "error"]
        first: dict[str, str] = {}
        for answer in answers:
            if answer.finish_reason != "length" and (text := answer.text.strip()):
                first.setdefault(fold_text(text), text)
        if not first:
            failed = dict.fromkeys(output.error for output in outputs if output.error)
            reasons = ", ".join(failed) or "texts that are empty or cut at max_new_tokens"
            step = "a larger --max-new-tokens, or another model"
            raise UserError("harness data propose-prompts", reasons, "a text to try", step)
        file = task.data.source("train") or ""
        provenance = {
            "harness": __version__,
            "proposer": name,
            "weights": writer.weights_digest,
            "task": task.name,
            "examples": [example.id for example in shown_rows],
            "rows": {"file": display_path(file), "sha256": digest_of(file)} if file else {},
            **request._asdict(),
            "spent": writers.sum_usage(writer, answers)._asdict(),
        }
        return ProposedPrompts(tuple(first.values()), provenance)

    return writers.PreparedRequests(writers.plan_requests(writer, prompts), propose)


class Ranking(NamedTuple):
    """Function that scores answers, with its provenance, and its cost so far (None if unknown)."""

    by: Mapping[str, Any]
    score: Callable[[Sequence[Example], Sequence[str]], Sequence[float | None]]
    cost_usd: Callable[[], float | None] = lambda: 0.0


def open_ranking(session: Session, rank: str, left_usd: Callable[[], float | None] = lambda: None) -> Ranking:
    """Open a ranking by a reward model, a judge (`left_usd` is its budget), a metric or a file."""
    name = metric_name(rank) if rank else session.target.primary.name
    if candidate := session.candidates.get(rank):
        if candidate.method.answers:
            methods = " or ".join(plugins.methods(makes="reward"))
            found = f"{rank}, whose method {candidate.source.method} makes no reward model"
            raise UserError("--rank", found, "a candidate that makes one", f"one with the method {methods}")
        weights = ensure_weights(session, candidate, session.first_seed)
        step = session.prompting_step(candidate.source, session.first_seed)
        assert weights.folder is not None, "a reward model is trained into a folder"
        model, base = weights.folder / weights.kind, candidate.trained_base

        def score_by_model(examples: Sequence[Example], answers: Sequence[str]) -> list[float | None]:
            session.unload()  # the reward model has its own base
            prompts, chat = [step(example) for example in examples], session.target.task.chat_template
            return [*open_scorer(model, base, session.machine, chat)(prompts, answers)]

        return Ranking({"reward": rank, "weights": weights.digest}, score_by_model)
    if name in session.target.judged:
        judged, metric = session.target.judged[name], session.target.metrics[name]
        problems, account = [*key_problems([judged])], GradeAccount(judged)
        with_prices = "usd_per_million_tokens: {input: …, output: …} in the rubric"
        for judge in judged.judges if left_usd() is not None else ():
            if judge.settings and judge.prices is None:
                found = f"{name} by {judge.name}, an endpoint without prices"
                problems.append(Problem("--max-cost", found, "prices to hold it against", with_prices))
        refuse(problems)

        def read(asked: Sequence[Example], texts: Sequence[str]) -> tuple[GradeReader, list[float | None]]:
            reader = GradeReader(session.target.task.name, {name: judged}, asked)
            bound = reader.bind({name: metric})[name]
            parts = [bound.score(Output(text), e) for e, text in zip(asked, texts, strict=True)]
            scores = [None if p is None else item_scores(metric, np.array([p]))[0] for p in parts]
            return reader, [None if score is None else metric.unit.sign * float(score) for score in scores]

        def score_by_judge(examples: Sequence[Example], answers: Sequence[str]) -> list[float | None]:
            reader, scores = read(examples, answers)
            account.count(reader.keys)
            if not reader.ungraded:
                return scores
            limited = judged._replace(limit=account.limit(left_usd()))
            grade_answers(session, [answer._replace(judged=limited) for answer in reader.ungraded])
            return read(examples, answers)[1]

        by = {"judge": name, "books": [judge.book for judge in judged.judges]}
        hour, device = session.experiment.decide.device_hour_usd, session.machine.device
        return Ranking(by, score_by_judge, lambda: account.cost_usd(device, hour))
    names = {*plugins.names("metrics"), *session.target.judged}
    names |= {n for n, candidate in session.candidates.items() if not candidate.method.answers}
    if not is_path(rank or name) and metric_plugin(rank or name) not in names:
        found, hint = f"unknown {rank or name!r}", did_you_mean(rank or name, names)
        expected = "a metric, a Python file, a judge of the target, or a candidate that makes a reward model"
        raise UserError("--rank", found, expected, hint)
    task, where = session.target.task, "--rank"
    refuse(reward_problems(rank or name, task, session.target.items.train, where))
    unspaced = is_unspaced(text for e in session.target.items.train for text in e.references)
    content = digest_code(Path(rank)) if is_path(rank) else metric_version(rank or name, unspaced)
    return Ranking({"metric": name, "version": content}, rewards_of(Reward(written=rank or name, task=task)))


_TOGETHER = 16  # prompts whose answers are sampled together
_CUT = "answers cut at max_new_tokens"


class Drawing(NamedTuple):
    """Sampling of answers: `samples` per prompt, ranked by `rank` (empty: the target's primary metric).

    Scores within `gap` are a tie. `max_cost` limits answers and grades together, in USD.
    """

    samples: int = 4
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int | None = None
    rank: str = ""
    gap: float = 0.0
    n_prompts: int | None = None
    seed: int = 0
    max_cost: float | None = None


def make_pairs(session: Session, name: str, drawing: Drawing, out: str) -> writers.MadeRows:
    """Sample a candidate's answers to its training prompts, rank them, and pair the best with the worst."""
    candidate = session.candidates[name]
    refuse_folds(session.folds, "harness pairs make", "in which every training row is tested too")
    draws_pairs = candidate.method.draws_from == "pairs"
    items = (session.target if draws_pairs else session.training_data(candidate.source)).items
    rows = writers.draw_prompts(items.list_sourced("train"), drawing.n_prompts, drawing.seed)
    writer = writers.candidate_writer(session, name, drawing.max_cost)
    together = _TOGETHER * drawing.samples
    budgeted = writers.BudgetedWriter(writer, drawing.max_cost, session.progress, together=together)
    most_usd = drawing.max_cost
    left_usd = lambda: None if most_usd is None else most_usd - (budgeted.usage.cost_usd or 0.0)  # noqa: E731
    ranking = open_ranking(session, drawing.rank, left_usd)
    step_to, task = session.prompting_step(candidate.recipe, session.first_seed), session.target.task
    answers = _draw(task, step_to, budgeted, [row.example for row in rows], drawing, name)
    # All answers are scored together.
    flat = [(row.example, text) for row, (texts, _) in zip(rows, answers, strict=True) for text in texts]
    scores = iter(ranking.score([example for example, _ in flat], [text for _, text in flat]) if flat else ())
    outcomes = []
    for (example, where, _), (texts, reason) in zip(rows, answers, strict=True):
        scored = [(score, text) for text in texts if (score := next(scores)) is not None]
        best = max(scored, key=itemgetter(0), default=(0.0, ""))
        worst = min(scored, key=itemgetter(0), default=(0.0, ""))
        if len(texts) > 1:
            reason = "answers that could not be scored" if len(scored) < 2 else ""
            reason = reason or ("a tie" if best[0] - worst[0] <= drawing.gap else "")
        if reason:
            outcomes.append(EditedRow(None, Change(where, "dropped", (f"no pair: {reason}",))))
            continue
        question, groups = writers.write_question(example)
        pair = {"chosen": best[1], "rejected": worst[1], "chosen_score": best[0], "rejected_score": worst[0]}
        outcomes.append(EditedRow(Row(where, {**question, **pair, **groups})))
    if not any(outcome.row for outcome in outcomes):
        reasons = Counter(o.change.reason.removeprefix("no pair: ") for o in outcomes if o.change)
        why = ", ".join(f"{reason} ({count(n)})" for reason, n in reasons.most_common())
        found = f"{pluralize(len(outcomes), 'prompt')}, and none gives a pair: {why}"
        step = "more --samples, a higher --temperature, or another --rank"
        step = f"a larger --max-new-tokens, {step}" if _CUT in reasons else step
        raise UserError("harness pairs make", found, "answers that are ranked apart", step)
    paired = [row for row, outcome in zip(rows, outcomes, strict=True) if outcome.row]
    notes = writers.check_contamination(session.tasks, paired, "pairs", out)
    spent, ranking_usd = budgeted.usage, ranking.cost_usd()
    recipe = candidate.recipe
    engine = () if candidate.is_remote else session.engine(candidate.served_base)
    computed = [*engine, session.machine.precision, session.machine.device]
    used = {
        "candidate": candidate.name,
        "recipe": recipe.model_dump(mode="json", exclude_defaults=True),
        "base_model": candidate.base.name,
        "weights": writer.weights_digest,
        "prompting": prompting_digest(session.target, recipe, session.first_seed),
        "computed": ["by an endpoint, whose draws may differ"] if candidate.is_remote else computed,
        **drawing._asdict(),
        "max_new_tokens": drawing.max_new_tokens or task.max_new_tokens,
        "rank": dict(ranking.by),
        "leak_check": writers.record_contamination(session.tasks, notes),
        "paid": {"answers_usd": spent.cost_usd, "ranking_usd": ranking_usd},
    }
    is_cost_known = spent.cost_usd is not None and ranking_usd is not None
    total = (spent.cost_usd or 0.0) + (ranking_usd or 0.0) if is_cost_known else None
    files = () if draws_pairs else row_files(task, candidate.source)
    files = files or (task.data.source("train") or "",)
    edit = Edit("make", used, files, command="harness pairs make", cost_usd=total)
    costs = f"{price(spent.cost_usd)}, ranking them {price(ranking_usd)}"
    cost_note = f"the answers took {spent.n_output_tokens:,} tokens and {costs}"
    return writers.MadeRows(edit, outcomes, (*notes, cost_note), spent)


def _draw(
    task: Task,
    step: Step,
    budgeted: writers.BudgetedWriter,
    examples: Sequence[Example],
    draw: Drawing,
    name: str,
) -> list[tuple[list[str], str]]:
    """Sample answers; return the distinct complete ones per example, and the reason if too few."""
    limits = Limits(draw.max_new_tokens or task.max_new_tokens, task.stop, draw.temperature, draw.top_p)
    draws = [(e, seed_of(draw.seed, e.id, number)) for e in examples for number in range(draw.samples)]
    requests = [writers.PromptRequest(step(e).messages, limits, seed) for e, seed in draws]
    outputs = iter(budgeted.answers(requests, f"{pluralize(len(requests), 'answer')} of {name}"))
    answers = []
    for _ in examples:
        samples = [next(outputs) for _ in range(draw.samples)]
        valid_samples = [o for o in samples if o.finish_reason != "error" and o.text.strip()]
        complete_samples = [o for o in valid_samples if task.truncated_scores or o.finish_reason != "length"]
        reason = "one answer only, sampled every time"
        if all(o.error == writers.TOO_LONG for o in samples):
            reason = writers.TOO_LONG
        elif not complete_samples:
            reason = _CUT if valid_samples else "answers that failed or are empty"
        answers.append((list(dict.fromkeys(o.text.strip() for o in complete_samples)), reason))
    return answers
