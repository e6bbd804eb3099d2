"""Results of the claims as they are kept between calls: one JSON file, written whole after each claim."""

import json
from dataclasses import dataclass
from pathlib import Path

from reports.studies.claims.claim import ClaimResult, Figures, Verdict


@dataclass(frozen=True, slots=True)
class StoredResult:
    """Result of one claim: what was measured, in how many seconds, on what and when."""

    shown: str
    verdict: Verdict
    figures: Figures
    note: str
    seconds: float
    machine: str
    date: str


def read(path: Path) -> dict[str, StoredResult]:
    """Read the results by the names of their claims; none where there is no file."""
    if not path.exists():
        return {}
    return {name: StoredResult(**kept) for name, kept in json.loads(path.read_text("utf-8")).items()}


def write(path: Path, found: dict[str, StoredResult]) -> None:
    """Write all results, so that the file appears whole or as it was."""
    part = path.with_name(f"{path.name}.part")
    plain = {
        name: {field: getattr(kept, field) for field in StoredResult.__slots__}
        for name, kept in found.items()
    }
    part.write_text(json.dumps(plain, indent=1, ensure_ascii=False, sort_keys=True) + "\n", "utf-8")
    part.replace(path)


def keep(measured: ClaimResult, seconds: float, machine: str, date: str) -> StoredResult:
    """Return what was measured with where, when and how long."""
    return StoredResult(**measured._asdict(), seconds=round(seconds, 1), machine=machine, date=date)
