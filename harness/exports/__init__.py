"""Exports of a run's weights to other programs, a file a format; each a folder with its record, or none.

Invariant: a format's file writes into a new folder that is renamed when it is whole. What was exported is
found by its run in `runs/exports/<run_id>/<format>-<quantization>/`.
"""

from harness.exports._plan import (
    PRECISIONS,
    Bits,
    ExportJob,
    ExportPlan,
    Format,
    Written,
    export_run,
    plan_export,
    write_whole,
)
from harness.exports._serving import Address, Readiness, ServingPlan, plan_serving, start, wait
from harness.store import ExportedFile, exports_of, main_file, read_export, verify_export
