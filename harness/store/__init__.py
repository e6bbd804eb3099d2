"""Store of rows and runs: folders, and a DuckDB index over them; all SQL of the project.

Invariant: the folders are the truth and the index can be rebuilt from them. A file with its final name is
complete; a write to a full disk raises HarnessError and leaves the old file as it was. Rows are found by
content, so everything that was computed once is reused. docs/internals.md lists the folders.
"""

# fmt: off
# isort: off
from harness.store.champions import (
    Champion, ChampionEntry, History, champions, find_first_base, hash_weights, hold_champions,
    kept_champions, read_champion, read_history, record_champion,
)
from harness.store.garbage import (
    Leftover, base_rows_use, disk_use, find_base_rows, keep_base_rows, list_unfinished,
    list_unreferenced, run_references,
)
from harness.store.index import QueryResult, query, reindex
from harness.store.layout import (
    AGAIN, CLAIMS, Store, StoredProgress, append_lines, begin, claim, clear_errors, current_activity, end,
    hold, hold_file, list_begun, read_lines, remove, write_record, write_records, write_whole,
)
from harness.store.measurements import (
    control_file, controls, feedback_key, find_grades, flip_rates, keep_anchors, keep_environment,
    keep_grades, keep_origin, keep_recheck, list_grades, list_labels, list_ratings, noise_rates, noises,
    origins, read_environment, read_feedback, read_grades, read_identities, read_measured, read_rechecks,
    save_control, save_feedback, save_labels, save_noise, save_ratings,
)
from harness.store.queries import (
    AnsweredItem, ItemFilter, MetricColumns, count_statuses, document_digests, list_differing_items,
    list_slices, read_answers, read_columns, read_samples,
)
from harness.store.parquet_files import feedback_files, read_ids
from harness.store.rows import (
    append_block, complete_rows, has_rows, identities, keep_folds, list_stored_blocks, list_variants,
    read_blocks, read_drawn, read_folds, read_identity, read_many, read_rows, remove_merged_blocks,
)
from harness.store.runs import (
    EXPORT_RECORD, Export, ExportedFile, TrialRun, all_runs, count_freed_bytes, digest_of_base, exports_of,
    find_trial, get_run, list_base_rows, list_exported_files, list_runs, list_trials, main_file, read_export,
    read_run, read_sampling, read_written_runs, remove_run, runs_on_disk, save_run, save_trial,
    split_trials, trials_by_run, verify_export, weights_folder,
)
from harness.store.sql_views import TABLES
from harness.store.verdicts import (
    DecisionRecord, RuleRecord, VerdictRecord, newest_verdict, save_decision, save_verdict,
)
# isort: on
# fmt: on
