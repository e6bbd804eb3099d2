"""Results of the claims as they are kept between calls: one JSON file, written whole after each claim."""

import json
from dataclasses import dataclass
from pathlib import Path

from tests.studies.claims.claim import Figures, Measured, Verdict


@dataclass(frozen=True, slots=True)
class Kept:
    """Result of one claim: what was measured, in how many seconds, on what and when."""

    shown: str
    verdict: Verdict
    figures: Figures
    note: str
    seconds: float
    machine: str
    date: str


def read(path: Path) -> dict[str, Kept]:
    """Read the results by the names of their claims; none where there is no file."""
    if not path.exists():
        return {}
    return {name: Kept(**kept) for name, kept in json.loads(path.read_text("utf-8")).items()}


def write(path: Path, found: dict[str, Kept]) -> None:
    """Write all results, so that the file appears whole or as it was."""
    part = path.with_name(f"{path.name}.part")
    plain = {name: {field: getattr(kept, field) for field in Kept.__slots__} for name, kept in found.items()}
    part.write_text(json.dumps(plain, indent=1, ensure_ascii=False, sort_keys=True) + "\n", "utf-8")
    part.replace(path)


def keep(measured: Measured, seconds: float, machine: str, date: str) -> Kept:
    """Return what was measured with where, when and how long."""
    return Kept(**measured._asdict(), seconds=round(seconds, 1), machine=machine, date=date)
