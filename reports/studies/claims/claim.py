"""A claim, its measurement, and the interval of a ratio measured in pairs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, log
from typing import Literal, NamedTuple

from harness import stats

Verdict = Literal["holds", "does not hold here", "not decided"]
Figures = Mapping[str, float | int | str]


class ClaimResult(NamedTuple):
    """Measurement of a claim: printed text with its interval, verdict, figures, description."""

    shown: str
    verdict: Verdict
    figures: Figures
    note: str = ""


@dataclass(frozen=True, slots=True)
class Claim:
    """Claim that is measured here: its statement, its source, and its approximate minutes.

    `needs` names what two cores lack; such a claim is measured if it is named, or if there is a GPU.
    """

    name: str
    says: str
    source: str
    minutes: float
    measure: Callable[[], ClaimResult]
    needs: str = ""


@dataclass(frozen=True, slots=True)
class OpenClaim:
    """Claim that is not measured here: what a measurement would need, and its approximate hours."""

    name: str
    says: str
    source: str
    needs: str
    hours: float


class Ratio(NamedTuple):
    """Geometric mean of paired ratios, with the ends of its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"


def estimate_paired_ratio(new: Sequence[float], base: Sequence[float]) -> Ratio:
    """Return new / base of paired measurements, by t on their logarithms.

    Raises:
        ValueError: fewer than two pairs, or unequal numbers of both.
    """
    if len(new) != len(base) or len(new) < 2:
        raise ValueError(f"{len(new)} and {len(base)} measurements, where a ratio needs two pairs at least")
    mean = stats.paired_delta([log(x) for x in base], [log(x) for x in new])
    low, high = stats.t_interval(mean)
    return Ratio(exp(mean.mean), exp(low), exp(high))


def judge(low: float, high: float, *, least: float) -> Verdict:
    """Tell whether an interval shows at least `least`, shows less, or shows neither."""
    if low >= least:
        return "holds"
    return "does not hold here" if high < least else "not decided"


def judge_all(*verdicts: Verdict) -> Verdict:
    """Combine the verdicts of a claim's parts: any failure fails it, and it holds if all hold."""
    for verdict in ("does not hold here", "not decided"):
        if verdict in verdicts:
            return verdict
    return "holds"
