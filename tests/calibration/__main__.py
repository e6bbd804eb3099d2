"""`python -m tests.calibration [DRAWS]`: simulate every cell and write `reports/calibration.md`.

After a change of a cell's code its first draws are repeated, and the rest only if their outcomes change.
`--only TEXT` simulates the cells whose names contain a text; with 0 draws the page is written from stored
figures, and says which cells' code has changed since.
"""

import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping

from tests.calibration.cell import DRAWS
from tests.calibration.design import CELLS
from tests.calibration.page import list_failing_claims, page
from tests.calibration.study import KEPT, PROCESSES, CellFigures, is_stale, read, study


def main(n_draws: int, only: str, processes: int) -> int:
    """Simulate cells without current figures, write the page, name what is wrong; return 1 if anything is."""
    cells = [c for c in CELLS if only in c.name]
    figures = study(n_draws, cells, processes=processes) if n_draws else read()
    KEPT.with_suffix(".md").write_text(page(CELLS, figures), "utf-8")
    wrong = [*_list_missing_cells(figures), *list_failing_claims(CELLS, figures)]
    sys.stdout.write(("\n".join(wrong) or "every claim holds") + "\n")
    return bool(wrong)


def _list_missing_cells(figures: Mapping[str, CellFigures]) -> Iterator[str]:
    """Name the cells whose simulation is missing, stale or too short."""
    for name, simulated in ((c.name, figures.get(c.name)) for c in CELLS):
        if simulated is None:
            yield f"{name}: not simulated"
        elif is_stale(simulated):
            yield f"{name}: code that it runs has changed, and its first draws were not drawn again"
        elif simulated.n_draws < DRAWS:
            yield f"{name}: {simulated.n_draws:,} draws of {DRAWS:,}"


if __name__ == "__main__":
    parser = ArgumentParser(prog="python -m tests.calibration")
    parser.add_argument("draws", nargs="?", type=int, default=DRAWS, help="draws of a cell; 0 simulates none")
    parser.add_argument("--only", default="", help="simulate the cells whose names hold this text")
    parser.add_argument("--processes", type=int, default=PROCESSES)
    options = parser.parse_args()
    sys.exit(main(options.draws, options.only, options.processes))
