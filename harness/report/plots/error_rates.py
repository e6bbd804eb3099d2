"""Error rates of the gate as bars: losses it could miss, equal models it would hold back.

Invariant: the words and the chances are those that the other forms of the report print.
"""

from harness import formatting
from harness.gating import MissRate, Verdict
from harness.report.plots.svg import group, picture, rect, text
from harness.report.wording import miss_what

_WIDTH, _ROW, _LEFT, _LONG = 860.0, 24.0, 470.0, 320.0


def chances(label: str, verdict: Verdict) -> str:
    """Draw the operating characteristic; empty where the gate has none."""
    if not verdict.missed:
        return ""
    rows = [_row(m, _ROW * i) for i, m in enumerate(verdict.missed)]
    return picture(_WIDTH, _ROW * len(rows) + 4, f"How often the gate on {label} would err", rows)


def _row(m: MissRate, top: float) -> str:
    what, how_often = miss_what(m), formatting.chance(m.probability)
    long = _LONG * m.probability
    return group(
        f"{what}: {how_often}",
        text(0, top + 16, what),
        rect(_LEFT, top + 5, _LONG, 14, "track"),
        rect(_LEFT, top + 5, long, 14, "equal-bar" if m.what == "equal" else "miss-bar"),
        text(_LEFT + _LONG + 12, top + 16, how_often, "strong"),
    )
