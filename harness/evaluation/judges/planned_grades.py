"""Grades that an experiment would ask for, from nothing: how many, of how many tokens, at which price.

Invariant: no judge is asked. Counts are the most there can be: answers that are equal, and those that have
a grade, are asked about once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from harness.evaluation import costs
from harness.evaluation.candidates import ResolvedCandidate
from harness.evaluation.judges import JudgedMetric
from harness.evaluation.judges.grade_costs import tokens_usd
from harness.evaluation.judges.judge_prompts import LIMITS, judge_messages, orders
from harness.evaluation.rows.row_sets import prompting_step
from harness.evaluation.session import MeasuredTask, Session
from harness.prompting import context_of
from harness.records import Example

_CHARACTERS = 4  # of a token of an answer, as its length is estimated


class PlannedGrades(NamedTuple):
    """Most grades that one judge gives for one metric of a task; `read` and `generated` in tokens.

    `cost_usd` is None where nobody set a price, or the judge runs here.
    """

    task: str
    metric: str
    judge: str
    grades: int
    read: int
    generated: int
    cost_usd: float | None


def plan_grades(session: Session, candidates: Sequence[str]) -> Iterator[PlannedGrades]:
    """Yield what each judge would be asked about the candidates' answers, and about the base's on suites."""
    named = [session.candidates[name] for name in candidates]
    target = session.target
    n_answers = sum(len(one.seeds) * _n_samples(one) for one in named)
    examples = [*target.items.validation, *target.items.test]
    shown = any(one.rubric.passages for one in target.judged.values())
    n_passages = max((passage_tokens(session, one, examples) for one in named), default=0) if shown else 0
    yield from _plan_items(target, examples, n_answers, n_passages, n_checks=len(named))
    n_own = sum(len(one.seeds) for one in named if not one.method.keeps_base)
    for other in session.more_targets:
        asked = [*other.items.validation, *other.items.test]
        yield from _plan_items(other, asked, n_answers, n_checks=len(named))
    for suite in session.suites:
        yield from _plan_items(suite, suite.items.test, 1 + n_own, n_checks=1 + len(named))


def plan_pairs(session: Session, judged: JudgedMetric, candidates: Sequence[str]) -> Iterator[PlannedGrades]:
    """Yield what a judge would be asked about fine-tunes beside the best untrained candidate."""
    target = session.target
    named = [session.candidates[name] for name in candidates]
    n_tuned = sum(len(one.seeds) for one in named if one.method.tunes and not one.is_baseline)
    other = "x" * _CHARACTERS * target.task.max_new_tokens  # an answer as long as the task allows
    examples = [replace(example, references=(other,)) for example in target.items.test]
    yield from _plan_items(target._replace(judged={judged.metric: judged}), examples, n_tuned)


def _n_samples(candidate: ResolvedCandidate) -> int:
    decoding = candidate.recipe.decoding
    return decoding.samples if decoding else 1


def passage_tokens(session: Session, candidate: ResolvedCandidate, examples: Sequence[Example]) -> int:
    """Estimate the tokens of the longest passages that a candidate is given with an item."""
    step = prompting_step(session, candidate.recipe, candidate.seeds[0])
    return max((costs.tokens(context_of(step(one).prompt, one.prompt)) for one in examples), default=0)


def _plan_items(
    measured: MeasuredTask,
    examples: Sequence[Example],
    n_answers: int,
    n_passages: int = 0,
    n_checks: int = 1,
) -> Iterator[PlannedGrades]:
    """Yield the grades of `n_answers` to each item; an endpoint's anchors are asked again at each check."""
    for judged in measured.judged.values():
        n_each = n_answers * len(orders(judged.rubric))
        more = n_passages if judged.rubric.passages else 0
        longest = [_n_read(measured, judged, example) + more for example in examples]
        for judge in judged.judges:
            n_anchors = min(judged.rubric.anchors, n_each * len(examples)) if judge.settings else 0
            again = n_checks * n_anchors
            grades = judge.attempts * n_each * len(examples) + again
            read = judge.attempts * n_each * sum(longest) + again * max(longest, default=0)
            written = grades * LIMITS.max_new_tokens
            cost = tokens_usd(judge.prices, read, written) if judge.prices else None
            yield PlannedGrades(measured.task.name, judged.metric, judge.name, grades, read, written, cost)


def _n_read(measured: MeasuredTask, judged: JudgedMetric, example: Example) -> int:
    """Estimate the tokens of one prompt: its texts, and an answer as long as the task allows."""
    (order, *_) = orders(judged.rubric)
    messages = judge_messages(judged.rubric, example, "", order)
    return sum(costs.tokens(turn["content"]) for turn in messages) + measured.task.max_new_tokens
