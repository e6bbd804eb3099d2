"""Shares of the way from the base to a fine-tune, as a rescue tries them.

Invariant: the scales are those of `rescue.scales`, in its order.
"""

from harness.plugins import RescueSituation, RescueStep, Rung


def _rungs(at: RescueSituation) -> list[Rung]:
    return [Rung({"scale": s}, f"scale={s:g}", f"at scale {s:g}, no training") for s in at.policy.scales]


RESCUE = RescueStep("scale", _rungs)
