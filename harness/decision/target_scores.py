"""The score of a candidate on a target other than its own."""

from dataclasses import dataclass

from harness.comparison import Comparison, Estimate


@dataclass(frozen=True, slots=True)
class TargetScore:
    """Score of a candidate on another target, with untrained candidates compared on the same items.

    `untrained` names the untrained candidate that is best on that target's own validation rows;
    `vs_untrained` is the paired difference from it, `vs_prompt` from the plain prompt.
    """

    task: str
    metric: str
    score: Estimate
    untrained: str | None = None
    vs_untrained: Comparison | None = None
    vs_prompt: Comparison | None = None
