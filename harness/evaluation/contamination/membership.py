"""Membership signal: how much better the base knows the items of a suite than the same items in disorder.

Invariant: an item is compared with copies of itself in which neighbouring words changed places, so how hard
it is counts on both sides; the same base and items give the same number. A number here is no proof: each
fluent text is likelier than its copies, and the gap is larger the more its order says.

Source: min-k % of Shi et al. 2024, https://arxiv.org/abs/2310.16789; min-k %++ of Zhang et al. 2024,
https://arxiv.org/abs/2404.02936, which sets each token against all that could stand in its place; copies
of an item as its reference as in Mattern et al. 2023, https://arxiv.org/abs/2305.18462; that such signals
often do hardly better than chance, Duan et al. 2024, https://arxiv.org/abs/2402.07841
"""

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from harness.errors import Problem, UserError
from harness.evaluation.session import Session
from harness.models.hf import HFCandidate, TokenScores
from harness.records import Example
from harness.stats import Array
from harness.stats.means import clustered_mean, t_interval

NO_PROOF = (
    "no proof: a base that never saw an item also finds it likelier than its copies in disorder; compare a"
    " suite with one of the same kind that is newer than the base, and the intervals with each other"
)

_SHARE = 0.2  # of the tokens, the least likely ones
_ITEMS, _COPIES = 100, 3
_FEWEST_WORDS, _FEWEST_ITEMS = 6, 10
_EXCHANGED = 0.2  # of the pairs of neighbouring words

ScoreTokens = Callable[[Sequence[str]], list[TokenScores]]


class Gap(NamedTuple):
    """A mean gap between items and their copies, with its 95 % interval; None where the spread is unknown."""

    mean: float
    low: float | None
    high: float | None


class Membership(NamedTuple):
    """Gaps of a task's items: min-k % in nats a token, min-k %++ in standard deviations; None of too few."""

    task: str
    n: int
    min_k: Gap | None
    min_k_plus_plus: Gap | None


def measure_membership(session: Session) -> tuple[Membership, ...]:
    """Ask the base for the log-probabilities of the items of every suite and of the target.

    Raises:
        UserError: the base is answered by another engine than transformers.
    """
    if session.experiment.engine != "transformers":
        found, step = f"engine: {session.experiment.engine}", "engine=transformers"
        expected = "the engine that gives log-probabilities of a prompt's tokens"
        raise UserError(Problem("harness doctor --membership", found, expected, step))
    base = session.host(session.source).base
    assert isinstance(base, HFCandidate)
    with session.progress.stage("asking the base for what it knows of the items"):
        return tuple(membership_gap(m.task.name, m.items.test, base.score_tokens) for m in session.tasks)


def membership_gap(task: str, items: Sequence[Example], score: ScoreTokens) -> Membership:
    """Estimate how much higher min-k % and min-k %++ are for items than for copies of them in disorder.

    At most a hundred items of six words or more are drawn; of fewer than ten nothing is said. Items of one
    cluster count as one.
    """
    known = [item for item in items if len(_text(item).split()) >= _FEWEST_WORDS]
    if len(known) < _FEWEST_ITEMS:
        return Membership(task, len(known), None, None)
    rng = random.Random(f"membership/{task}")
    drawn = rng.sample(known, min(_ITEMS, len(known)))
    texts = [
        t for item in drawn for t in (_text(item), *(disorder(_text(item), rng) for _ in range(_COPIES)))
    ]
    scored, clusters = score(texts), [item.cluster or item.id for item in drawn]
    plain, standardized = (
        _gap(np.array([min_k(of) for of in each]).reshape(len(drawn), -1), clusters)
        for each in zip(*scored, strict=True)
    )
    return Membership(task, len(drawn), plain, standardized)


def _gap(scores: Array, clusters: Sequence[str]) -> Gap:
    """Average how much higher the first of each row (items, 1 + copies) is than the others."""
    mean = clustered_mean(scores[:, 0] - scores[:, 1:].mean(axis=1), clusters)
    return Gap(mean.mean, *(t_interval(mean) if mean.se is not None else (None, None)))


def min_k(scores: Sequence[float], share: float = _SHARE) -> float:
    """Return the mean of the lowest scores of a text's tokens, a share of them, at least one.

    Of log-probabilities that is min-k %, of standardised ones min-k %++.

    Raises:
        ValueError: there is no token.
    """
    if not scores:
        raise ValueError("no token; expected at least one")
    least = sorted(scores)[: max(1, round(share * len(scores)))]
    return sum(least) / len(least)


def disorder(text: str, rng: random.Random) -> str:
    """Exchange neighbouring words at some places of a text, at least at one where two words differ."""
    words = text.split()
    places = [i for i in range(len(words) - 1) if words[i] != words[i + 1]]
    for i in rng.sample(places, min(len(places), max(1, round(_EXCHANGED * len(places))))):
        words[i], words[i + 1] = words[i + 1], words[i]
    return " ".join(words)


def _text(item: Example) -> str:
    """Return what an item asks and its answer, in single spaces, as its copies are written."""
    asked = [m["content"] for m in item.messages if m["role"] != "system"]
    return " ".join(" ".join([*asked, *item.references[:1]]).split())
