"""Budget in USD of requests to a model: what is under way is set aside before it is sent.

Invariant: a request begins only where what was paid, the most that those under way may cost, and the most
that it may cost itself are within the budget. Tokens of a prompt are estimated until an answer counts them:
so the first is sent alone, and later estimates are multiplied by the largest ratio that was counted. So are
tokens of an answer where a server counted more than were allowed, as of thinking that it does not show.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Condition
from typing import NamedTuple

from harness.errors import CandidateFailed
from harness.formatting import count, usd

Spend = Callable[[float | None, int, int], None]
"""Counts an answer: what it cost in USD, None where nobody knows, and the tokens read and written."""


class Words(NamedTuple):
    """Words in which a budget is refused: the option that sets it, where that stands, and what is paid."""

    option: str = "--max-cost"
    where: str = ""
    paid: str = "answers"


class Budget:
    """Budget of `most` USD, of which `n` answers have cost `spent`, None where nobody knows.

    `price` is that of tokens read and written.
    """

    def __init__(
        self,
        most: float,
        price: Callable[[float, float], float],
        spent: float | None = 0.0,
        n: int = 0,
        words: Words = Words(),  # noqa: B008 (a constant)
    ) -> None:
        self._most, self._price, self._words = most, price, words
        self._spent, self._n = spent, n
        self._under_way: list[float] = []
        self._ratio: float | None = None  # of a prompt's tokens to their estimate, at most
        self._written_ratio = 1.0  # of an answer's tokens to those that were allowed, at most
        self._changed = Condition()

    @contextmanager
    def reserve(self, read: int, written: int) -> Iterator[Spend]:
        """Set aside what a request costs that reads some tokens and writes at most so many.

        It waits for those under way where the budget may suffice once they cost less than was set aside.

        Raises:
            CandidateFailed: the budget does not suffice.
        """
        with self._changed:
            while (usd_at_most := self._highest_price(read, written)) is None:
                self._changed.wait()
            self._under_way.append(usd_at_most)

        def spend(cost_usd: float | None, n_read: int, n_written: int) -> None:
            with self._changed:
                unknown = self._spent is None or cost_usd is None
                self._spent = None if unknown else (self._spent or 0.0) + (cost_usd or 0.0)
                self._n += 1
                self._ratio = max(self._ratio or 0.0, n_read / max(1, read))
                self._written_ratio = max(self._written_ratio, n_written / max(1, written))

        try:
            yield spend
        finally:
            with self._changed:
                self._under_way.remove(usd_at_most)
                self._changed.notify_all()

    def _highest_price(self, read: int, written: int) -> float | None:
        """Return what a request costs at most; None where those under way have to end first."""
        option, where, paid = self._words
        if self._spent is None:
            found = f"{paid} without usage, so what they cost is unknown, and {option} is {self._most:g}"
            raise CandidateFailed(found, f"a server that counts tokens, or no {option}{where}")
        cost = self._price(read * (self._ratio or 1.0), written * self._written_ratio)
        fits = self._spent + sum(self._under_way) + cost <= self._most
        if fits and not (self._ratio is None and self._under_way):
            return cost
        if self._under_way:
            return None
        found = (
            f"{count(self._n)} {paid} have cost {usd(self._spent)} USD, the next may cost {usd(cost)}, "
            f"and {option} is {self._most:g}"
        )
        raise CandidateFailed(found, f"a larger {option}{where}; the {paid} so far are kept")
