"""Pace of a machine: measured seconds per estimated second, and per unit of work without tokens.

Invariant: disturbed or resumed work is not used, and older measurements count less. An estimate by the steps
that `probe` timed is used until there are measurements, and weighs as much as five seconds of them.
"""

from contextlib import suppress
from math import exp
from pathlib import Path
from typing import Literal, NamedTuple

from harness.cache import cache_dir, recall, remember
from harness.models.hardware import Machine
from harness.records import digest

Kind = Literal["answering", "training", "fits", "opened", "requests", "runs"]
_PRIOR_S = 5.0  # weight of the first estimate, in estimated seconds
_MEMORY_S = 600.0  # estimated seconds after which a measurement counts a third
_LEAST, _MOST = 0.1, 10.0
_MOST_EACH = 50.0  # upper bound as a multiple of the assumption


class Rate(NamedTuple):
    """Measured seconds per estimated second of tokens, and seconds per unit of other work."""

    ratio: float = 1.0
    each_s: float = 0.0


class Pace(NamedTuple):
    """Rates of answering in blocks, of training in steps, and of work without tokens.

    Seconds per unit are assumptions until something was measured here: those of a model with 135 million
    parameters on two CPU cores. `fits` are trainings without their steps (process, model, saving), `opened`
    is weights being made ready to answer, `requests` single requests that are timed, `runs` the rest of a
    comparison: grading, statistics, writing.
    """

    answering: Rate = Rate(each_s=0.1)
    training: Rate = Rate(each_s=0.03)
    fits: Rate = Rate(each_s=3.0)
    opened: Rate = Rate(each_s=0.3)
    requests: Rate = Rate(each_s=0.3)
    runs: Rate = Rate(each_s=0.5)


_ASSUMED = Pace()


class _Sums(NamedTuple):
    """Sums over measurements of a kind, older ones discounted, each weighted by its inverse expected time.

    A measurement has `s` estimated seconds of tokens and `n` units, and took `took` seconds. The sums are
    normalised to 1 GFLOP/s, because the same machine may be measured again when it is idle.
    """

    s_s: float = 0.0
    s_n: float = 0.0
    n_n: float = 0.0
    s_took: float = 0.0
    n_took: float = 0.0

    def rate(self, assumed: Rate, gflops: float) -> Rate:
        """Solve for the rate by least squares, with the assumption as one more measurement of each part."""
        n_n, n_took = self.n_n + 1 / assumed.each_s, self.n_took + 1.0
        s_s, s_took = self.s_s / gflops**2 + _PRIOR_S, self.s_took / gflops + _PRIOR_S
        s_n, most_s = self.s_n / gflops, _MOST_EACH * assumed.each_s
        each_s = (s_s * n_took - s_n * s_took) / (s_s * n_n - s_n**2)
        ratio = min(max((s_took - s_n * min(max(each_s, 0.0), most_s)) / s_s, _LEAST), _MOST)
        return Rate(ratio, min(max((n_took - s_n * ratio) / n_n, 0.0), most_s))


def read_pace(machine: Machine, n_parameters: int) -> Pace:
    """Read the pace measured here for a model of this size."""
    sums_by_kind = _read(machine, n_parameters)
    rates = {kind: sums.rate(getattr(_ASSUMED, kind), machine.gflops) for kind, sums in sums_by_kind.items()}
    return Pace(**rates)


def record_pace(
    machine: Machine, n_parameters: int, kind: Kind, estimated_s: float, n: float, took_s: float
) -> None:
    """Record that `n` units with tokens estimated at `estimated_s` seconds took `took_s` seconds."""
    expected_s = estimated_s + n * getattr(_ASSUMED, kind).each_s
    if expected_s <= 0:
        return
    known = _read(machine, n_parameters)
    discount, old = exp(-expected_s / _MEMORY_S), known.get(kind, _Sums())
    s = estimated_s * machine.gflops
    terms = (s * s, s * n, n * n, s * took_s, n * took_s)
    known[kind] = _Sums(
        *(discount * before + new / expected_s for before, new in zip(old, terms, strict=True))
    )
    with suppress(OSError):  # a read-only cache only costs accuracy
        remember(_file(machine, n_parameters), known)


def _read(machine: Machine, n_parameters: int) -> dict[str, _Sums]:
    with suppress(OSError, ValueError):
        raw = recall(_file(machine, n_parameters))
        return {kind: _Sums(*map(float, raw[kind])) for kind in Pace._fields if kind in raw}
    return {}


def _file(machine: Machine, n_parameters: int) -> Path:
    key = digest(["steps", machine.name, machine.device, machine.precision, n_parameters, _Sums._fields])
    return cache_dir() / "pace" / f"{key}.json"
