"""Exports of a run's weights to other programs, a file a format; each a folder with its record, or none.

Invariant: a format's file writes into a new folder that is renamed when it is whole. What was exported is
found by its run in `runs/exports/<run_id>/<format>-<quantization>/`.
"""

from harness.exports._plan import (
    PRECISIONS,
    Bits,
    Exported,
    ExportJob,
    ExportPlan,
    Format,
    Written,
    export_run,
    limits_of,
    plan_export,
    write_whole,
)
from harness.exports._record import (
    RECORD,
    Export,
    ExportedFile,
    exports_of,
    main_file,
    read_export,
    verify_export,
)

__all__ = [
    "PRECISIONS",
    "RECORD",
    "Bits",
    "Export",
    "ExportJob",
    "ExportPlan",
    "Exported",
    "ExportedFile",
    "Format",
    "Written",
    "export_run",
    "exports_of",
    "limits_of",
    "main_file",
    "plan_export",
    "read_export",
    "verify_export",
    "write_whole",
]
