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
from functools import partial
from typing import NamedTuple

import numpy as np

from harness.errors import Problem, UserError
from harness.evaluation.costs import Work
from harness.evaluation.session import Session
from harness.models import TokenScores
from harness.models.hf import HFCandidate
from harness.progress import Advance
from harness.records import Example
from harness.stats import Array, clustered_mean, t_interval

NO_PROOF = (
    "no proof: a base that never saw an item also finds it likelier than its copies in disorder; compare a"
    " suite with one of the same kind that is newer than the base, and the intervals with each other"
)

_SHARE = 0.2  # of the tokens, the least likely ones
ITEMS = 25  # of a task, unless all are scored
_COPIES, _TOGETHER = 3, 64  # copies of an item, and texts that are scored between two words of progress
_FEWEST_WORDS, _FEWEST_ITEMS = 6, 10
_EXCHANGED = 0.2  # of the pairs of neighbouring words

ScoreTokens = Callable[[Sequence[str]], list[TokenScores]]


class Gap(NamedTuple):
    """A mean gap between items and their copies, with its 95 % interval; None where the spread is unknown."""

    mean: float
    low: float | None
    high: float | None


class Membership(NamedTuple):
    """Gaps of a task's items: min-k % in nats a token, min-k %++ in standard deviations; None of too few.

    `n` items were scored, of `of` that are long enough.
    """

    task: str
    n: int
    of: int
    min_k: Gap | None
    min_k_plus_plus: Gap | None


class _SampledItems(NamedTuple):
    """Items of a task that are scored, each as its text and its copies; `of` items are long enough."""

    task: str
    items: list[Example]
    texts: list[str]
    of: int


def measure_membership(session: Session, most: int | None = ITEMS) -> tuple[Membership, ...]:
    """Ask the base for the log-probabilities of the items of every suite and of the target.

    At most so many items of a task are drawn, or all of them.

    Raises:
        UserError: the base is answered by another engine than transformers.
    """
    if session.experiment.engine != "transformers":
        found, step = f"engine: {session.experiment.engine}", "engine=transformers"
        expected = "the engine that gives log-probabilities of a prompt's tokens"
        raise UserError(Problem("harness doctor --membership", found, expected, step))
    base = session.host(session.source).base
    assert isinstance(base, HFCandidate)
    drawn = [_draw(m.task.name, m.items.test, most) for m in session.tasks]
    texts = [text for of in drawn for text in of.texts]
    n_tokens = sum(len(base.encode((), text, chat_template=False).continuation) for text in texts)
    n_items = sum(len(of.items) for of in drawn)
    label = f"log-probabilities under the base of {n_items:,} of {sum(of.of for of in drawn):,} items"
    with session.progress.stage(label, session.seconds(Work(read=n_tokens))) as advance:
        score = _TextScorer(base.score_tokens, sum(map(len, texts)), advance)
        return tuple(_membership(of, partial(score, of.task)) for of in drawn)


class _TextScorer:
    """Scores texts some at a time, and reports how many of all characters are read."""

    def __init__(self, score: ScoreTokens, n_all: int, advance: Advance) -> None:
        self._score, self._n_all, self._advance, self._n_read = score, n_all, advance, 0

    def __call__(self, task: str, texts: Sequence[str]) -> list[TokenScores]:
        """Score the texts of a task."""
        out: list[TokenScores] = []
        for start in range(0, len(texts), _TOGETHER):
            some = texts[start : start + _TOGETHER]
            out += self._score(some)
            self._n_read += sum(map(len, some))
            self._advance(self._n_read, self._n_all, task)
        return out


def _draw(task: str, items: Sequence[Example], most: int | None) -> _SampledItems:
    """Draw items that are long enough, and make their copies; no texts where they are too few."""
    known = [item for item in items if len(_text(item).split()) >= _FEWEST_WORDS]
    if len(known) < _FEWEST_ITEMS:
        return _SampledItems(task, known, [], len(known))
    rng = random.Random(f"membership/{task}")
    drawn = rng.sample(known, len(known) if most is None else min(most, len(known)))
    texts = [
        t for item in drawn for t in (_text(item), *(disorder(_text(item), rng) for _ in range(_COPIES)))
    ]
    return _SampledItems(task, drawn, texts, len(known))


def _membership(drawn: _SampledItems, score: ScoreTokens) -> Membership:
    """Estimate how much higher min-k % and min-k %++ are for items than for copies of them in disorder."""
    n = len(drawn.items)
    if not drawn.texts:
        return Membership(drawn.task, n, drawn.of, None, None)
    scored, clusters = score(drawn.texts), [item.cluster or item.id for item in drawn.items]
    plain, standardized = (
        _gap(np.array([min_k(of) for of in each]).reshape(n, -1), clusters)
        for each in zip(*scored, strict=True)
    )
    return Membership(drawn.task, n, drawn.of, plain, standardized)


def _gap(scores: Array, clusters: Sequence[str]) -> Gap:
    """Average how much higher the first of each row (items, 1 + copies) is than the others."""
    mean = clustered_mean(scores[:, 0] - scores[:, 1:].mean(axis=1), clusters)
    return Gap(mean.mean, *(t_interval(mean) if mean.se is not None else (None, None)))


def min_k(scores: Sequence[float]) -> float:
    """Return the mean of the lowest scores of a text's tokens, a share of them, at least one.

    Of log-probabilities that is min-k %, of standardised ones min-k %++.

    Raises:
        ValueError: there is no token.
    """
    if not scores:
        raise ValueError("no token; expected at least one")
    least = sorted(scores)[: max(1, round(_SHARE * len(scores)))]
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
    turns = [m["content"] for m in item.messages if m["role"] != "system"]
    return " ".join(" ".join([*turns, *item.references[:1]]).split())
