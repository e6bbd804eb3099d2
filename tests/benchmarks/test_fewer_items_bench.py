"""Items per verdict, by interim analyses and by strata, compared with a suite that is asked in full.

The pairs are real models of a leaderboard; savings by strata are measured on the fine-tunes in `runs`, or in
the folder `HARNESS_BENCH_RUNS`, and left out if there are none.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import bench_page
import pytest
from bench_page import Row, Table

from harness.formatting import count, percent, points
from harness.models.hardware import probe
from reports.studies.looks_on_real_items import (
    ALPHA,
    BENCHMARKS,
    MARGIN,
    POWER,
    WHOLE,
    ExplainedVariance,
    Line,
    Strata,
    measure_explained,
    strata_of,
    study,
)

ROOT = Path(__file__).parents[2]
GOAL = 5  # times fewer items
BOUND = (
    "α, power and margin fix how precisely the delta has to be known, whoever chooses the items; items that "
    "the base was sure of flip too, so none may be left out; a look stops early only as far as α allows"
)


def rows(
    lines: Sequence[Line], strata: Sequence[Strata], covariate: Sequence[ExplainedVariance]
) -> list[Row]:
    """Compare the items for a verdict on an equal model with whole benchmarks and with a minimal suite."""
    equal, whole = next(x for x in lines if x.delta == 0), sum(WHOLE.values())
    saved = min((s.saved for s in strata), default=1.0)
    by_score = min(e.saved for e in covariate)
    by_looks = equal.n_full / equal.n_looks
    drawn_items = f"{count(equal.n_strata)} items on average"
    again = f", and {saved:.2f} times fewer by strata of the base's margin" if strata else ""
    by_power = (
        f"{drawn_items} by looks against {count(whole)}; what they add is power that the margin does not need"
    )
    as_large = f"{drawn_items} by looks against {count(equal.n_full)}{again}; {BOUND}"
    together = (
        f"{by_looks:.2f} by looks, times {saved:.2f} by the base's margin and {by_score:.2f} by its score, of the "
        "benchmark where that is least, as if the two strata were independent"
    )
    verdict = "items for a verdict on a model that lost nothing, against the whole benchmarks"
    large = "the same where the tasks are many times as large as what is drawn of them"
    enough = equal.n_full / equal.n_strata * saved
    return [
        Row(verdict, whole / equal.n_strata, "times fewer", GOAL, by_power, at_least=True),
        Row("the same against a suite that is just large enough", enough, "times fewer", GOAL, as_large, at_least=True),
        Row(large, by_looks * saved * by_score, "times fewer", None, together),
    ]  # fmt: skip


def tables(
    lines: Sequence[Line], strata: Sequence[Strata], covariate: Sequence[ExplainedVariance]
) -> list[Table]:
    """Show how designs judge by true deltas, what the base's score explains, and how close calls flip."""
    first = lines[0]
    about = (
        f"{count(sum(x.n_pairs for x in lines))} pairs of models of the Open LLM Leaderboard on {len(BENCHMARKS)} "
        f"benchmarks (metabench). The suite that is just large enough has {count(first.n_full)} items, with which an "
        f"equal model passes the macro (margin {percent(MARGIN)} points, α {percent(ALPHA)} %) with {percent(POWER)} % "
        f"power at the pairs' mean disagreement; the whole benchmarks have {count(sum(WHOLE.values()))}. The looks are "
        "at a third, two thirds and all of the former, drawn at random; α is spent after O'Brien and Fleming. By answers: "
        "drawn from the whole benchmarks as `--sequential` plans it, in strata of what the base scored on all of their "
        "items, in whole blocks of 160; these rows have no log-probabilities."
    )
    ways = ("whole", "enough", "looks", "by answers")
    head = ("true delta", "pairs", "disagreement %")
    head += tuple(f"{outcome}, {way} %" for outcome in ("passes", "fails") for way in ways)
    judged = tuple(
        (
            *(points(x.delta), count(x.n_pairs), percent(x.disagreement)),
            *map(percent, (x.passes_whole, x.passes_full, x.passes_looks, x.passes_strata)),
            *map(percent, (x.fails_whole, x.fails_full, x.fails_looks, x.fails_strata)),
            *(count(x.n_looks), count(x.n_strata)),
        )
        for x in lines
    )
    explained = (
        "Variance of an item's change, and what is left of it within the items that the base passed and failed; the "
        "last column is how many times fewer items then do, of a task so large that what is drawn is a small part. "
        "Where a large part is drawn less is saved: which items the whole task holds stays uncertain."
    )
    of_score = tuple(
        (e.benchmark, count(e.n_pairs), f"{e.whole:.3f}", f"{e.within:.3f}", f"{e.saved:.2f}")
        for e in covariate
    )
    closest = (
        "Share of multiple-choice items of the quickstart's general suite whose score a fine-tune changed, by quarters "
        "of the base's margin, the closest calls first:"
    )
    by_margin = tuple(
        (s.candidate, count(s.n_items), *map(percent, s.rates), f"{s.saved:.2f}") for s in strata
    )
    fewer = "times fewer at equal variance"
    return [
        Table(about, (*head, "items by looks", "items by answers"), judged),
        Table(explained, ("benchmark", "pairs", "variance", "within the base's score", fewer), of_score),
        *([Table(closest, ("candidate", "items", "1st quarter %", "2nd %", "3rd %", "4th %", fewer), by_margin)] if strata else []),
    ]  # fmt: skip


@pytest.mark.bench
def test_items_for_a_verdict_are_counted_and_written():
    runs = Path(os.environ.get("HARNESS_BENCH_RUNS", ROOT / "runs"))
    lines, strata = study(), strata_of(runs) if runs.is_dir() else []
    covariate = measure_explained()
    page = rows(lines, strata, covariate), probe(), bench_page.stem("fewer_items")
    bench_page.write("Fewer items for a verdict", *page, tables(lines, strata, covariate))
    equal = next(x for x in lines if x.delta == 0)
    assert equal.n_looks < equal.n_full
