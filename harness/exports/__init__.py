"""Exports of a run's weights to other programs, a file a format; each a folder with its record, or none.

Invariant: a format's file writes into a new folder that is renamed when it is whole. What was exported is
found by its run in `runs/exports/<run_id>/<format>-<quantization>/`.
"""

from harness.exports._plan import (
    PRECISIONS,
    RECORD,
    Bits,
    Export,
    ExportedFile,
    ExportJob,
    ExportPlan,
    Format,
    Written,
    export_run,
    exports_of,
    main_file,
    plan_export,
    read_export,
    verify_export,
    write_whole,
)
