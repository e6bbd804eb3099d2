"""The simulation of all cells in processes, stored per cell, so that a second call resumes it.

Invariant: a stored figure is used again only if it has enough draws and the code is unchanged, or its first
draws have the same outcomes with the current code (all cells: some two minutes of a processor); a cell's
draws depend only on its name, not on earlier cells.
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from harness.formatting import seconds
from tests.calibration.cell import DRAWS, Cell, Figure, outcomes, run
from tests.calibration.design import BY_NAME, CELLS
from tests.pins import pin_of

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "reports" / "calibration.json"
PROCESSES = 2
FIRST = 40  # number of draws whose outcomes are stored, and compared after a change of code
# Code that cells run, without plugins; a test traces it.
CODE = (
    *(f"harness/{package}/**/*.py" for package in ("analysis", "records", "spec", "stats")),
    "harness/config/__init__.py", "harness/evaluation/sampling.py", "harness/experiment/interim_analyses.py",
    "harness/formatting.py", "harness/lifecycle/nightly_*.py", "harness/metrics/__init__.py", "harness/plugins.py",
    "tests/calibration/*.py", "tests/fake_rows.py",
)  # fmt: skip


class CellFigures(NamedTuple):
    """Figures of one cell by the name of the claim, and the processor time in seconds.

    `code` is the digest of the simulating code, `first` are the outcomes of the first draws, and `repeated`
    is the digest of the code that last reproduced them.
    """

    figures: Mapping[str, Figure]
    n_draws: int
    seconds: float
    code: str
    first: Mapping[str, str] = {}
    repeated: str = ""


def code_files() -> list[Path]:
    """List the files that cells run, and those that make and count the draws."""
    return sorted({file for pattern in CODE for file in ROOT.glob(pattern)})


@cache
def code_digest() -> str:
    """Digest the code that cells run, without docstrings and comments."""
    return pin_of(code_files())


def is_stale(figures: CellFigures) -> bool:
    """Tell whether the code has changed since a cell was simulated or last repeated."""
    return code_digest() not in {figures.code, figures.repeated}


def is_repeated(figures: CellFigures) -> bool:
    """Tell whether the code has changed since a cell was simulated, but reproduced its first draws."""
    return figures.code != code_digest() == figures.repeated


def simulate(name: str, n_draws: int, stored: CellFigures | None) -> CellFigures:
    """Simulate a cell; if enough draws are stored and the first ones repeat, return the stored figures."""
    start, code, cell = time.process_time(), code_digest(), BY_NAME[name]
    first_outcomes = outcomes(cell, min(FIRST, n_draws))
    # In six digits, because the last bits differ between machines.
    first = {claim: " ".join(f"{value:.6g}" for value in values) for claim, values in first_outcomes.items()}
    if stored and stored.n_draws >= n_draws and stored.first == first:
        return stored._replace(repeated=code)
    return CellFigures(run(cell, n_draws), n_draws, time.process_time() - start, code, first)


def read(path: Path = KEPT) -> dict[str, CellFigures]:
    """Read the stored figures; empty without a file."""
    if not path.exists():
        return {}
    raw: dict[str, Any] = json.loads(path.read_text("utf-8"))["cells"]
    return {
        name: CellFigures(**{**fields, "figures": {k: Figure(*v) for k, v in fields["figures"].items()}})
        for name, fields in raw.items()
    }


def write(figures: Mapping[str, CellFigures], path: Path = KEPT) -> None:
    """Write figures, in the order of the design; cells outside the design are dropped."""
    cells = {c.name: figures[c.name]._asdict() for c in CELLS if c.name in figures}
    whole = json.dumps({"cells": cells}, indent=1, ensure_ascii=False) + "\n"
    beside = path.with_suffix(".part")
    beside.write_text(whole, "utf-8")
    beside.replace(path)


def study(
    n_draws: int = DRAWS, cells: Sequence[Cell] = CELLS, path: Path = KEPT, processes: int = PROCESSES
) -> dict[str, CellFigures]:
    """Simulate every cell without current figures, the longest first; return all figures.

    After a change of code only cells whose first draws change are simulated. Cells that fail go to stderr.
    """
    figures = read(path)
    draw_s = {name: f.seconds / f.n_draws for name, f in figures.items()}
    missing = [c.name for c in cells if not _is_current(figures, c.name, n_draws)]
    missing.sort(key=lambda name: -draw_s.get(name, float("inf")))
    start = time.perf_counter()
    with ProcessPoolExecutor(processes) as pool:
        futures = {pool.submit(simulate, name, n_draws, figures.get(name)): name for name in missing}
        for n_done, future in enumerate(as_completed(futures), start=1):
            name = futures[future]
            if error := future.exception():
                sys.stderr.write(f"{name} was not simulated: {type(error).__name__}: {error}\n")
                figures.pop(name, None)
                continue
            figures[name] = future.result()
            write(figures, path)
            # Estimate by each cell's last time, else by the mean of the finished cells.
            mean = (time.perf_counter() - start) * processes / n_done / n_draws
            waiting = [name for name in missing if not _is_current(figures, name, n_draws)]
            rest = sum(draw_s.get(name, mean) for name in waiting) * n_draws / processes
            how = "the first draws repeat" if figures[name].repeated else seconds(figures[name].seconds)
            line = f"{n_done}/{len(missing)} {name}: {how}; at most some {seconds(rest)} left"
            sys.stderr.write(line + "\n")
    return figures


def _is_current(figures: Mapping[str, CellFigures], name: str, n_draws: int) -> bool:
    stored = figures.get(name)
    return stored is not None and stored.n_draws >= n_draws and not is_stale(stored)
