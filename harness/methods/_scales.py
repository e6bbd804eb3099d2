"""Shares of the way from the base to a fine-tune, as a rescue tries them.

Invariant: the scales are those of `rescue.scales`, in its order.
"""

from harness.plugins import RescueSituation, RescueStep, TrialSetting


def _list_settings(at: RescueSituation) -> list[TrialSetting]:
    return [
        TrialSetting({"scale": s}, f"scale={s:g}", f"at scale {s:g}, no training") for s in at.policy.scales
    ]


RESCUE = RescueStep("scale", _list_settings)
