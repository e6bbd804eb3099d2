"""Membership signal: how much better the base knows the items of a suite than the same items in disorder.

Invariant: an item is compared with copies of itself in which neighbouring words changed places, so how hard
it is counts on both sides; the same base and items give the same number. A number here is no proof: each
fluent text is likelier than its copies, and the gap is larger the more its order says.

Source: min-k % of Shi et al. 2024, https://arxiv.org/abs/2310.16789; copies of an item as its reference as in
Mattern et al. 2023, https://arxiv.org/abs/2305.18462; that such signals often do hardly better than chance,
Duan et al. 2024, https://arxiv.org/abs/2402.07841
"""

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from harness.errors import Problem, UserError
from harness.evaluation.session import Session
from harness.models.hf import HFCandidate
from harness.records import Example
from harness.stats.means import clustered_mean, t_interval

NO_PROOF = (
    "no proof: a base that never saw an item also finds it likelier than its copies in disorder; compare a"
    " suite with one of the same kind that is newer than the base, and the intervals with each other"
)

_SHARE = 0.2  # of the tokens, the least likely ones
_ITEMS, _COPIES = 100, 3
_FEWEST_WORDS, _FEWEST_ITEMS = 6, 10
_EXCHANGED = 0.2  # of the pairs of neighbouring words

TokenLogprobs = Callable[[Sequence[str]], list[list[float]]]


class Membership(NamedTuple):
    """The mean gap of a task's items in nats a token, with its 95 % interval; None where it is unknown."""

    task: str
    n: int
    gap: float | None
    low: float | None
    high: float | None


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
    measured = (session.target, *session.suites)
    with session.progress.stage("asking the base for what it knows of the items"):
        return tuple(membership_gap(m.task.name, m.items.test, base.token_logprobs) for m in measured)


def membership_gap(task: str, items: Sequence[Example], token_logprobs: TokenLogprobs) -> Membership:
    """Estimate how much higher min-k % is for items than for copies of them in disorder.

    At most a hundred items of six words or more are drawn; of fewer than ten nothing is said. Items of one
    cluster count as one.
    """
    known = [item for item in items if len(_text(item).split()) >= _FEWEST_WORDS]
    if len(known) < _FEWEST_ITEMS:
        return Membership(task, len(known), None, None, None)
    rng = random.Random(f"membership/{task}")
    drawn = rng.sample(known, min(_ITEMS, len(known)))
    texts = [
        t for item in drawn for t in (_text(item), *(disorder(_text(item), rng) for _ in range(_COPIES)))
    ]
    scores = np.array([min_k(logprobs) for logprobs in token_logprobs(texts)]).reshape(len(drawn), -1)
    gaps = scores[:, 0] - scores[:, 1:].mean(axis=1)
    mean = clustered_mean(gaps, [item.cluster or item.id for item in drawn])
    low, high = t_interval(mean) if mean.se is not None else (None, None)
    return Membership(task, len(drawn), mean.mean, low, high)


def min_k(logprobs: Sequence[float], share: float = _SHARE) -> float:
    """Return the mean log-probability of the least likely tokens of a text, a share of them, at least one.

    Raises:
        ValueError: there is no token.
    """
    if not logprobs:
        raise ValueError("no token; expected at least one")
    least = sorted(logprobs)[: max(1, round(share * len(logprobs)))]
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
