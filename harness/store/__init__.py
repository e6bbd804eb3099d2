"""Where rows and runs lie: folders, and a DuckDB index over them; all SQL of the project.

Invariant: the folders are the truth and the index can be rebuilt from them. A file with its
final name is whole. Rows are found by content, so whatever was computed once is found again.

    runs/rows/<digest>/identity.json           what the rows depend on
    runs/rows/<digest>/blocks/00000.jsonl, …   finished blocks, until the set is complete
    runs/rows/<digest>/rows.parquet            the complete set, positions 0, 1, 2, …
    runs/weights/<fit key>/                    weights made by methods
    runs/<run_id>/run.json                     a run, which names its row sets
    runs/harness.duckdb                        the index
    runs/.unfinished/                          files that are being written
"""

from harness.records import BLOCK
from harness.store.disk import DiskUse, disk_use
from harness.store.folders import Store, working, write_whole
from harness.store.rows import (
    append_block,
    complete_rows,
    finished_blocks,
    has_rows,
    identities,
    read_blocks,
    read_identity,
    read_rows,
)
from harness.store.runs import Counts, get_run, list_runs, reindex, remove_run, save_run, written_run

__all__ = [
    "BLOCK",
    "Counts",
    "DiskUse",
    "Store",
    "append_block",
    "complete_rows",
    "disk_use",
    "finished_blocks",
    "get_run",
    "has_rows",
    "identities",
    "list_runs",
    "read_blocks",
    "read_identity",
    "read_rows",
    "reindex",
    "remove_run",
    "save_run",
    "working",
    "write_whole",
    "written_run",
]
