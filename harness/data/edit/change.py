"""Outcome of a row: what is written of it, and what was changed or dropped, with the reason.

Invariant: every row that is read has an outcome, in the order of the file.
"""

from typing import Any, Literal, NamedTuple

from harness.data.readers import Row

Kind = Literal["dropped", "changed", "reported", "added"]
NOT_DRAWN = "not drawn"  # the reason of a row that another draw may still take


class Change(NamedTuple):
    """Change of one row, with its reasons; `of` is where the row stands that it repeats or contradicts.

    `similarity` is the Jaccard index of the two rows' shingles, in [0, 1], None where they are equal. A row
    that is `reported` is written as it was; one that is `added` was made from the row that stands at `where`.
    """

    where: str
    kind: Kind
    reasons: tuple[str, ...]
    of: str = ""
    similarity: float | None = None

    def plain(self) -> dict[str, Any]:
        """Return the plain form for a manifest, without what is not known."""
        found = {"row": self.where, "change": self.kind, "reason": self.reason}
        of = {"of": self.of} if self.of else {}
        return found | of | ({} if self.similarity is None else {"similarity": round(self.similarity, 3)})

    @property
    def reason(self) -> str:
        """The reasons on one line."""
        return "; ".join(self.reasons)

    def __str__(self) -> str:
        """Render as one line: `file:line: dropped, the reason`."""
        alike = "" if self.similarity is None else f" ({self.similarity:.2f})"
        return f"{self.where}: {self.kind}, {self.reason}{f' of {self.of}' if self.of else ''}{alike}"


class EditedRow(NamedTuple):
    """One row as it is to be written, or None where it is dropped, and the change if there is one."""

    row: Row | None
    change: Change | None = None


def drop(row: Row, reason: str, of: str = "", similarity: float | None = None) -> EditedRow:
    """Drop a row for a reason."""
    return EditedRow(None, Change(row.where, "dropped", (reason,), of, similarity))
