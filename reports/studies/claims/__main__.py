"""`python -m reports.studies.claims [NAME…]`: measure each claim without a stored result, and write the page.

Each claim is measured in its own process, which is ended after an hour; the next call resumes its trainings
and answers. `--again` repeats the named claims.
"""

import argparse
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from harness.models.hardware import current_device, visible_gpus
from reports.studies.claims.catalog import CLAIMS, OPEN
from reports.studies.claims.claim import Claim
from reports.studies.claims.kept import keep, read, write
from reports.studies.claims.page import page

REPORTS = Path(__file__).parents[3] / "reports"
_MOST_S = 60 * 60


def main(arguments: list[str]) -> int:
    """Measure the selected claims that are missing; return 1 if one could not be measured."""
    options = _arguments(arguments)
    path = options.reports / "claims.json"
    chosen = [claim for claim in CLAIMS if claim.name in (options.names or _list_possible())]
    if options.one:
        _measure_here(chosen[0], path)
        return 0
    stored = {} if options.again else read(path)
    missing = [claim for claim in chosen if claim.name not in stored]
    failed = []
    for n, claim in enumerate(missing, 1):
        minutes_left = sum(c.minutes for c in missing[n - 1 :])
        sys.stderr.write(f"{n} of {len(missing)}: {claim.name}; about {minutes_left:.0f} minutes left\n")
        failed += [] if _measure(claim, options.reports) else [claim.name]
        (options.reports / "claims.md").write_text(page(CLAIMS, OPEN, read(path)), "utf-8")
    sys.stdout.write(page(CLAIMS, OPEN, read(path)))
    for name in failed:
        sys.stderr.write(f"{name} was not measured; the same command tries again\n")
    return bool(failed)


def _list_possible() -> list[str]:
    """Return the claims that this machine can measure."""
    has_gpu = bool(visible_gpus())
    return [claim.name for claim in CLAIMS if has_gpu or not claim.needs]


def _arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make claims", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[[], *(claim.name for claim in CLAIMS)])
    parser.add_argument("--again", action="store_true", help="measure what is kept anew")
    parser.add_argument("--reports", type=Path, default=REPORTS)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def _measure(claim: Claim, reports: Path) -> bool:
    """Measure a claim in its own process; tell whether it succeeded in time."""
    command = [sys.executable, "-m", "reports.studies.claims", claim.name, "--one", "--reports", str(reports)]
    try:
        return subprocess.run(command, check=False, timeout=_MOST_S).returncode == 0
    except subprocess.TimeoutExpired:
        sys.stderr.write(f"{claim.name} took more than {_MOST_S // 60} minutes and was ended\n")
        return False


def _measure_here(claim: Claim, path: Path) -> None:
    start = time.perf_counter()
    measured = claim.measure()
    today = datetime.now(UTC).date().isoformat()
    device = "cuda" if claim.needs and visible_gpus() else "cpu"
    result = keep(measured, time.perf_counter() - start, current_device(device), today)
    write(path, read(path) | {claim.name: result})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
