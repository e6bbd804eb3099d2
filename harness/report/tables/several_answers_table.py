"""Table of several answers: how varied those drawn to an item are, and the chance that one of k is right.

Invariant: shares are printed in percent with their 95 % intervals over items.
"""

from collections.abc import Sequence

from harness.comparison import Estimate
from harness.decision import CandidateFacts
from harness.formatting import UNKNOWN, count, percent
from harness.report.document import Section

_NOTE = (
    "Several answers were drawn to each item. Distinct: the share of an item's answers that differ from one "
    "another, commonest: that of the one given most often, each averaged over items; a collapsed model says "
    "one thing however often it is asked. pass@k: the chance that at least one of k answers is right, "
    "estimated without bias from all of them (Chen et al. 2021), where the metric is 0 or 1."
)


def several_section(facts: Sequence[CandidateFacts]) -> Section:
    """Lay out one row a candidate of which several answers were drawn, with a pass@k for each k of any."""
    known = [(f.label, f.several) for f in facts if f.several]
    ks = sorted({one.k for _, of in known for one in of.passes})
    columns = [
        "candidate",
        "items",
        "answers to an item",
        "distinct",
        "commonest",
        *(f"pass@{k}" for k in ks),
    ]
    rows = []
    for label, of in known:
        passes = {one.k: one.estimate for one in of.passes}
        shares = (of.distinct, of.commonest, *map(passes.get, ks))
        rows.append([label, count(of.distinct.n), count(of.n_samples), *map(_share, shares)])
    return Section("samples", "Several answers to an item", columns, rows, _NOTE)


def several_text(f: CandidateFacts) -> str:
    """Say how varied the answers to an item are, and of one and all of them how often one is right."""
    if (of := f.several) is None:
        return ""
    ends = [of.passes[0], of.passes[-1]] if of.passes else []
    passes = "".join(f", pass@{one.k} {_share(one.estimate)} %" for one in ends)
    return f"of {count(of.n_samples)} answers to an item {_share(of.distinct)} % are distinct{passes}"


def _share(e: Estimate | None) -> str:
    return f"{percent(e.score)} [{percent(e.low)}, {percent(e.high)}]" if e else UNKNOWN
