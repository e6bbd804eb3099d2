"""Schema of decoding: how a candidate's answers are sampled, and which of several a user gets.

Invariant: a valid setting samples answers that may differ, and chooses among them without their references.
Source: Holtzman et al. 2020, arXiv:1904.09751 (`top_p`); Wang et al. 2023, arXiv:2203.11171 (`majority`).
"""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from harness.spec.values import JUDGE, Spec, rule

MEAN_LOGPROB = "mean_logprob"


class Decoding(Spec):
    """Decoding of a candidate's answers to the target; without it they are greedy.

    At a `temperature` above 0 the tokens of an answer are sampled from the likeliest ones that together have
    probability `top_p`. For each item that many `samples` are drawn, each with its own seed, which other runs
    and candidates share. `choose` says which of several answers a user gets: the `first`, whose expected
    score is the mean over all of them; the one that the `majority` agrees on (self-consistency), where the
    primary metric decides which answers are equal and the earliest wins a tie; or the `best` by the criterion
    that `by` names. `by` is `mean_logprob`, the mean log-probability of an answer's tokens, a judge among the
    task's metrics, such as `judge:./rubric.yaml`, or a candidate that makes a reward model; never the
    reference, which no user has.
    """

    temperature: float = Field(0.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    samples: int = Field(1, ge=1, le=256)
    choose: Literal["first", "majority", "best"] = "first"
    by: str | None = None

    @property
    def reward_model(self) -> str:
        """The name of the candidate whose reward model chooses; empty if none does."""
        by = self.by or ""
        return "" if by == MEAN_LOGPROB or by.startswith(JUDGE) else by

    @rule
    def _check_temperature(self) -> Iterator[str]:
        if self.temperature == 0 and self.samples > 1:
            yield (
                f"{self.samples} samples at temperature 0, which are one and the same answer; write a "
                "temperature, such as 0.7, or samples: 1"
            )
        if self.temperature == 0 and self.top_p < 1:
            yield ("top_p at temperature 0, where nothing is sampled; write a temperature, such as 0.7")

    @rule
    def _check_choice(self) -> Iterator[str]:
        if self.choose != "first" and self.samples == 1:
            yield f"choose: {self.choose} of one sample; write samples: 5, or more"
        if (self.choose == "best") != (self.by is not None):
            yield (
                f"choose: best and by, which need each other; write by: {MEAN_LOGPROB}, a judge "
                "or a candidate that makes a reward model"
            )
