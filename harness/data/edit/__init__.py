"""Edits of rows: clean, dedup, split, mix and sample, each from rows to rows and what became of each.

Invariant: what is written and what is dropped are together all that was read; a row may be changed, with the
reason, but none is invented. The same rows, parameters and seed give the same bytes.
"""

from harness.data.edit.change import Change, Outcome
from harness.data.edit.save import Edit, Saved, refuse_output, save, save_split

__all__ = ["Change", "Edit", "Outcome", "Saved", "refuse_output", "save", "save_split"]
