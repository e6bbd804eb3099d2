"""The simulation of all cells in processes, kept cell by cell, so that a second call goes on.

Invariant: a kept figure is used again only where it has the draws and all code that its cell may run is the same
(`tests/calibration/closure.py`), or the first draws have the same outcomes by the code as it is now; a cell's draws
depend on its name alone, never on what ran before.
"""

import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from harness.formatting import seconds
from tests.calibration.cell import DRAWS, Cell, Figure, outcomes, run
from tests.calibration.closure import closure, digest_of, elements
from tests.calibration.design import BY_NAME, CELLS, FILES
from tests.calibration.sources import Definition, Sources

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "reports" / "calibration.json"
PROCESSES = 2
FIRST = 40  # draws whose outcomes are kept, and drawn again where code has changed


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


def closures(sources: Sources) -> dict[str, frozenset[Definition]]:
    """Map each cell to the code of ours that it may run: what makes it, and what runs it."""
    runs = sources.definition("tests.calibration.cell", "run")
    return {
        cell.name: closure(sources, [made, runs])
        for file in FILES
        for cell, made in zip(file.CELLS, elements(sources, file.__name__, "CELLS"), strict=True)
    }


@cache
def code_digests(root: Path = ROOT) -> dict[str, str]:
    """Map each cell to the digest of the code that it may run, in a checkout that has the same design."""
    sources = Sources(root)
    return {name: digest_of(sources, found) for name, found in closures(sources).items()}


def is_stale(name: str, one: CellFigures) -> bool:
    """Tell whether code that a cell may run has changed since it was simulated, or last repeated."""
    return code_digests().get(name) not in {one.code, one.repeated}


def is_repeated(name: str, one: CellFigures) -> bool:
    """Tell whether code has changed since a cell was simulated, and gave the outcomes of its first draws again."""
    return one.code != code_digests().get(name) == one.repeated


def simulate(name: str, n_draws: int, kept: CellFigures | None) -> CellFigures:
    """Run the cell of a name; where enough draws are kept and the first come out as they did, these alone."""
    start, code, cell = time.process_time(), code_digests()[name], BY_NAME[name]
    first = draw_first_outcomes(cell, n_draws)
    if kept and kept.n_draws >= n_draws and kept.first == first:
        return kept._replace(repeated=code)
    return CellFigures(run(cell, n_draws), n_draws, time.process_time() - start, code, first)


def draw_first_outcomes(cell: Cell, n_draws: int) -> dict[str, str]:
    """Write the outcomes of a cell's first draws, in six digits: in the last bits two machines differ."""
    drawn = outcomes(cell, min(FIRST, n_draws))
    return {claim: " ".join(f"{value:.6g}" for value in values) for claim, values in drawn.items()}


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
            rest = (
                estimate_left_s(known, left, found, n_draws, (time.perf_counter() - start) * processes, done)
                / processes
            )
            how = "the first draws repeat" if found[name].repeated else seconds(found[name].seconds)
            said = f"{done}/{len(left)} {name}: {how}; at most some {seconds(rest)} left"
            sys.stderr.write(said + "\n")
    return found


def _is_current(found: Mapping[str, CellFigures], name: str, n_draws: int) -> bool:
    one = found.get(name)
    return one is not None and one.n_draws >= n_draws and not is_stale(name, one)


def estimate_left_s(
    known: Mapping[str, float],
    names: Iterable[str],
    found: Mapping[str, CellFigures],
    n_draws: int,
    spent_s: float,
    done: int,
) -> float:
    """Estimate the seconds of a processor that are left: by what each cell took the last time, else by the mean."""
    waiting = [name for name in names if not _is_current(found, name, n_draws)]
    mean = spent_s / done / n_draws
    return sum(known.get(name, mean) for name in waiting) * n_draws
