"""Command that compares production with what was measured: monitor.

Invariant: it loads no language model and writes nothing; what moved ends with exit code 0.
"""

from datetime import datetime
from typing import Annotated

from harness.cli.app import RELEASE, app, print_result
from harness.cli.options import ExperimentFile, Json, Option, verb


@verb(app, "harness monitor", "harness monitor --since 2026-11-01 --json", heading=RELEASE)
def monitor(
    at: ExperimentFile,
    since: Annotated[
        datetime | None,
        Option("Only requests from this date on.", formats=("%Y-%m-%d",), metavar="YYYY-MM-DD"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what moved in production since the model was measured.

    Stored feedback is compared with the test items, and its answers with the champion's.
    """
    from harness import production
    from harness.report import to_plain

    found = production.monitor(at.config, at.settings, since=f"{since:%Y-%m-%d}" if since else "")
    print_result(to_plain(found), production.drift_document(found), as_json)
