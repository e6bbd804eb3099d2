"""Edits of rows, each from rows to rows and what became of each: clean, dedup, split, mix, sample, augment.

Invariant: what is written and what is dropped are together all that was read; a row may be changed, with the
reason, and one that a model adds says so and names the row that it was made from. The same rows, parameters
and seed give the same bytes.
"""

# fmt: off
# isort: off
from harness.data.cells import cut_special, find_special
from harness.data.edit.changes import (
    Change, EditedRow, RowDecision, decisions_by_line, decisions_file, drop, keep_decision,
    open_decisions, read_decisions,
)
from harness.data.edit.clean import CleaningOptions, clean, low_quality, spellings_in
from harness.data.edit.mix import RowIds, RowMixture, draw, mix, refuse_no_rows, refuse_other_layouts, sample
from harness.data.edit.row_files import (
    OutputNames, free_folders, is_taught, n_rows_of, name_output, new_name, payments_for, row_suffix,
    take_share, total_usd,
)
from harness.data.edit.save import (
    Edit, SavedEdit, digest_of, phrase_no_rows, refuse_existing, refuse_output, save, save_split,
)
from harness.data.edit.split import SplitOptions, check_way, keep_clusters, odd_shares, split
# isort: on
# fmt: on
