"""Costs of grades: what a judge was paid by its tokens, and the budget that is left.

Invariant: every grade that was asked for counts, those of anchors with them; where a server counted no tokens
the cost is unknown, and never zero.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from harness.evaluation.costs import price_usd
from harness.evaluation.costs.budget import Budget, Words
from harness.evaluation.judges import GradingLimit, Judge, JudgedMetric
from harness.records import Grade
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
