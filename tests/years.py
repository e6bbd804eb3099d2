"""Simulated years of nights of one series: errors of answers, retraining, and repetitions of the pool.

Invariant: in a quiet year every training has the same chance of each answer, except for seed effects; these
are shared by all items of a training, and those of the reference by all its rows.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from harness.lifecycle.nightly_verdicts import NightChanges, Seeds, judge

SEED_SD = 0.01


class Year(NamedTuple):
    """A kind of year: binary or skewed graded answers of a pool, retrained every so many nights, or never."""

    answers: str
    pool: int
    made_every: int | None = None
    n_references: int = 1
    n_nights: int = 365
    n_items: int = 60

    @property
    def seeds(self) -> Seeds:
        return Seeds(SEED_SD, self.n_references)


def _answers(kind: str, easiness: np.ndarray, rng: np.random.Generator, shift: float) -> np.ndarray:
    """Draw a score per item, on average higher by `shift`: a fifth of binary items is answered by chance.

    Graded ones are a little better nine times in ten and otherwise much worse, so that signs mislead.
    """
    u = rng.random(len(easiness))
    if kind == "binary":
        by_chance = easiness < 0.2
        return np.where(by_chance, u < 0.5 + shift / 0.2, easiness < 0.7).astype(float)
    return 0.3 + 0.4 * easiness + np.where(u < 0.1, -0.27, 0.03) + shift


def draw_year(year: Year, rng: np.random.Generator, change: float = 0.0) -> list[NightChanges]:
    """Draw a year in which all answers are on average better by `change` than the recipe's."""
    easiness = rng.random(year.pool)
    sd = SEED_SD if year.made_every else 0.0
    then = np.mean(
        [_answers(year.answers, easiness, rng, s) for s in rng.normal(0, sd, year.n_references)], axis=0
    )
    nights, seed = [], 0.0
    for night in range(year.n_nights):
        making = ""
        if year.made_every:
            making = f"making {night // year.made_every}"
            seed = rng.normal(0, sd) if night % year.made_every == 0 else seed
        asked_items = np.arange(night * year.n_items, (night + 1) * year.n_items) % year.pool
        now = _answers(year.answers, easiness[asked_items], rng, seed + change)
        changes = dict(zip(map(str, asked_items), (now - then[asked_items]).tolist(), strict=True))
        nights.append(NightChanges(changes, making or f"environment {night}", making))
    return nights


def find_first_alarm(
    nights: Sequence[NightChanges], seeds: Seeds, alpha: float = 0.05, n_series: int = 2
) -> int | None:
    """Return the night of the alarm, or None; an alarm is permanent, so bisection finds it."""

    def is_alarmed(n: int) -> bool:
        return judge(nights[:n], alpha, n_series, seeds).verdict == "regression"

    if not is_alarmed(len(nights)):
        return None
    low, high = 0, len(nights)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_alarmed(middle) else (middle, high)
    return high


def alarm_rate(year: Year, n_years: int, seed: int = 0) -> float:
    """Return the share of candidates with two series that raise an alarm in a quiet year."""
    rng = np.random.default_rng(seed)
    return float(
        np.mean(
            [
                any(find_first_alarm(draw_year(year, rng), year.seeds) for _ in range(2))
                for _ in range(n_years)
            ]
        )
    )


def median_night(year: Year, n_series: int, change: float = -0.05, seed: int = 0) -> float:
    """Return the median night at which a loss raises an alarm; beyond the year if it raises none."""
    rng = np.random.default_rng(seed)
    alarm_nights = [find_first_alarm(draw_year(year, rng, change), year.seeds) for _ in range(n_series)]
    return float(np.median([night or year.n_nights + 1 for night in alarm_nights]))
