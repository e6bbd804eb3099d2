"""Lengths of answers: quantiles over all rows and by source, and sources that answer at another length.

Invariant: a length is in characters, which every script has; labels have none worth knowing. An alarm needs a
source that differs both surely and much: its median is `_FACTOR` times that of the other sources or more (or
the part of it), and of two answers, one of each, its own is the longer one (or the shorter) with a chance of
`_CHANCE` or more.

False alarms: the lengths of each source are held against those of the others by the Mann-Whitney test, at
`ALPHA` over all sources by Bonferroni, so sources whose lengths are drawn alike raise an alarm in fewer than
1 file in 1,000. Of 10,000 draws of 60 to 2,996 answers of Dolly into 2 to 8 sources the test alone would name
11, and with the size none. Sources that are asked for answers of another length, as Dolly's categories are,
raise one too.
Source: Mann & Whitney 1947; the chance is their U by the number of pairs.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from harness.data.check import ALPHA, CheckContext, Finding
from harness.data.check._table import RowTable, TableEntry
from harness.data.check.personal_data import excerpt
from harness.formatting import count

_FACTOR, _CHANCE = 2.0, 0.7
_FEWEST = 10  # answers of a source that is tested
_MOST_SOURCES, _SHOWN = 50, 8
_QUANTILES = (0.05, 0.5, 0.95)


class _LengthDifference(NamedTuple):
    """Difference of a source from the others: p, the chance of a longer answer, and both medians."""

    p: float
    chance: float
    own: int
    others: int


def check(table: RowTable, given: CheckContext) -> Iterator[Finding]:
    """Give the quantiles of the answers' lengths, and list the sources that differ much from the others."""
    answered = [entry for entry in table.entries if entry.answer.strip()]
    if not answered or table.labels or not any(entry.question for entry in answered):
        return
    sources = [name for name, _ in Counter(entry.source for entry in answered).most_common(_MOST_SOURCES)]
    yield _quantiles(answered, sources)
    if len(sources) > 1:
        yield from _test_sources(answered, sources)


def _length(entry: TableEntry) -> int:
    return len(entry.answer.strip())


def _quantiles(answered: Sequence[TableEntry], sources: Sequence[str]) -> Finding:
    """Give the quantiles over all answers, and those of each source where there are several."""
    of: dict[str, list[int]] = defaultdict(list)
    for entry in answered:
        of[entry.source].append(_length(entry))
    shown = [f"{name!r} {_spread(of[name])} ({count(len(of[name]))})" for name in sources[:_SHOWN]]
    more = [f"{len(of) - _SHOWN:,} more"] if len(of) > _SHOWN else []
    return Finding(
        "note",
        f"characters an answer: {_spread(list(map(_length, answered)))}"
        + (f"; by source {', '.join([*shown, *more])}" if len(of) > 1 else ""),
        "median, and the quantiles of 5 and 95 % behind it; a model learns how long its answers are",
    )


def _spread(lengths: Sequence[int]) -> str:
    ordered = sorted(lengths)
    low, median, high = (ordered[round(q * (len(ordered) - 1))] for q in _QUANTILES)
    return f"median {median:,}, {low:,} to {high:,}"


def _test_sources(answered: Sequence[TableEntry], sources: Sequence[str]) -> Iterator[Finding]:
    """List each source whose answers are surely and much longer, or shorter, than those of the others."""
    # Of two sources only the one of fewer rows is tested: the other one differs as much.
    tested: dict[str, _LengthDifference] = {}
    for source in sources[1:] if len(sources) == 2 else sources:
        own, others = ([_length(e) for e in answered if (e.source == source) == of] for of in (True, False))
        if min(len(own), len(others)) >= _FEWEST:
            tested[source] = _difference(own, others)
    for source, found in tested.items():
        if found.p < ALPHA / len(tested) and _is_large(found):
            rows = [entry for entry in answered if entry.source == source]
            yield Finding(
                "warning",
                f"answers of {source!r} are {'longer' if found.chance > 0.5 else 'shorter'}: median "
                f"{found.own:,} characters, of other sources {found.others:,}",
                "a mixed template: by what a question looks like the model learns how long to answer",
                len(answered),
                tuple(entry.where for entry in rows),
                f"{rows[0].where}: {excerpt(rows[0].answer.strip(), 60)!r}",
                "write all answers at one length, or train on one source alone",
            )


def _difference(own: Sequence[int], others: Sequence[int]) -> _LengthDifference:
    import numpy as np
    from scipy import stats

    u = stats.mannwhitneyu(own, others)
    chance = float(u.statistic) / (len(own) * len(others))
    return _LengthDifference(float(u.pvalue), chance, round(np.median(own)), round(np.median(others)))


def _is_large(found: _LengthDifference) -> bool:
    chance, less, more = found.chance, found.others, found.own
    if chance < 0.5:
        chance, less, more = 1 - chance, more, less
    return chance >= _CHANCE and more >= _FACTOR * less
