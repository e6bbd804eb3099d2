"""General rows mixed into training to reduce forgetting: the base's own answers, or rows of a file.

Source: Ibrahim et al. 2024 (arXiv:2403.08763) and Bethune et al. 2025 (arXiv:2502.06042) for the shares.
"""

from collections.abc import Callable, Iterable

from pydantic import Field

from harness.plugins import RescueSituation, RescueStep, TrialSetting
from harness.records import Example
from harness.regularizers import Answered, MixContext, Mixture, collect_answered_rows, general_mixture
from harness.spec import Spec

_NAME = "replay"


class Params(Spec):
    """`share` rows for each training row: general prompts with the base's answers, or rows of `data`."""

    share: float = Field(gt=0, le=1)
    data: str | None = None


def _list_settings(at: RescueSituation) -> list[TrialSetting] | str:
    """List the shares that a rescue tries: those of its policy above the recipe's own share."""
    written = dict(at.present or {}) | ({"data": at.policy.replay} if at.policy.replay else {})
    what = "rows of your file" if written.get("data") else "the base's own answers"
    least = written.get("share", 0.0)
    return [
        TrialSetting({**written, "share": share}, f"{_NAME}={share:g}", f"{100 * share:g} % replay of {what}")
        for share in at.policy.shares
        if share > least
    ] or f"its recipe mixes in {100 * least:g} % already"


RESCUE = RescueStep(_NAME, _list_settings, place=2)  # by what was kept, reports/fronts.md


def sample(context: MixContext, params: Params) -> Mixture:
    """Sample rows of the user's file, or more general prompts than needed, none of them evaluated."""
    return general_mixture(_NAME, max(1, round(params.share * context.n_train)), params.data, context)


def mix(mixture: Mixture, evaluate: Callable[[], Iterable[Answered]]) -> tuple[Example, ...]:
    """Return rows of a file as they are; join prompts with the base's answers, of which long ones are cut."""
    return collect_answered_rows(_NAME, mixture, evaluate)
