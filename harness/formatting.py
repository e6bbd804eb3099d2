"""Format numbers and quotes: the only place where a rate, an interval, a price or a time becomes text.

Invariant: no digit is finer than its interval supports; unknown (None or NaN) is an en dash, and a value that
rounds to zero has no sign.
"""

from dataclasses import dataclass
from math import ceil, floor, inf, isfinite, isnan, log10
from typing import TypeGuard

UNKNOWN = "–"
_TINY_USD = 0.0001  # smaller amounts do not matter
_LONGEST_QUOTE = 60  # characters
_WIDE = 2.0  # points: intervals with at least this half-width end in whole points


@dataclass(frozen=True, slots=True)
class Unit:
    """Unit, direction and known bounds of a metric's values; rates have no written bounds.

    Printed values are times `scale`, `name` is the unit of a change.
    """

    scale: float = 100.0
    name: str = "points"
    higher_is_better: bool = True
    low: float | None = None
    high: float | None = None

    @property
    def is_rate(self) -> bool:
        """Whether values are rates in [0, 1]."""
        return self.scale == 100.0

    @property
    def sign(self) -> int:
        """The factor that makes the larger value the better one: 1 or −1."""
        return 1 if self.higher_is_better else -1

    @property
    def bounds(self) -> tuple[float, float]:
        """The worst and the best value, infinite where unknown."""
        low, high = (0.0, 1.0) if self.is_rate else (self.low, self.high)
        ends = -inf if low is None else low, inf if high is None else high
        return ends if self.higher_is_better else ends[::-1]

    @property
    def span(self) -> float:
        """The length of the range, infinite if a bound is unknown."""
        worst, best = self.bounds
        return abs(best - worst)

    def change_at(self, share: float) -> float:
        """Return the change that is this share of the range; of an unknown range, `share` itself."""
        return share * self.span if isfinite(self.span) else share

    def value_at(self, share: float) -> float:
        """Return the value at this share of the range; of an unknown range, `share` itself."""
        return self.change_at(share) + (min(self.bounds) if isfinite(self.span) else 0.0)

    @property
    def axis(self) -> str:
        """Unit and direction as an axis label shows them after the metric's name."""
        return (", %" if self.is_rate else "") + ("" if self.higher_is_better else ", lower is better")


RATE = Unit()
Value = float | None  # None and NaN are unknown


def percent(x: Value) -> str:
    """Format a rate in [0, 1] in percent with one decimal, without the percent sign: `81.0`."""
    return _format_fixed(100 * x, 1) if _is_known(x) else UNKNOWN


def interval(x: Value, low: Value, high: Value, *, whole: bool = False) -> str:
    """Format a rate with its interval in percent: `81.0 [75, 86]`; `whole` ends save space."""
    return _add_ends(x, low, high, "", whole)


def points(delta: Value, low: Value = None, high: Value = None, *, whole: bool = False) -> str:
    """Format a difference of rates in percentage points: `+7.0 [+2, +12]`, `−0.4 [−1.5, +0.7]`."""
    return _add_ends(delta, low, high, "+", whole)


def plain(x: Value, low: Value = None, high: Value = None, *, sign: bool = False) -> str:
    """Format a value other than a rate (bits per byte, loss): `1.088 [1.071, 1.105]`, `451 [390, 512]`.

    An interval has as many decimals as show two digits of its half-width; a value alone has three or more.
    """
    if not _is_known(x):
        return UNKNOWN
    plus, values = "+" if sign else "", (x, low, high)
    if not (_is_known(low) and _is_known(high)):
        return _format_fixed(x, max(3, _two_digits(x)), plus)
    digits = max(0, _two_digits((high - low) / 2))
    middle, *ends = (_format_fixed(value, digits, plus) for value in values if value is not None)
    return f"{middle} [{', '.join(ends)}]"


def score(unit: Unit, x: Value, low: Value = None, high: Value = None, *, whole: bool = False) -> str:
    """Format a metric's value with its interval: rates in percent, others in their own unit."""
    return interval(x, low, high, whole=whole) if unit.is_rate else plain(x, low, high)


def errors(n: int) -> str:
    """Format the number of failed answers to follow a score: ` (3 errors)`; empty without any."""
    return f" ({pluralize(n, 'error')})" if n else ""


def change(unit: Unit, delta: Value, low: Value = None, high: Value = None, *, whole: bool = False) -> str:
    """Format a difference of a metric with its interval, signed, in the unit that `unit.name` names."""
    return points(delta, low, high, whole=whole) if unit.is_rate else plain(delta, low, high, sign=True)


def usd(x: Value) -> str:
    """Format an amount in USD without currency: `0.11`, `0.0004`, `1,250`, `∞`."""
    if not _is_known(x):
        return UNKNOWN
    if abs(x) == inf or abs(x) >= 100:
        return count(x)
    if 0 < x < _TINY_USD:
        return f"<{_TINY_USD}"
    if x == 0 or abs(x) >= 0.01:
        return _format_fixed(x, 2)
    return _format_fixed(x, _two_digits(x)).rstrip("0")  # never an exponent


