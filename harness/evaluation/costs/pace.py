"""Pace of a machine: measured seconds for each estimated one, of answering and of training.

Invariant: an estimate from sizes alone holds until something of five seconds or more has run here; work that
was disturbed, or resumed, teaches nothing. What was measured longest ago counts least.

A product of large matrices, by which `probe` measures a machine, says little of its memory and of small
operations: the same training took twice as long on two days on which that product was as fast.
"""

import json
from contextlib import suppress
from math import exp
from pathlib import Path
from typing import Literal, NamedTuple

from harness.cache import cache_dir, remember
from harness.models.hardware import Machine
from harness.records import digest

Kind = Literal["answering", "training"]
_WORTH_S = 5.0  # estimated seconds from which a measurement is no matter of start-up
_MEMORY_S = 600.0  # estimated seconds after which a measurement counts a third
_LEAST, _MOST = 0.1, 10.0


class Pace(NamedTuple):
    """Measured seconds for each estimated one; 1 where nothing was measured."""

    answering: float = 1.0
    training: float = 1.0


class _Sums(NamedTuple):
    """Estimated and measured seconds of one kind of work, the older ones discounted."""

    estimated_s: float = 0.0
    measured_s: float = 0.0

    @property
    def ratio(self) -> float:
        if not self.estimated_s:
            return 1.0
        return min(max(self.measured_s / self.estimated_s, _LEAST), _MOST)


def read_pace(machine: Machine, n_parameters: int) -> Pace:
    """Read what was measured here of a model of so many parameters."""
    known = _read(machine, n_parameters)
    return Pace(**{kind: sums.ratio for kind, sums in known.items()})


def record_pace(
    machine: Machine, n_parameters: int, kind: Kind, estimated_s: float, measured_s: float
) -> None:
    """Keep that work which was estimated from sizes alone to take so long took as long as measured."""
    if estimated_s < _WORTH_S:
        return
    known = _read(machine, n_parameters)
    left, old = exp(-estimated_s / _MEMORY_S), known.get(kind, _Sums())
    known[kind] = _Sums(left * old.estimated_s + estimated_s, left * old.measured_s + measured_s)
    with suppress(OSError):  # a cache that may only be read costs the estimate alone
        remember(_file(machine, n_parameters), json.dumps(known))


def _read(machine: Machine, n_parameters: int) -> dict[str, _Sums]:
    with suppress(OSError, ValueError, TypeError, AttributeError):
        raw = json.loads(_file(machine, n_parameters).read_text("utf-8"))
        return {kind: _Sums(*map(float, raw[kind])) for kind in Pace._fields if kind in raw}
    return {}


def _file(machine: Machine, n_parameters: int) -> Path:
    key = digest([machine.name, machine.device, machine.precision, n_parameters])
    return cache_dir() / "pace" / f"{key}.json"
