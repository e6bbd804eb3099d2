"""Table of several answers: how varied those drawn to an item are, and the chance that one of k is right.

Invariant: shares are printed in percent with their 95 % intervals over items.
"""

from collections.abc import Iterable

from harness.comparison import Estimate, SeveralAnswers
from harness.decision import CandidateFacts
from harness.formatting import UNKNOWN, count, percent

SEVERAL_NOTE = (
    "Several answers were drawn to each item. Distinct: the share of an item's answers that differ from one "
    "another, commonest: that of the one given most often, each averaged over items; a collapsed model says "
    "one thing however often it is asked. pass@k: the chance that at least one of k answers is right, "
    "estimated without bias from all of them (Chen et al. 2021), where the metric is 0 or 1."
)


def several_columns(facts: Iterable[CandidateFacts]) -> tuple[str, ...]:
    """Name the columns: a pass@k for each k that a candidate has."""
    return ("candidate", "items", "answers to an item", "distinct", "commonest", *_passes(facts))


def several_rows(facts: Iterable[CandidateFacts]) -> list[list[str]]:
    """List one row a candidate of which several answers were drawn."""
    known = [(f.label, f.several) for f in facts]
    names = _passes(facts)
    return [
        [
            label,
            count(of.distinct.n),
            count(of.n_samples),
            _share(of.distinct),
            _share(of.commonest),
            *(_share(_by_k(of).get(name)) for name in names),
        ]
        for label, of in known
        if of is not None
    ]


def several_text(f: CandidateFacts) -> str:
    """Say how varied the answers to an item are, and of one and all of them how often one is right."""
    if (of := f.several) is None:
        return ""
    ends = [of.passes[0], of.passes[-1]] if of.passes else []
    passes = "".join(f", pass@{one.k} {_share(one.estimate)} %" for one in ends)
    return f"of {count(of.n_samples)} answers to an item {_share(of.distinct)} % are distinct{passes}"


def _passes(facts: Iterable[CandidateFacts]) -> list[str]:
    ks = {one.k for f in facts if f.several for one in f.several.passes}
    return [f"pass@{k}" for k in sorted(ks)]


def _by_k(of: SeveralAnswers) -> dict[str, Estimate]:
    return {f"pass@{one.k}": one.estimate for one in of.passes}


def _share(e: Estimate | None) -> str:
    return f"{percent(e.score)} [{percent(e.low)}, {percent(e.high)}]" if e else UNKNOWN
