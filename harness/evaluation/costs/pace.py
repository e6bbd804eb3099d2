"""Pace of a machine: measured seconds for each estimated one, and for each thing that tokens do not show.

Invariant: work that was disturbed, or resumed, teaches nothing; what was measured longest ago counts least.
An estimate from sizes alone holds until there are measurements, and weighs as much as five seconds of them.

A product of large matrices, by which `probe` measures a machine, says little of its memory and of small
operations: the same training took twice as long on two days on which that product was as fast.
"""

from contextlib import suppress
from math import exp
from pathlib import Path
from typing import Literal, NamedTuple

from harness.cache import cache_dir, recall, remember
from harness.models.hardware import Machine
from harness.records import digest

Kind = Literal["answering", "training", "fits", "opened", "requests", "runs"]
_PRIOR_S = 5.0  # estimated seconds that an estimate from sizes alone weighs as much as
_MEMORY_S = 600.0  # estimated seconds after which a measurement counts a third
_LEAST, _MOST = 0.1, 10.0
_MOST_EACH = 50.0  # times what is assumed before anything is measured


class Rate(NamedTuple):
    """Measured seconds for each estimated one of tokens, and seconds of each thing besides."""

    ratio: float = 1.0
    each_s: float = 0.0


class Pace(NamedTuple):
    """Rates of answering in blocks, of training in steps, and of what has no tokens of its own.

    The seconds of each are assumptions until something has run here: those of a model of 135 million
    parameters on two CPU cores. `fits` are trainings but for their steps (the process, the model, what is
    saved), `opened` are weights that are made ready to answer, `requests` single ones that are timed, `runs`
    what is left of a comparison: grading, statistics, writing.
    """

    answering: Rate = Rate(each_s=0.1)
    training: Rate = Rate(each_s=0.1)
    fits: Rate = Rate(each_s=6.0)
    opened: Rate = Rate(each_s=0.3)
    requests: Rate = Rate(each_s=0.4)
    runs: Rate = Rate(each_s=0.5)


_ASSUMED = Pace()


class _Sums(NamedTuple):
    """Sums over measurements of a kind, the older ones discounted, each by the inverse of its expected time.

    Of `s` estimated seconds of tokens and `n` things, which took `took` seconds. They are kept as estimated
    at 1 GFLOP/s, because the same machine may be measured again, quiet this time.
    """

    s_s: float = 0.0
    s_n: float = 0.0
    n_n: float = 0.0
    s_took: float = 0.0
    n_took: float = 0.0

    def rate(self, assumed: Rate, gflops: float) -> Rate:
        """Solve for the rate by least squares, what is assumed being one more measurement of each part."""
        n_n, n_took = self.n_n + 1 / assumed.each_s, self.n_took + 1.0
        s_s, s_took = self.s_s / gflops**2 + _PRIOR_S, self.s_took / gflops + _PRIOR_S
        s_n, most_s = self.s_n / gflops, _MOST_EACH * assumed.each_s
        each_s = (s_s * n_took - s_n * s_took) / (s_s * n_n - s_n**2)
        ratio = min(max((s_took - s_n * min(max(each_s, 0.0), most_s)) / s_s, _LEAST), _MOST)
        return Rate(ratio, min(max((n_took - s_n * ratio) / n_n, 0.0), most_s))


def read_pace(machine: Machine, n_parameters: int) -> Pace:
    """Read what was measured here of a model of so many parameters."""
    known = _read(machine, n_parameters)
    rates = {kind: sums.rate(getattr(_ASSUMED, kind), machine.gflops) for kind, sums in known.items()}
    return Pace(**rates)


def record_pace(
    machine: Machine, n_parameters: int, kind: Kind, estimated_s: float, n: float, took_s: float
) -> None:
    """Keep that so many things took so long, whose tokens were estimated from sizes alone."""
    expected_s = estimated_s + n * getattr(_ASSUMED, kind).each_s
    if expected_s <= 0:
        return
    known = _read(machine, n_parameters)
    left, old = exp(-expected_s / _MEMORY_S), known.get(kind, _Sums())
    s = estimated_s * machine.gflops
    one = (s * s, s * n, n * n, s * took_s, n * took_s)
    known[kind] = _Sums(*(left * before + new / expected_s for before, new in zip(old, one, strict=True)))
    with suppress(OSError):  # a cache that may only be read costs the estimate alone
        remember(_file(machine, n_parameters), known)


def _read(machine: Machine, n_parameters: int) -> dict[str, _Sums]:
    with suppress(OSError, ValueError):
        raw = recall(_file(machine, n_parameters))
        return {kind: _Sums(*map(float, raw[kind])) for kind in Pace._fields if kind in raw}
    return {}


def _file(machine: Machine, n_parameters: int) -> Path:
    key = digest([machine.name, machine.device, machine.precision, n_parameters, _Sums._fields])
    return cache_dir() / "pace" / f"{key}.json"
