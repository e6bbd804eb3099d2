"""The simulation of all cells in two processes, kept cell by cell, so that a second call goes on.

Invariant: a kept figure is used again only where draws, the simulation and the code that prints the number
are the same; a cell's draws depend on its name alone, never on what ran before.
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
from harness.records import digest
from harness.spec import DecidePolicy, GatePolicy, NightlyPolicy
from tests.calibration.cell import DRAWS, Cell, Figure, run
from tests.calibration.design import BY_NAME, CELLS, FILE_OF
from tests.pins import pin_of

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "reports" / "calibration.json"
PROCESSES = 2
# Modules of harness/ whose code may move any figure, and those of the figures of one file of cells alone.
_PRINTING = ("stats/*.py", "comparison/*.py", "gating/**/*.py", "decision/*.py")
_PRINTING_OF = {
    "nights.py": ("nightly/[ae]*.py", "evaluation/control_arm.py"),
    "gates.py": ("evaluation/control_arm.py",),
    "chosen.py": ("evaluation/rows/sampling.py", "experiment/fewer_items.py"),
}
_SIMULATION = ("cell.py", "draws.py")


class Found(NamedTuple):
    """Figures of one cell by the name of the claim, and the seconds of a processor that they took."""

    figures: Mapping[str, Figure]
    n_draws: int
    seconds: float
    code: str


@cache
def code_digest(file: str) -> str:
    """Return the digest of what may move the figures of a file of cells.

    That is the code that prints them, the policies' defaults and the simulation; docstrings and comments
    change nothing.
    """
    globs = _PRINTING + _PRINTING_OF.get(file, ())
    files = {found for where in globs for found in (ROOT / "harness").glob(where)}
    files |= {Path(__file__).parent / name for name in (*_SIMULATION, file)}
    policies = [policy().model_dump(mode="json") for policy in (GatePolicy, DecidePolicy, NightlyPolicy)]
    return digest([pin_of(sorted(files)), policies])


def simulate(name: str, n_draws: int) -> tuple[dict[str, Figure], float]:
    """Run the cell of a name; returns its figures and the seconds of a processor that it took."""
    start = time.process_time()
    return run(BY_NAME[name], n_draws), time.process_time() - start


def read(path: Path = KEPT) -> dict[str, Found]:
    """Read what is kept; nothing where there is no file."""
    if not path.exists():
        return {}
    raw: dict[str, Any] = json.loads(path.read_text("utf-8"))["cells"]
    return {
        name: Found(
            {k: Figure(*v) for k, v in one["figures"].items()}, one["n_draws"], one["seconds"], one["code"]
        )
        for name, one in raw.items()
    }


def write(found: Mapping[str, Found], path: Path = KEPT) -> None:
    """Write figures, in the order of the design; cells that the design does not have are dropped."""
    cells = {c.name: found[c.name]._asdict() for c in CELLS if c.name in found}
    whole = json.dumps({"cells": cells}, indent=1, ensure_ascii=False) + "\n"
    beside = path.with_suffix(".part")
    beside.write_text(whole, "utf-8")
    beside.replace(path)


def study(n_draws: int = DRAWS, cells: Sequence[Cell] = CELLS, path: Path = KEPT) -> dict[str, Found]:
    """Simulate every cell that is not kept as it would be now, the longest first; returns all of them.

    A cell that raises is named on stderr and left out, so that it costs no other its figures.
    """
    found = read(path)
    known = {name: one.seconds / one.n_draws for name, one in found.items()}
    left = [c.name for c in cells if not _is_current(found, c.name, n_draws)]
    left.sort(key=lambda name: -known.get(name, float("inf")))
    start = time.perf_counter()
    with ProcessPoolExecutor(PROCESSES) as pool:
        asked = {pool.submit(simulate, name, n_draws): name for name in left}
        for done, future in enumerate(as_completed(asked), start=1):
            name = asked[future]
            if error := future.exception():
                sys.stderr.write(f"{name} was not simulated: {type(error).__name__}: {error}\n")
                found.pop(name, None)
                continue
            figures, took = future.result()
            found[name] = Found(figures, n_draws, took, code_digest(FILE_OF[name]))
            write(found, path)
            rest = left_s(known, left, found, n_draws, time.perf_counter() - start, done)
            said = f"{done}/{len(left)} {name}: {seconds(took)}; some {seconds(rest)} left"
            sys.stderr.write(said + "\n")
    return found


def _is_current(found: Mapping[str, Found], name: str, n_draws: int) -> bool:
    one = found.get(name)
    return one is not None and one.n_draws >= n_draws and one.code == code_digest(FILE_OF[name])


def left_s(
    known: Mapping[str, float],
    names: Iterable[str],
    found: Mapping[str, Found],
    n_draws: int,
    spent_s: float,
    done: int,
) -> float:
    """Estimate the seconds left: by what each cell took the last time, else by the mean of those done."""
    waiting = [name for name in names if not _is_current(found, name, n_draws)]
    mean = spent_s * PROCESSES / done / n_draws
    return sum(known.get(name, mean) for name in waiting) * n_draws / PROCESSES
