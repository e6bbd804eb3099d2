"""Exports of a run's weights for other programs, one file per format.

Invariant: an export is a complete folder with its record, or nothing: a format writes into a new folder that
is renamed at the end, to `runs/exports/<run_id>/<format>-<quantization>/`.
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
from harness.exports._serving import Address, plan_serving, start, wait
from harness.store import ExportedFile, exports_of, main_file, read_export, verify_export
