"""Budget in USD for requests to a model: the cost of a request is reserved before it is sent.

Invariant: a request starts only if past costs, the highest cost of running requests and its own highest cost
are within the budget. Prompt tokens are estimated until an answer reports them: so the first request is sent
alone, and later estimates are multiplied by the largest ratio seen. The same holds for answer tokens when a
server reports more than were allowed, as for hidden thinking.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Condition
from typing import NamedTuple

from harness.errors import CandidateFailed
from harness.formatting import count, usd

Spend = Callable[[float | None, int, int], None]
"""Counts an answer: its cost in USD, None if unknown, and the tokens read and written."""


class Words(NamedTuple):
    """Words for refusing a request: the option that sets the budget, its place, and what is paid for."""

    option: str = "--max-cost"
    where: str = ""
    paid: str = "answers"


class Budget:
    """Budget of `most` USD, of which `n` answers have cost `spent`, None if unknown.

    `price` maps tokens read and written to USD.
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
        self._ratio: float | None = None  # largest ratio of a prompt's tokens to their estimate
        self._written_ratio = 1.0  # largest ratio of an answer's tokens to the allowed ones
        self._changed = Condition()

    @contextmanager
    def reserve(self, read: int, written: int) -> Iterator[Spend]:
        """Reserve the cost of a request that reads `read` tokens and writes at most `written`.

        Waits for running requests if the budget may suffice once they cost less than reserved.

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
        """Return the highest cost of a request; None if running requests have to end first."""
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
