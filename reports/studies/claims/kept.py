"""Results of the claims between calls: one JSON file, written whole after each claim."""

import json
from dataclasses import dataclass
from pathlib import Path

from reports.studies.claims.claim import ClaimResult, Figures, Verdict


@dataclass(frozen=True, slots=True)
class StoredResult:
    """Result of one claim: the measurement, its seconds, machine and date."""

    shown: str
    verdict: Verdict
    figures: Figures
    note: str
    seconds: float
    machine: str
    date: str


def read(path: Path) -> dict[str, StoredResult]:
    """Read the results by the names of their claims; empty without a file."""
    if not path.exists():
        return {}
    return {name: StoredResult(**fields) for name, fields in json.loads(path.read_text("utf-8")).items()}


def write(path: Path, results: dict[str, StoredResult]) -> None:
    """Write all results, so that the file is replaced as a whole."""
    partial = path.with_name(f"{path.name}.part")
    plain = {
        name: {field: getattr(result, field) for field in StoredResult.__slots__}
        for name, result in results.items()
    }
    partial.write_text(json.dumps(plain, indent=1, ensure_ascii=False, sort_keys=True) + "\n", "utf-8")
    partial.replace(path)


def keep(measured: ClaimResult, seconds: float, machine: str, date: str) -> StoredResult:
    """Return a measurement with its machine, date and seconds."""
    return StoredResult(**measured._asdict(), seconds=round(seconds, 1), machine=machine, date=date)
