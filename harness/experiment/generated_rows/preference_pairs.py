"""Preference pairs of a candidate's own answers: several are drawn to each training prompt, and ranked.

Invariant: one command on the same weights, rows and seed draws the same answers; a tie makes no pair, nor do
answers that were cut or cannot be scored. No pair asks what is evaluated.
Source: pairs of the best and the worst of n samples, as in Xu et al. 2023, Some things are more CRINGE than
others, https://arxiv.org/abs/2312.16682, and Yuan et al. 2024, Self-Rewarding Language Models, section 2.3.
"""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from harness.data import SourcedExample, splits
from harness.data.edit import Change, Edit, EditedRow
from harness.data.text_files import Row
from harness.errors import Problem, UserError
from harness.evaluation import seed_of
from harness.evaluation.candidate_rows import row_files, training_data
from harness.evaluation.candidates import ResolvedCandidate
from harness.evaluation.row_sets import prompting_digest, prompting_step
from harness.evaluation.session import Session
from harness.experiment.generated_rows.answer_ranking import Ranking, open_ranking
from harness.experiment.generated_rows.asking import TOO_LONG, BudgetedWriter, PromptRequest, WriterUsage
from harness.experiment.generated_rows.writers import (
    Writer,
    candidate_writer,
    check_contamination,
    record_contamination,
    refuse_unpriced,
    refuse_without_text,
)
from harness.experiment.runs.stored_rows import refuse_folds
from harness.formatting import count, pluralize
from harness.records import Example, Limits, Output

_TOGETHER = 16  # prompts whose answers are drawn together
_CUT = "answers cut at max_new_tokens"


class Drawing(NamedTuple):
    """Draws of answers: so many `samples` of each prompt at a temperature, by a seed.

    `rank` names what ranks them, empty for the target's primary metric. Scores that differ by no more than
    `gap` are a tie. At most `n_prompts` prompts are sent, None for all. Answers and a judge's grades cost at
    most `max_cost` in USD together, None for anything.
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


class MadePairs(NamedTuple):
    """Pairs to be saved: the edit with all they depend on, what became of each prompt, and remarks.

    `spent` is what drawing the answers took, `ranking_usd` what ranking them cost, None where nobody knows.
    """

    edit: Edit
    outcomes: list[EditedRow]
    spent: WriterUsage
    ranking_usd: float | None
    notes: tuple[str, ...]


class _PromptAnswers(NamedTuple):
    """Different answers to a prompt that may be in a pair, as they were drawn; why there are no more."""

    texts: list[str]
    left_out: str


def make_pairs(session: Session, name: str, drawing: Drawing, out: str) -> MadePairs:
    """Draw answers of a candidate to its training prompts, rank them, and pair the best with the worst.

    Weights are made first where none are stored. Answers and grades that are there already are not requested
    again.

    Raises:
        UserError: it generates no text, nothing ranks answers by that name, a pair asks what is evaluated, or
            no prompt gives one.
        CandidateFailed: an endpoint cannot be asked, or the budget does not suffice; what came is kept.
    """
    candidate = session.candidates[name]
    refuse_without_text(session, candidate)
    refuse_folds(session, "harness pairs make", "in which every training row is tested too")
    rows = _prompts(session, candidate, drawing)
    writer = candidate_writer(session, name)
    refuse_unpriced(candidate, writer.planned(1, 1), drawing.max_cost)
    budgeted = BudgetedWriter(
        writer, drawing.max_cost, session.progress, together=_TOGETHER * drawing.samples
    )
    ranking = open_ranking(session, drawing.rank, lambda: _left_usd(drawing, budgeted))
    answers = _draw(session, candidate, budgeted, [row.example for row in rows], drawing)
    outcomes = list(_pair_up(rows, answers, ranking, drawing.gap))
    _refuse_no_pair(outcomes)
    paired = [row for row, outcome in zip(rows, outcomes, strict=True) if outcome.row]
    notes = check_contamination(session, paired, "pairs", out)
    spent, ranking_usd = budgeted.usage, ranking.cost_usd()
    paid = {"answers_usd": spent.cost_usd, "ranking_usd": ranking_usd}
    used = {**_provenance(session, candidate, writer, ranking, drawing, notes), "paid": paid}
    known = spent.cost_usd is not None and ranking_usd is not None
    total = (spent.cost_usd or 0.0) + (ranking_usd or 0.0) if known else None
    edit = Edit("make", used, _row_files(session, candidate), command="harness pairs make", cost_usd=total)
    return MadePairs(edit, outcomes, spent, ranking_usd, notes)


def _left_usd(drawing: Drawing, budgeted: BudgetedWriter) -> float | None:
    """Return what the answers so far leave of the budget; None where there is none."""
    return None if drawing.max_cost is None else drawing.max_cost - (budgeted.usage.cost_usd or 0.0)


def _row_files(session: Session, candidate: ResolvedCandidate) -> Sequence[str]:
    """List the files that the prompts come from: of a candidate trained on pairs the target's."""
    own = (session.target.task.data.source("train") or "",)
    return own if candidate.method.draws_from == "pairs" else row_files(session, candidate.source) or own


def _prompts(session: Session, candidate: ResolvedCandidate, drawing: Drawing) -> list[SourcedExample]:
    """Return the training rows of a candidate, or of pairs the target's, as many as are to be answered."""
    draws_pairs = candidate.method.draws_from == "pairs"
    items = (session.target if draws_pairs else training_data(session, candidate.source)).items
    rows = items.list_sourced("train")
    kept = splits.draw(rows, drawing.n_prompts, random.Random(f"{drawing.seed}/prompts"))
    ids = {example.id for example in kept}
    return [row for row in rows if row.example.id in ids]