def price(cost_usd: Value) -> str:
    """Format a cost: `0.11 USD`, or `an unknown cost`."""
    return "an unknown cost" if cost_usd is None else f"{usd(cost_usd)} USD"


def seconds(x: Value) -> str:
    """Format a time span: `<1 ms`, `34 ms`, `0.2 s`, `45 s`, `3 min 20 s`, `2 h 5 min`."""
    if not _is_known(x):
        return UNKNOWN
    if abs(x) == inf:
        return count(x)
    if x < 0.0995:
        return "<1 ms" if 0 < x < 0.0005 else f"{1000 * x:.0f} ms"
    if x < 59.5:
        return f"{x:.1f} s" if x < 9.95 else f"{x:.0f} s"
    if x < 3599.5:
        return f"{round(x) // 60} min {round(x) % 60} s"
    return f"{round(x / 60) // 60:,} h {round(x / 60) % 60} min"


def count(n: Value) -> str:
    """Format a count: `31`, `3,080`, `∞`."""
    if not _is_known(n):
        return UNKNOWN
    if abs(n) == inf:
        return "∞" if n > 0 else "−∞"
    return _format_fixed(n, 0)


def pluralize(n: int, noun: str) -> str:
    """Format a count with its noun, whose plural ends in s: `1 task`, `1,800 items`."""
    return f"{count(n)} {noun}{'' if n == 1 else 's'}"


def quote(text: str) -> str:
    """Quote an answer on one line, shortened if long; `(empty)` for an empty one."""
    line = " ".join(text.split())
    if not line:
        return "(empty)"
    return f"“{line[:_LONGEST_QUOTE]}…”" if len(line) > _LONGEST_QUOTE else f"“{line}”"


def round_up(n: Value) -> str:
    """Format a number rounded up: `1,163` for 1,162.2."""
    return count(ceil(n) if n is not None and isfinite(n) else n)


def figure(x: Value, low: Value = None, high: Value = None) -> str:
    """Format a value with its own unit with at most four digits and four decimals: `14 [4, 24]`, `0.0023`."""
    if not (_is_known(low) and _is_known(high)):
        return _four_digits(x) if _is_known(x) else UNKNOWN
    return f"{figure(x)} [{_four_digits(low)}, {_four_digits(high)}]"


def size(n_bytes: float) -> str:
    """Format a size on disk: `0 B`, `34 kB`, `1.2 MB`, `45 GB`."""
    for name, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= 0.9995 * scale:
            return f"{_format_fixed(n_bytes / scale, 1 if n_bytes < 9.95 * scale else 0)} {name}"
    return f"{_format_fixed(n_bytes, 0)} B"


def tick(x: float, step: float, *, sign: bool = False) -> str:
    """Format an axis tick with as many decimals as the step between ticks: `−20`, `0.5`."""
    return _format_fixed(x, max(0, -floor(log10(step) + 1e-9)), "+" if sign else "")


def p_value(p: Value) -> str:
    """Format a p-value: `0.049`, `<0.001`; two digits from .1 on."""
    if not _is_known(p):
        return UNKNOWN
    return "<0.001" if p < 0.001 else _format_fixed(p, 2 if p >= 0.0995 else 3)


def chance(p: float) -> str:
    """Format a probability in whole percent, never as impossible or certain."""
    return "<1 %" if p < 0.005 else ">99 %" if p > 0.995 else f"{100 * p:.0f} %"


def _is_known(x: Value) -> TypeGuard[float]:
    return x is not None and not isnan(x)


def _format_fixed(x: float, digits: int, plus: str = "") -> str:
    """Round to `digits` decimals; a real minus sign, thousands separated, zero unsigned."""
    if abs(x) == inf:
        return ("−" if x < 0 else plus) + "∞"
    rounded = round(x, digits)
    mark = "−" if rounded < 0 else plus if rounded > 0 else ""
    return f"{mark}{abs(rounded):,.{digits}f}"


def _two_digits(x: float) -> int:
    """Return how many decimals show two significant digits; 3 for zero and infinity."""
    return 1 - floor(log10(abs(x)) + 1e-9) if x and isfinite(x) else 3


def _four_digits(x: float) -> str:
    rounded = round(x, 4)
    if abs(rounded) >= 1000:
        return count(x)
    return f"{'−' if rounded < 0 else ''}{abs(rounded):.4g}"


def _add_ends(x: Value, low: Value, high: Value, plus: str, whole: bool) -> str:
    if not _is_known(x):
        return UNKNOWN
    middle = _format_fixed(100 * x, 1, plus)
    if not (_is_known(low) and _is_known(high)):
        return middle
    digits = 0 if whole or 100 * (high - low) / 2 >= _WIDE else 1
    return f"{middle} [{_format_fixed(100 * low, digits, plus)}, {_format_fixed(100 * high, digits, plus)}]"
