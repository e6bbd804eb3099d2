"""Squared distance from the starting point as a penalty on the loss, strength / 2 · ‖W − W₀‖².

For an adapter the distance is that of ΔW = BA. Source: L2-SP, Li et al. 2018 (arXiv:1802.01483), equation 2.
"""

from collections.abc import Iterator

from pydantic import Field

from harness.models.later import torch
from harness.regularizers import Penalty, Start, _weights, rescue_by_strength
from harness.spec import Spec


class Params(Spec):
    """`strength` of the pull back to the start; a method's `weight_decay` pulls to zero in addition."""

    strength: float = Field(gt=0, allow_inf_nan=False)


RESCUE = rescue_by_strength("l2_sp", Params, (0.01,), "squared distance from the start as a penalty", place=4)
problem = _weights.problem


def penalty(start: Start, params: Params) -> Penalty:
    """Return the penalty, one term for each weight."""
    moved = _weights.displacements(start.model)

    def terms(step: int) -> "Iterator[torch.Tensor]":
        for displacement in moved.values():
            yield params.strength / 2 * displacement().square().sum()

    return terms
