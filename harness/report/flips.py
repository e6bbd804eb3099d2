"""Flips of a report: some of the items that a fine-tune lost and gained, with both answers.

Invariant: they are spread over all that flipped, and a text is cut where it is too long to read.
"""

from collections.abc import Mapping, Sequence

from harness import formatting
from harness.comparison import Comparison
from harness.records import SampleResult
from harness.report.experiment_report import Flip

_LOST_SHOWN, _GAINED_SHOWN = 5, 3  # of each task
_REFERENCES_SHOWN = 3
_LONGEST = 1_500  # characters of one text


def flips_of(
    c: Comparison, base: Sequence[SampleResult], new: Sequence[SampleResult], against: str
) -> list[Flip]:
    """Show some of the items of a comparison, lost ones first, spread evenly over their ids."""
    before, after = ({row.example_id: row for row in rows} for rows in (base, new))
    lost = [_flip(i, before, after, against, lost=True) for i in spread(c.lost, _LOST_SHOWN)]
    return lost + [_flip(i, before, after, against, lost=False) for i in spread(c.gained, _GAINED_SHOWN)]


def spread(ids: Sequence[str], n: int) -> list[str]:
    """Draw at most n ids at even distances: neighbours often ask the same thing."""
    return [ids[i * len(ids) // n] for i in range(n)] if len(ids) > n else list(ids)


def _flip(
    item: str,
    before: Mapping[str, SampleResult],
    after: Mapping[str, SampleResult],
    against: str,
    *,
    lost: bool,
) -> Flip:
    old, new = before[item], after[item]
    return Flip(
        new.task,
        item,
        lost,
        excerpt(new.prompt),
        tuple(map(excerpt, new.references[:_REFERENCES_SHOWN])),
        excerpt(old.text),
        excerpt(new.text),
        old.status,
        new.status,
        against,
    )


def excerpt(text: str) -> str:
    """Cut a text that nobody would read to its end; what is no Unicode becomes a question mark."""
    whole = text[:_LONGEST].encode("utf-8", "replace").decode("utf-8")
    return whole if len(text) <= _LONGEST else f"{whole} … (cut: {formatting.count(len(text))} characters)"
