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


def _list_settings(case: RescueSituation) -> list[TrialSetting] | str:
    """List the shares that a rescue tries: those of its policy above the recipe's own share."""
    current = dict(case.present or {}) | ({"data": case.policy.replay} if case.policy.replay else {})
    rows = "rows of your file" if current.get("data") else "the base's own answers"
    current_share = current.get("share", 0.0)
    return [
        TrialSetting({**current, "share": share}, f"{_NAME}={share:g}", f"{100 * share:g} % replay of {rows}")
        for share in case.policy.shares
        if share > current_share
    ] or f"its recipe mixes in {100 * current_share:g} % already"


RESCUE = RescueStep(_NAME, _list_settings, place=2)  # by how much was retained, reports/fronts.md


def sample(context: MixContext, params: Params) -> Mixture:
    """Sample rows of the user's file, or more general prompts than needed, without evaluated items."""
    return general_mixture(_NAME, max(1, round(params.share * context.n_train)), params.data, context)


def mix(mixture: Mixture, evaluate: Callable[[], Iterable[Answered]]) -> tuple[Example, ...]:
    """Return a file's rows as they are, or prompts joined with the base's answers, long ones cut."""
    return collect_answered_rows(_NAME, mixture, evaluate)
