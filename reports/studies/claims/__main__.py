"""`python -m reports.studies.claims [NAME…]`: measure each claim that is not kept yet, and write the page.

Each claim is measured in a process of its own, which is ended after an hour; what it has trained and
answered until then is taken up by the next call. `--again` measures the named ones anew.
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
    """Measure what is asked for and missing; 1 where a claim could not be measured."""
    given = _arguments(arguments)
    path = given.reports / "claims.json"
    asked = [claim for claim in CLAIMS if claim.name in (given.names or _list_possible())]
    if given.one:
        _measure_here(asked[0], path)
        return 0
    known = {} if given.again else read(path)
    missing = [claim for claim in asked if claim.name not in known]
    failed = []
    for n, claim in enumerate(missing, 1):
        left = sum(one.minutes for one in missing[n - 1 :])
        sys.stderr.write(f"{n} of {len(missing)}: {claim.name}; about {left:.0f} minutes left\n")
        failed += [] if _measure(claim, given.reports) else [claim.name]
        (given.reports / "claims.md").write_text(page(CLAIMS, OPEN, read(path)), "utf-8")
    sys.stdout.write(page(CLAIMS, OPEN, read(path)))
    for name in failed:
        sys.stderr.write(f"{name} was not measured; the same command tries again\n")
    return bool(failed)


def _list_possible() -> list[str]:
    """Name the claims that this machine can measure."""
    has_gpu = bool(visible_gpus())
    return [claim.name for claim in CLAIMS if has_gpu or not claim.needs]


def _arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make claims", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[[], *(one.name for one in CLAIMS)])
    parser.add_argument("--again", action="store_true", help="measure what is kept anew")
    parser.add_argument("--reports", type=Path, default=REPORTS)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def _measure(claim: Claim, reports: Path) -> bool:
    """Measure a claim in a process of its own; tell whether that ended well and in time."""
    own = [sys.executable, "-m", "reports.studies.claims", claim.name, "--one", "--reports", str(reports)]
    try:
        return subprocess.run(own, check=False, timeout=_MOST_S).returncode == 0
    except subprocess.TimeoutExpired:
        sys.stderr.write(f"{claim.name} took more than {_MOST_S // 60} minutes and was ended\n")
        return False


def _measure_here(claim: Claim, path: Path) -> None:
    start = time.perf_counter()
    measured = claim.measure()
    today = datetime.now(UTC).date().isoformat()
    device = "cuda" if claim.needs and visible_gpus() else "cpu"
    kept = keep(measured, time.perf_counter() - start, current_device(device), today)
    write(path, read(path) | {claim.name: kept})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
