"""Claims about preferences: DPO against a reward model and RLOO, from one adapter and the same pairs."""

from functools import cache
from statistics import fmean
from typing import NamedTuple

from harness import formatting
from harness.analysis.estimators import Estimate
from harness.experiment.candidate_weights import find_stored_weights
from reports.studies.claims.claim import ClaimResult, Verdict, judge, judge_all
from reports.studies.claims.fine_tunes import (
    FOLDER,
    MARGIN,
    SEEDS,
    change_over_seeds,
    list_target_figures,
    mean_training_s,
    prepare,
    run_recipes,
)


class _Ways(NamedTuple):
    """DPO's target minus RLOO's, and the mean training seconds of each; RLOO's include its reward model."""

    change: Estimate
    dpo_s: float
    rloo_s: float

    @property
    def shown(self) -> str:
        """Printed text of the result."""
        return (
            f"DPO's target {formatting.points(self.change.score, self.change.low, self.change.high)} points "
            f"against RLOO's, trained in {self.dpo_s:.0f} s and {self.rloo_s:.0f} s with the reward model"
        )


def dpo_against_rloo() -> ClaimResult:
    """Compare target and training time of DPO with those of a reward model and RLOO."""
    ways = _train()
    less = "holds" if ways.dpo_s < ways.rloo_s else "does not hold here"
    return _result(ways, judge_all(judge(ways.change.low, ways.change.high, least=-MARGIN), less))


def rloo_against_dpo() -> ClaimResult:
    """Compare the target of RLOO with that of DPO."""
    ways = _train()
    return _result(ways, judge(-ways.change.high, -ways.change.low, least=0.0))


@cache
def _train() -> _Ways:
    session, runs = run_recipes(prepare(FOLDER, suites=False), ("plain", "dpo", "rloo"))
    dpo, rloo = runs["dpo"], runs["rloo"]
    rewards = [find_stored_weights(session, session.candidates["reward"], run.seed) for run in rloo]
    reward_s = fmean(reward.training.wall_s or 0.0 for reward in rewards if reward)
    return _Ways(
        change_over_seeds(session, [session.target], dpo, rloo),
        mean_training_s(dpo),
        mean_training_s(rloo) + reward_s,
    )


def _result(ways: _Ways, verdict: Verdict) -> ClaimResult:
    figures = list_target_figures(ways.change) | {"dpo_s": ways.dpo_s, "rloo_s": ways.rloo_s}
    note = f"dpo against rloo, both from plain, {len(SEEDS)} seeds, rate 3e-5, the pairs of the target, "
    note += f"{ways.change.n} items"
    return ClaimResult(ways.shown, verdict, figures, note)
