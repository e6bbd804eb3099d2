"""Costs of grades: what a judge was paid by its tokens, the budget that is left, and what more would cost.

Invariant: every grade that was asked for counts, those of anchors with them; where a server counted no tokens
the cost is unknown, and never zero. Grades are planned without asking, and are the most there can be: answers
that are equal, and those that have a grade, are asked about once.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from harness.evaluation import costs
from harness.evaluation.candidates import ResolvedCandidate
from harness.evaluation.costs import price_usd
from harness.evaluation.costs.budget import Budget, Words
from harness.evaluation.judges import GradingLimit, Judge, JudgedMetric
from harness.evaluation.judges.judge_prompts import LIMITS, judge_messages, orders
from harness.evaluation.rows.row_sets import prompting_step
from harness.evaluation.session import MeasuredTask, Session
from harness.prompting import context_of
from harness.records import Example, Grade
from harness.spec import TokenPrices
from harness.store import list_grades, read_asked_again


def list_paid_grades(judged: JudgedMetric, judge: Judge) -> list[Grade]:
    """List all grades that a judge was asked for, those of its anchors with them."""
    again = read_asked_again(judged.store, judge.book)
    return [*list_grades(judged.store, judge.book), *again]


def sum_paid_usd(judged: JudgedMetric) -> float | None:
    """Add up what all endpoints of a rubric cost so far; None where nobody knows."""
    remote = [one for one in judged.judges if one.settings]
    return _total(cost_usd(list_paid_grades(judged, one), one.prices) for one in remote)


def cost_usd(grades: Sequence[Grade], prices: TokenPrices | None) -> float | None:
    """Add up what grades cost by their tokens; None without prices, or where a server counted no tokens."""
    if prices is None or any(map(_lacks_tokens, grades)):
        return None
    read, written = sum(g.n_prompt_tokens for g in grades), sum(g.n_output_tokens for g in grades)
    return tokens_usd(prices, read, written)


def tokens_usd(prices: TokenPrices, read: float, written: float) -> float:
    """Return in USD what so many tokens cost, read and written."""
    return (read * prices.input + written * prices.output) / 1e6


def open_budget(judged: JudgedMetric, judge: Judge) -> Budget | None:
    """Return what is left of `max_cost` after all grades by the rubric, or of what a command may cost.

    Of both the one of which less is left; None where neither is set, or the judge has no price.
    """
    if judge.prices is None:
        return None
    spent, price = sum_paid_usd(judged), partial(tokens_usd, judge.prices)
    n = sum(len(list_paid_grades(judged, one)) for one in judged.judges if one.settings)
    most, limit = judged.rubric.max_cost, judged.limit
    if limit and (most is None or spent is None or limit.left_usd(spent) < most - spent):
        since = None if spent is None else spent - limit.before_usd
        return Budget(limit.usd, price, since, n - limit.n_before, Words(paid="grades"))
    return (
        None if most is None else Budget(most, price, spent, n, Words("max_cost", " in the rubric", "grades"))
    )


class GradeAccount:
    """Account of the grades of some answers: what they cost, whenever they were given.

    The anchors that a judge is asked about while the account is open count too.
    """

    def __init__(self, judged: JudgedMetric) -> None:
        self._judged, self._keys = judged, dict[str, set[str]]()
        self._n_again = {one.book: len(read_asked_again(judged.store, one.book)) for one in judged.judges}

    def count(self, keys: Mapping[str, set[str]]) -> None:
        """Count the answers of these keys by book."""
        for book, of in keys.items():
            self._keys.setdefault(book, set()).update(of)

    def cost_usd(self, device: str, device_hour_usd: float | None) -> float | None:
        """Add up what judges cost so far, one that runs here by its time; None where nobody knows."""
        seconds = sum(g.compute_s for one in self._judged.judges if one.weights for g in self._grades(one))
        remote = self._remote_usd()
        return None if remote is None else remote + price_usd(seconds, device, device_hour_usd)

    def limit(self, most_usd: float | None) -> GradingLimit | None:
        """Return the limit by which these grades cost at most so much; None for anything."""
        if most_usd is None:
            return None
        remote = [one for one in self._judged.judges if one.settings]
        n_others = sum(len(list_paid_grades(self._judged, one)) - len(self._grades(one)) for one in remote)
        return GradingLimit(
            most_usd, (sum_paid_usd(self._judged) or 0.0) - (self._remote_usd() or 0.0), n_others
        )

    def _remote_usd(self) -> float | None:
        remote = [one for one in self._judged.judges if one.settings]
        return _total(cost_usd(self._grades(one), one.prices) for one in remote)

    def _grades(self, judge: Judge) -> list[Grade]:
        at, keys = self._judged.store, self._keys.get(judge.book, set())
        mine = [grade for grade in list_grades(at, judge.book) if grade.key in keys]
        return [*mine, *read_asked_again(at, judge.book)[self._n_again[judge.book] :]]


def _total(costs: Iterable[float | None]) -> float | None:
    """Add up costs; None where one of them is unknown."""
    found = list(costs)
    known = [cost for cost in found if cost is not None]
    return sum(known) if len(known) == len(found) else None


def _lacks_tokens(grade: Grade) -> bool:
    """Tell whether nobody counted what a grade took: the server that gave it sends no `usage`."""
    return grade.status != "error" and not grade.n_prompt_tokens


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
    n_answers = sum(len(one.seeds) * (of.samples if (of := one.recipe.decoding) else 1) for one in named)
    examples = [*target.items.validation, *target.items.test]
    shown = any(one.rubric.passages for one in target.judged.values())
    n_passages = max((passage_tokens(session, one, examples) for one in named), default=0) if shown else 0
    yield from _plan_items(target, examples, n_answers, n_passages, n_checks=len(named))
    n_own = sum(len(one.seeds) for one in named if not one.method.keeps_base)
    for other in session.more_targets:
        items = [*other.items.validation, *other.items.test]
        yield from _plan_items(other, items, n_answers, n_checks=len(named))
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