def _draw(
    session: Session,
    candidate: ResolvedCandidate,
    budgeted: BudgetedWriter,
    examples: Sequence[Example],
    by: Drawing,
) -> list[_PromptAnswers]:
    """Draw the answers to each example."""
    task, step = session.target.task, prompting_step(session, candidate.recipe, session.first_seed)
    limits = Limits(by.max_new_tokens or task.max_new_tokens, task.stop, by.temperature, by.top_p)
    requests = [
        PromptRequest(step(example).messages, limits, seed_of(by.seed, example.id, place))
        for example in examples
        for place in range(by.samples)
    ]
    outputs = iter(budgeted.answers(requests, f"{pluralize(len(requests), 'answer')} of {candidate.name}"))
    return [
        _usable([next(outputs) for _ in range(by.samples)], truncated=task.truncated_scores) for _ in examples
    ]


def _usable(drawn: Sequence[Output], *, truncated: bool) -> _PromptAnswers:
    """Keep the different answers that are whole; a cut one is no example of how to answer."""
    kept = [o for o in drawn if o.finish_reason != "error" and o.text.strip()]
    whole = [o for o in kept if truncated or o.finish_reason != "length"]
    texts = list(dict.fromkeys(o.text.strip() for o in whole))
    reason = (
        TOO_LONG
        if all(o.error == TOO_LONG for o in drawn)
        else "answers that failed or are empty"
        if not kept
        else _CUT
        if not whole
        else "one answer only, sampled every time"
    )
    return _PromptAnswers(texts, reason)


def _pair_up(
    rows: Sequence[SourcedExample], answers: Sequence[_PromptAnswers], ranking: Ranking, gap: float
) -> Iterator[EditedRow]:
    """Score all answers together, and yield the pair of each prompt, or why it has none."""
    flat = [(row.example, text) for row, of in zip(rows, answers, strict=True) for text in of.texts]
    known = iter(ranking.score([example for example, _ in flat], [text for _, text in flat]) if flat else ())
    for row, of in zip(rows, answers, strict=True):
        scored = [(score, text) for text in of.texts if (score := next(known)) is not None]
        yield _none(row, of.left_out) if len(of.texts) < 2 else _pair(row, scored, gap)


def _pair(row: SourcedExample, scored: Sequence[tuple[float, str]], gap: float) -> EditedRow:
    """Pair the best of the scored answers with the worst; of equal ones those drawn first."""
    if len(scored) < 2:
        return _none(row, "answers that could not be scored")
    best, worst = max(scored, key=itemgetter(0)), min(scored, key=itemgetter(0))
    if best[0] - worst[0] <= gap:
        return _none(row, "a tie")
    return EditedRow(Row(row.where, _fields(row.example, best, worst)))


def _none(row: SourcedExample, reason: str) -> EditedRow:
    return EditedRow(None, Change(row.where, "dropped", (f"no pair: {reason}",)))


def _fields(example: Example, best: tuple[float, str], worst: tuple[float, str]) -> dict[str, Any]:
    """Write a pair as harness reads them, with the scores of both answers."""
    single = len(example.messages) == 1 and example.messages[0]["role"] == "user"
    question: dict[str, Any] = {"prompt": example.prompt} if single else {"messages": list(example.messages)}
    own = {"cluster": example.cluster} if example.cluster != example.id else {}
    own |= {"slice": example.slice} if example.slice else {}
    scores = {"chosen_score": best[0], "rejected_score": worst[0]}
    return {"id": example.id, **question, "chosen": best[1], "rejected": worst[1], **scores, **own}


def _refuse_no_pair(outcomes: Sequence[EditedRow]) -> None:
    if not any(outcome.row for outcome in outcomes):
        reasons = Counter(o.change.reason.removeprefix("no pair: ") for o in outcomes if o.change)
        said = ", ".join(f"{reason} ({count(n)})" for reason, n in reasons.most_common())
        found = f"{pluralize(len(outcomes), 'prompt')}, and none gives a pair: {said}"
        step = "more --samples, a higher --temperature, or another --rank"
        step = f"a larger --max-new-tokens, {step}" if _CUT in reasons else step
        raise UserError(Problem("harness pairs make", found, "answers that are ranked apart", step))


def _provenance(
    session: Session,
    candidate: ResolvedCandidate,
    writer: Writer,
    ranking: Ranking,
    drawing: Drawing,
    notes: Sequence[str],
) -> dict[str, Any]:
    """Say all that the pairs depend on besides the rows."""
    task, recipe = session.target.task, candidate.recipe
    engine = () if candidate.is_remote else session.engine(candidate.served_base)
    computed = [*engine, session.machine.precision, session.machine.device]
    return {
        "candidate": candidate.name,
        "recipe": recipe.model_dump(mode="json", exclude_defaults=True),
        "base_model": candidate.base.name,
        "weights": writer.weights_digest,
        "prompting": prompting_digest(session, recipe, session.first_seed),
        "computed": ["by an endpoint, whose draws may differ"] if candidate.is_remote else computed,
        **drawing._asdict(),
        "max_new_tokens": drawing.max_new_tokens or task.max_new_tokens,
        "rank": dict(ranking.by),
        "leak_check": record_contamination(session, notes),
    }
