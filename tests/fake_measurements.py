"""Measurements of two arms from a known truth, for the error rates of `gating.judge`."""

from collections.abc import Sequence

import numpy as np

from harness.analysis.admission import Measurement
from harness.spec import Task
from tests.fake_rows import EXACT, rows


def measurement(
    name: str, base: np.ndarray, new: np.ndarray, *, chance: float = 0.0, documents: Sequence[str] = ()
) -> Measurement:
    """Put two arms' scores beside each other as a capability task; `documents` are its items' digests."""
    known = {f"item-{i:04d}": document for i, document in enumerate(documents)}
    task = Task(name=name, data={}, chance=chance)
    arms = (rows(arm, task=name) for arm in (base, new))
    return Measurement(task, "capability", "", {EXACT.name: EXACT}, *arms, documents=known)


def answers(
    rng: np.random.Generator, n: int, score: float, flips: float, loss: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Draw both arms' 0/1 scores (n,): the share 2 · flips of the items is a toss-up for either model."""
    # The new model loses the share `loss` of all items beyond that, among those that it would have right.
    kind = rng.random(n)
    known = kind < 2 * flips + score - flips
    base, new = (np.where(kind < 2 * flips, rng.random(n) < 0.5, known) for _ in range(2))
    return base.astype(float), (new & (rng.random(n) >= loss / score)).astype(float)
