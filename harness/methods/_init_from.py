"""Weights of another candidate that a method changes: named by `init_from`, or a share of the way to them.

Invariant: the scales that a rescue tries are those of `rescue.scales`, in its order.
"""

from collections.abc import Callable, Iterator

from harness.errors import Problem
from harness.models.hub import ModelSource
from harness.plugins import RescueSituation, RescueStep, TrialSetting
from harness.spec import Recipe


def requires_init(
    expected: str, example: str = "lora"
) -> Callable[[Recipe, ModelSource, str], Iterator[Problem]]:
    """Return what yields that a recipe names no candidate."""

    def problems(recipe: Recipe, source: ModelSource, where: str) -> Iterator[Problem]:
        if recipe.init_from is None:
            yield Problem(where, f"{recipe.method} without init_from", expected, f"add init_from: {example}")

    return problems


def _list_settings(at: RescueSituation) -> list[TrialSetting]:
    return [
        TrialSetting({"scale": s}, f"scale={s:g}", f"at scale {s:g}, no training") for s in at.policy.scales
    ]


RESCUE = RescueStep("scale", _list_settings, place=2)
