"""The calibration page: the claim for every printed number, and its simulated value."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from harness.formatting import count
from tests.calibration.cell import DRAWS, ERRORS, Cell, Claim, Figure, holds
from tests.calibration.study import FIRST, CellFigures, is_repeated, is_stale

_ABOUT = """\
Answers of a base and a candidate are made up, so that the truth is known, and given to the functions that print the
numbers ({functions}). A draw is one whole comparison. The error is the Monte Carlo standard error, and a claim
holds where the figure is within {errors:g} of them; one that does not is marked **FAILS**."""

_DESIGN = """\
## The design

Scores are binary, graded, or graded with a skew (most items rise a little, few fall by 45 points); items stand alone or
in clusters (equal, of log-normal sizes, one of 200 beside 20 of 5, two of 100 beside 100 of 2, one of 100 beside 100 single
ones), in which half of the items share what befalls their cluster; there are 50 to 1,200 items, 1 to 16 tasks, one to five
seeds, one to eight candidates, and tasks that ask the same documents or about the same passages. Not every combination is simulated: each level
stands in a cell of every estimator that it could trouble, beside the plainest one. What is left out, and why: seeds in
clusters (they come through the same interval of a paired difference, which has its own cells); more than eight candidates (the correction does not depend on their number); intervals of ratings by people and
of learning curves, which rest on a handful of numbers each."""

_WITHDRAWN = """\
What is **withdrawn** is simulated to be seen, and claimed nowhere. A skew in clusters of unequal sizes: few clusters hold
most items, and their means are themselves skewed. A loss found by night 7 where weights are made anew every week: one
making has answered by then, and with its own effect (1 point) and the reference's the best bet there is, which knew the
loss, would have evidence of 31 in the median, where 50 is needed; on night 8, with a second making, it would have 55."""

_STALE = """\
Of {} cells, marked †, code that they run has changed since they were simulated, in whatever way."""

_REPEATED = """\
Of {} cells, code that they run has changed since; drawn again by the code as it is now, their first {} draws had the
outcomes that they had."""

_NOMINAL = """\
A claim is the nominal level, and where that is only reached with many items, what is claimed of few: of
single items one percentage point and a half beside 95 or 5 %; in clusters and with a skew as much as the column says."""


def page(cells: Sequence[Cell], figures: Mapping[str, CellFigures]) -> str:
    """Write the page as Markdown; cells without a simulation are left out and counted."""
    simulated = [c for c in cells if c.name in figures]
    functions = (
        "`comparison.estimate`, `comparison.compare_rows`, `gate_verdict.judge`, `significance.power_warnings`, "
        "`decision.decide`, `nightly_alarm`, the plan of fewer items and the halves of a rescue"
    )
    lines = [
        "# Calibration of the printed numbers",
        "",
        _ABOUT.format(functions=functions, errors=ERRORS),
        "",
        _summary(cells, simulated, figures),
        "",
        _NOMINAL,
    ]
    for estimator, group in groupby(simulated, key=lambda c: c.estimator):
        lines += ["", f"## {estimator[0].upper()}{estimator[1:]}", "", *_table(group, figures)]
    return (
        "\n".join([*lines, "", _DESIGN, "", _WITHDRAWN, "", "`make calibration` makes this page again."])
        + "\n"
    )


def list_failing_claims(cells: Iterable[Cell], figures: Mapping[str, CellFigures]) -> list[str]:
    """List the claims that simulation refutes, with their figures."""
    return [
        f"{c.name}: {claim.says}: {format_figure(claim, figure)}, claimed {format_claim(claim)}"
        for c in cells
        if c.name in figures
        for name, claim in c.claims.items()
        if not holds(claim, figure := figures[c.name].figures[name])
    ]


def _summary(cells: Sequence[Cell], simulated: Sequence[Cell], figures: Mapping[str, CellFigures]) -> str:
    wrong, claims = list_failing_claims(simulated, figures), [x for c in simulated for x in c.claims.values()]
    n_claims, withdrawn = sum(not x.withdrawn for x in claims), sum(x.withdrawn for x in claims)
    draws = [figures[c.name].n_draws for c in simulated]
    minutes = sum(figures[c.name].seconds for c in simulated) / 60
    text = f"{count(n_claims - len(wrong))} of {count(n_claims)} claims in {count(len(simulated))} cells hold"
    if withdrawn:
        text += f", {count(withdrawn)} more are withdrawn"
    if len(simulated) < len(cells):
        text += f" ({count(len(cells) - len(simulated))} cells are not simulated yet)"
    n_full = sum(n >= DRAWS for n in draws)
    fewest = (
        f"at least {count(min(draws, default=0))} draws a cell, {count(DRAWS)} in {count(n_full)} of them"
    )
    text = f"{text}; {fewest}, {minutes:.0f} minutes of one core."
    n_stale = sum(is_stale(figures[c.name]) for c in simulated)
    n_repeated = sum(is_repeated(figures[c.name]) for c in simulated)
    if not n_stale + n_repeated:
        return f"{text} No code that a cell runs has changed since it was simulated."
    stale = f" {_STALE.format(count(n_stale))}" if n_stale else ""
    return text + (f" {_REPEATED.format(count(n_repeated), FIRST)}" if n_repeated else "") + stale


def _table(cells: Iterable[Cell], figures: Mapping[str, CellFigures]) -> list[str]:
    head = ["| world | claim | claimed % | simulated % | draws | holds |", "|---|---|---|---|---|---|"]
    return head + [_line(c, claim, figures[c.name], name) for c in cells for name, claim in c.claims.items()]


def _line(cell: Cell, claim: Claim, figures: CellFigures, name: str) -> str:
    figure, mark = figures.figures[name], "†" * is_stale(figures)
    state = "withdrawn" if claim.withdrawn else "yes" if holds(claim, figure) else "**FAILS**"
    cells = (
        cell.world,
        claim.says,
        format_claim(claim),
        format_figure(claim, figure),
        count(figure.n),
        state + mark,
    )
    return f"| {' | '.join(cells)} |"


def format_claim(claim: Claim) -> str:
    """Format the range that a claim allows, in percent or points."""
    if claim.withdrawn:
        return "nothing"
    low, high = (f"{100 * end:.3g}" for end in (claim.low, claim.high))
    if claim.gap:
        return f"0 ± {high}"
    if claim.low <= 0:
        return f"at most {high}"
    return f"at least {low}" if claim.high >= 1 else f"{low} to {high}"


def format_figure(claim: Claim, figure: Figure) -> str:
    """Format a figure with its Monte Carlo standard error."""
    sign = "+" if claim.gap else ""
    return f"{100 * figure.mean:{sign}.1f} ± {100 * figure.error:.1f}".replace("-", "−") if figure.n else "–"
