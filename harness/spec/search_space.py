"""Space of a search: a range or a choice of values for each parameter, and a constraint.

Invariant: a list that ends with `log` or `linear` is a range that includes its ends; any other list is a
choice. A range between two integers contains only integers.
"""

from collections.abc import Mapping, Sequence
from math import exp, log
from typing import Any, Literal, NamedTuple

from pydantic import Field

from harness.spec.values import Spec

SCALES = ("log", "linear")
Pruner = Literal["median", "percentile", "successive_halving", "hyperband"]  # of Optuna


class SubjectTo(Spec):
    """Constraint on what a sweep or search chooses: how much it may have forgotten, on validation items.

    `forgetting` is the largest mean loss against the base over the capability tasks, as a share of their
    metrics' ranges. It is measured on `items` general items that no test uses: those of a task's `validation`
    file, else those of its test file beyond its `limit`.
    """

    forgetting: float = Field(ge=0, lt=1)
    items: int = Field(200, ge=1)


class Span(NamedTuple):
    """Range of a parameter, uniform on a linear or a logarithmic scale."""

    low: float
    high: float
    is_log: bool

    @property
    def is_whole(self) -> bool:
        """Whether it contains only integers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def at(self, share: float) -> float:
        """Return the value at a share of the way from the lower to the upper end."""
        if share in (0, 1):
            return self.high if share else self.low
        if self.is_log:
            value = exp(log(self.low) + share * (log(self.high) - log(self.low)))
        else:
            value = self.low + share * (self.high - self.low)
        return round(value) if self.is_whole else value


def is_span(values: Sequence[Any]) -> bool:
    """Tell whether a list is written as a range."""
    return bool(values) and values[-1] in SCALES


def span_of(values: Sequence[Any]) -> Span:
    """Read a list written as a range.

    Raises:
        ValueError: it does not have two rising ends, or they are not positive on a logarithmic scale.
    """
    *ends, scale = values
    if len(ends) != 2 or not all(isinstance(end, int | float) and not isinstance(end, bool) for end in ends):
        raise ValueError(f"a range of {len(ends)} values; write [lowest, highest, {scale}]")
    low, high = ends
    if not low < high or (scale == "log" and low <= 0):
        above = ", both above 0" if scale == "log" else ""
        raise ValueError(f"a range from {low} to {high}; write the lowest first{above}")
    return Span(low, high, scale == "log")


def ends(values: Sequence[Any]) -> list[Any]:
    """Return the values of a choice, or the two ends of a range."""
    return list(values[:2]) if is_span(values) else list(values)


def spread(space: Mapping[str, Sequence[Any]], n: int) -> list[dict[str, Any]]:
    """Return `n` points spread over a space, from the lower to the upper ends."""
    shares = [i / max(1, n - 1) for i in range(n)]
    return [
        {
            name: span_of(values).at(share) if is_span(values) else values[i % len(values)]
            for name, values in space.items()
        }
        for i, share in enumerate(shares)
    ]
