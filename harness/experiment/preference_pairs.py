"""Preference pairs from a candidate's own answers: several are sampled per training prompt and ranked.

Invariant: the same weights, rows and seed give the same answers. Ties and truncated or unscored answers make
no pair, and no pair has an evaluated question.
Source: pairs of the best and the worst of n samples, as in Xu et al. 2023, https://arxiv.org/abs/2312.16682,
and Yuan et al. 2024, Self-Rewarding Language Models, section 2.3
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from harness import plugins
from harness.data.edit.changes import Change, EditedRow
from harness.data.edit.save import Edit
from harness.data.text_files import Row
from harness.errors import Problem, UserError, did_you_mean, refuse
from harness.evaluation import seed_of
from harness.evaluation.candidate_rows import row_files
from harness.evaluation.candidates import ResolvedCandidate
from harness.evaluation.grading import GradeAccount, grade_answers
from harness.evaluation.judges import GradeReader, JudgedMetric, key_problems
from harness.evaluation.row_sets import prompting_digest
from harness.evaluation.session import Session
from harness.experiment import writers
from harness.experiment.candidate_weights import ensure_weights
from harness.experiment.stored_rows import refuse_folds
from harness.formatting import count, pluralize, price
from harness.metrics import item_scores
from harness.metrics import version as metric_version
from harness.prompting import Step
from harness.provenance import digest_code
from harness.records import Example, Limits, Output, is_unspaced
from harness.spec import Task, is_path, metric_name, metric_plugin
from harness.training import Reward, open_scorer, reward_problems, rewards_of

Score = Callable[[Sequence[Example], Sequence[str]], Sequence[float | None]]


class Ranking(NamedTuple):
    """Ranking of answers by scores, with what they depend on, and their cost so far (None if unknown)."""

    by: Mapping[str, Any]
    score: Score
    cost_usd: Callable[[], float | None] = lambda: 0.0


def open_ranking(
    session: Session, written: str, left_usd: Callable[[], float | None] = lambda: None
) -> Ranking:
    """Open a ranking by a reward model, a judge (with `left_usd` for its grades), a metric or a file."""
    name = metric_name(written) if written else session.target.primary.name
    if written in session.candidates:
        return _rank_by_reward_model(session, session.candidates[written])
    if name in session.target.judged:
        return _rank_by_judge(session, session.target.judged[name], left_usd)
    known = {*plugins.names("metrics"), *session.target.judged}
    known |= {other for other, candidate in session.candidates.items() if not candidate.method.answers}
    if not is_path(written or name) and metric_plugin(written or name) not in known:
        found, hint = f"unknown {written or name!r}", did_you_mean(written or name, known)
        expected = "a metric, a Python file, a judge of the target, or a candidate that makes a reward model"
        raise UserError("--rank", found, expected, hint)
    task, where = session.target.task, "--rank"
    refuse(reward_problems(written or name, task, session.target.items.train, where))
    unspaced = is_unspaced(text for e in session.target.items.train for text in e.references)
    content = digest_code(Path(written)) if is_path(written) else metric_version(written or name, unspaced)
    score = rewards_of(Reward(written=written or name, task=task))
    return Ranking({"metric": name, "version": content}, score)


def _rank_by_reward_model(session: Session, candidate: ResolvedCandidate) -> Ranking:
    if candidate.method.answers:
        able = " or ".join(plugins.methods(makes="reward"))
        found = f"{candidate.name}, whose method {candidate.source.method} makes no reward model"
        raise UserError("--rank", found, "a candidate that makes one", f"one with the method {able}")
    seed = session.first_seed
    weights = ensure_weights(session, candidate, seed)
    step = session.prompting_step(candidate.source, seed)
    folder = weights.folder
    assert folder is not None, "a reward model is trained into a folder"

    def score(examples: Sequence[Example], answers: Sequence[str]) -> list[float | None]:
        session.unload()  # the reward model has its own base
        chat = session.target.task.chat_template
        prompts = [step(example) for example in examples]
        model = folder / weights.kind
        return [*open_scorer(model, candidate.trained_base, session.machine, chat)(prompts, answers)]

    return Ranking({"reward": candidate.name, "weights": weights.digest}, score)


def _rank_by_judge(session: Session, judged: JudgedMetric, left_usd: Callable[[], float | None]) -> Ranking:
    problems, step = [*key_problems([judged])], "usd_per_million_tokens: {input: …, output: …} in the rubric"
    for judge in judged.judges if left_usd() is not None else ():
        if judge.settings and judge.prices is None:
            found = f"{judged.metric} by {judge.name}, an endpoint without prices"
            problems.append(Problem("--max-cost", found, "prices to hold it against", step))
    refuse(problems)
    metric, account = session.target.metrics[judged.metric], GradeAccount(judged)

    def read(examples: Sequence[Example], answers: Sequence[str]) -> tuple[GradeReader, list[float | None]]:
        reader = GradeReader(session.target.task.name, {judged.metric: judged}, examples)
        bound = reader.bind({judged.metric: metric})[judged.metric]
        parts = [bound.score(Output(text), e) for e, text in zip(examples, answers, strict=True)]
        sign = metric.unit.sign
        scores = [None if p is None else item_scores(metric, np.array([p]))[0] for p in parts]
        return reader, [None if score is None else sign * float(score) for score in scores]

    def score(examples: Sequence[Example], answers: Sequence[str]) -> list[float | None]:
        reader, scores = read(examples, answers)
        account.count(reader.keys)
        if not reader.ungraded:
            return scores
        limited = judged._replace(limit=account.limit(left_usd()))
        grade_answers(session, [answer._replace(judged=limited) for answer in reader.ungraded])
        return read(examples, answers)[1]

    by = {"judge": judged.metric, "books": [judge.book for judge in judged.judges]}
    hour = session.experiment.decide.device_hour_usd
    return Ranking(by, score, lambda: account.cost_usd(session.machine.device, hour))


_TOGETHER = 16  # prompts whose answers are drawn together
_CUT = "answers cut at max_new_tokens"


class Drawing(NamedTuple):
    """Sampling of answers: `samples` per prompt, ranked by `rank` (empty: the target's primary metric).

    Scores that differ by at most `gap` are a tie. `max_cost` limits answers and grades together, in USD.
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
    paid = {"answers_usd": spent.cost_usd, "ranking_usd": ranking_usd}
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
        "paid": paid,
    }
    known = spent.cost_usd is not None and ranking_usd is not None
    total = (spent.cost_usd or 0.0) + (ranking_usd or 0.0) if known else None
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
    by: Drawing,
    name: str,
) -> list[tuple[list[str], str]]:
    """Sample answers; return the distinct complete ones per example, and why others are missing."""
    limits = Limits(by.max_new_tokens or task.max_new_tokens, task.stop, by.temperature, by.top_p)
    requests = [
        writers.PromptRequest(step(example).messages, limits, seed_of(by.seed, example.id, place))
        for example in examples
        for place in range(by.samples)
    ]
    outputs = iter(budgeted.answers(requests, f"{pluralize(len(requests), 'answer')} of {name}"))
    answers = []
    for _ in examples:
        drawn = [next(outputs) for _ in range(by.samples)]
        kept = [o for o in drawn if o.finish_reason != "error" and o.text.strip()]
        whole = [o for o in kept if task.truncated_scores or o.finish_reason != "length"]
        reason = "one answer only, sampled every time"
        if all(o.error == writers.TOO_LONG for o in drawn):
            reason = writers.TOO_LONG
        elif not whole:
            reason = _CUT if kept else "answers that failed or are empty"
        answers.append((list(dict.fromkeys(o.text.strip() for o in whole)), reason))
    return answers
