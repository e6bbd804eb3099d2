"""The simulation of all cells in processes, kept cell by cell, so that a second call goes on.

Invariant: a kept figure is used again only where it has the draws and the code that cells run is the same, or the
first draws have the same outcomes by the code as it is now (all cells: some two minutes of a processor); a cell's
draws depend on its name alone, never on what ran before.
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
FIRST = 40  # draws whose outcomes are kept, and drawn again where code has changed
# What cells run, but for plugins; a test traces them.
CODE = (
    *(f"harness/{package}/**/*.py" for package in ("analysis", "records", "spec", "stats")),
    "harness/config/__init__.py", "harness/evaluation/sampling.py", "harness/experiment/fewer_items.py",
    "harness/formatting.py", "harness/lifecycle/nightly_*.py", "harness/metrics/__init__.py", "harness/plugins.py",
    "tests/calibration/*.py", "tests/fake_rows.py",
)  # fmt: skip


class CellFigures(NamedTuple):
    """Figures of one cell by the name of the claim, and the seconds of a processor that they took.

    `code` is the digest of the code that simulated them, `first` are the outcomes of the first draws, and
    `repeated` is the digest of the code that last gave these again.
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
    """Digest the code that cells run, without its docstrings and comments."""
    return pin_of(code_files())


def is_stale(one: CellFigures) -> bool:
    """Tell whether code that cells run has changed since a cell was simulated, or last repeated."""
    return code_digest() not in {one.code, one.repeated}


def is_repeated(one: CellFigures) -> bool:
    """Tell whether code has changed since a cell was simulated, and gave the outcomes of its first draws again."""
    return one.code != code_digest() == one.repeated


def simulate(name: str, n_draws: int, kept: CellFigures | None) -> CellFigures:
    """Run the cell of a name; where enough draws are kept and the first come out as they did, these alone."""
    start, code, cell = time.process_time(), code_digest(), BY_NAME[name]
    drawn = outcomes(cell, min(FIRST, n_draws))
    # In six digits: in the last bits two machines differ.
    first = {claim: " ".join(f"{value:.6g}" for value in values) for claim, values in drawn.items()}
    if kept and kept.n_draws >= n_draws and kept.first == first:
        return kept._replace(repeated=code)
    return CellFigures(run(cell, n_draws), n_draws, time.process_time() - start, code, first)


def read(path: Path = KEPT) -> dict[str, CellFigures]:
    """Read what is kept; nothing where there is no file."""
    if not path.exists():
        return {}
    raw: dict[str, Any] = json.loads(path.read_text("utf-8"))["cells"]
    return {
        name: CellFigures(**{**one, "figures": {k: Figure(*v) for k, v in one["figures"].items()}})
        for name, one in raw.items()
    }


def write(found: Mapping[str, CellFigures], path: Path = KEPT) -> None:
    """Write figures, in the order of the design; cells that the design does not have are dropped."""
    cells = {c.name: found[c.name]._asdict() for c in CELLS if c.name in found}
    whole = json.dumps({"cells": cells}, indent=1, ensure_ascii=False) + "\n"
    beside = path.with_suffix(".part")
    beside.write_text(whole, "utf-8")
    beside.replace(path)


def study(
    n_draws: int = DRAWS, cells: Sequence[Cell] = CELLS, path: Path = KEPT, processes: int = PROCESSES
) -> dict[str, CellFigures]:
    """Simulate every cell that is not kept as it would be now, the longest first; returns all of them.

    A kept one of changed code is simulated only where its first draws come out in another way. A cell that raises is named on stderr and left out, so that it costs no other its figures.
    """
    found = read(path)
    known = {name: one.seconds / one.n_draws for name, one in found.items()}
    left = [c.name for c in cells if not _is_current(found, c.name, n_draws)]
    left.sort(key=lambda name: -known.get(name, float("inf")))
    start = time.perf_counter()
    with ProcessPoolExecutor(processes) as pool:
        asked = {pool.submit(simulate, name, n_draws, found.get(name)): name for name in left}
        for done, future in enumerate(as_completed(asked), start=1):
            name = asked[future]
            if error := future.exception():
                sys.stderr.write(f"{name} was not simulated: {type(error).__name__}: {error}\n")
                found.pop(name, None)
                continue
            found[name] = future.result()
            write(found, path)
            # By what each cell took the last time, else by the mean of those that are done.
            mean = (time.perf_counter() - start) * processes / done / n_draws
            waiting = [name for name in left if not _is_current(found, name, n_draws)]
            rest = sum(known.get(name, mean) for name in waiting) * n_draws / processes
            how = "the first draws repeat" if found[name].repeated else seconds(found[name].seconds)
            said = f"{done}/{len(left)} {name}: {how}; at most some {seconds(rest)} left"
            sys.stderr.write(said + "\n")
    return found


def _is_current(found: Mapping[str, CellFigures], name: str, n_draws: int) -> bool:
    one = found.get(name)
    return one is not None and one.n_draws >= n_draws and not is_stale(one)
