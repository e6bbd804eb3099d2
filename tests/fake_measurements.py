"""Measurements of two arms with a known truth, for the error rates of `gate_verdict.judge`."""

from collections.abc import Sequence

import numpy as np

from harness.analysis.admission import Measurement
from harness.spec import Task
from tests.fake_rows import EXACT, rows


def measurement(
    name: str, base: np.ndarray, new: np.ndarray, *, chance: float = 0.0, documents: Sequence[str] = ()
) -> Measurement:
    """Make a capability task from both arms' scores; `documents` are the digests of its items."""
    document_of = {f"item-{i:04d}": document for i, document in enumerate(documents)}
    task = Task(name=name, data={}, chance=chance)
    arms = (rows(arm, task=name) for arm in (base, new))
    return Measurement(task, "capability", "", {EXACT.name: EXACT}, *arms, documents=document_of)


def answers(
    rng: np.random.Generator, n: int, score: float, flips: float, loss: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Draw both arms' 0/1 scores (n,): the share 2 · flips of the items is random for either model."""
    # The new model also loses the share `loss` of all items, among those that it would have right.
    kind = rng.random(n)
    is_right = kind < 2 * flips + score - flips
    base, new = (np.where(kind < 2 * flips, rng.random(n) < 0.5, is_right) for _ in range(2))
    return base.astype(float), (new & (rng.random(n) >= loss / score)).astype(float)
