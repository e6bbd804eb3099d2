"""Items that got lost or gained, with what was asked and what both sides answered.

Invariant: a text is cut to a length that can be read, and says that it was; which items are shown
depends on the ids alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness import formatting
from harness.comparison import Comparison
from harness.records import SampleResult

LOST_SHOWN, GAINED_SHOWN = 5, 3  # of each task
_REFERENCES_SHOWN = 3
_LONGEST = 1_500  # characters of one text


@dataclass(frozen=True, slots=True)
class Flip:
    """One item that the base (or `against`) and a candidate did not answer equally well.

    `base` and `new` are the two answers, `base_status` and `new_status` what became of them.
    """

    task: str
    item: str
    lost: bool
    prompt: str
    references: tuple[str, ...]
    base: str
    new: str
    base_status: str
    new_status: str
    against: str


def flips_of(
    c: Comparison, base: Sequence[SampleResult], new: Sequence[SampleResult], against: str
) -> list[Flip]:
    """Show some of the items of a comparison, lost ones first, spread evenly over their ids."""
    before, after = ({row.example_id: row for row in rows} for rows in (base, new))
    lost = [_flip(i, before, after, against, lost=True) for i in spread(c.lost, LOST_SHOWN)]
    return lost + [_flip(i, before, after, against, lost=False) for i in spread(c.gained, GAINED_SHOWN)]


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
