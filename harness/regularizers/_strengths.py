"""Strengths of a penalty on the loss that a rescue tries.

Invariant: none is weaker than the recipe's own.
"""

from typing import Any

from harness.plugins import RescueSituation, RescueStep, TrialSetting


def rescue_by_strength(
    name: str, params: type[Any], strengths: tuple[float, ...], says: str, place: float
) -> RescueStep:
    """Return the step of a rescue that adds a penalty, or strengthens it, from weak to strong.

    Its `place` ranks it by what was kept at an equal gain in reports/fronts.md.
    """

    def settings(at: RescueSituation) -> list[TrialSetting] | str:
        present = dict(at.present or {})
        least = 0.0 if at.present is None else params(**present).strength
        stronger = [s for s in strengths if s > least]
        return [
            TrialSetting({**present, "strength": s}, f"{name}={s:g}", f"{says}, strength {s:g}")
            for s in stronger
        ] or f"its recipe has {name} of the strength {least:g} already"

    return RescueStep(name, settings, place)
