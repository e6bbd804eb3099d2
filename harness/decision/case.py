"""What one decision is about, and how its scores and gains are said.

Invariant: what stands in a case was chosen on validation.
"""

from collections.abc import Sequence
from typing import NamedTuple

from harness import formatting
from harness.comparison import Comparison
from harness.decision.learning_curve import LearningCurve
from harness.decision.results import CandidateFacts, target_unit
from harness.formatting import Unit
from harness.spec import DecidePolicy

FEW = 100  # training examples: below, a fine-tune varies too much with their draw to be trusted on one seed


class Case(NamedTuple):
    """The facts of one decision, with what was chosen on validation.

    `winner` is the best fine-tune that passes its gate, `strongest` the best of all of them, both
    within the budgets; so is `alternative` (untrained), unless none is: then it is the best of all.
    """

    facts: Sequence[CandidateFacts]
    policy: DecidePolicy
    metric: str
    alternative: CandidateFacts | None
    winner: CandidateFacts | None
    strongest: CandidateFacts | None
    missing: tuple[str, ...]
    curve: LearningCurve | None = None

    @property
    def unit(self) -> Unit:
        """The unit and direction of the target's metric."""
        return target_unit(self.facts)

    @property
    def judged(self) -> CandidateFacts | None:
        """The fine-tune that the arithmetic is about."""
        return self.winner or self.strongest


def score_text(case: Case, run: CandidateFacts) -> str:
    """Say what a candidate reaches on test: `81.0 [75, 86] exact_match`."""
    if run.target is None:
        return f"unknown {case.metric} on test"
    return f"{formatting.score(run.target.unit, *run.target[:3])} {case.metric}"


def gain_text(case: Case, g: Comparison | None) -> str:
    """Say a gain with its unit: `+7.0 [+2, +12] points`."""
    if g is None:
        return "an unknown amount"
    return f"{formatting.change(g.unit, g.delta, g.low, g.high)} {g.unit.name}"
