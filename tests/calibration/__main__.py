"""`python -m tests.calibration [DRAWS]`: simulate every cell and write `reports/calibration.md`.

Where code of a cell has changed, its first draws are drawn again; the whole only where they come out in another way.
`--only TEXT` simulates the cells whose names hold a text, and 0 draws none: the page is then written from what is
kept, and says of which cells the code has changed since.
"""

import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping

from tests.calibration.cell import DRAWS
from tests.calibration.design import CELLS
from tests.calibration.page import list_failing_claims, page
from tests.calibration.study import KEPT, PROCESSES, CellFigures, is_stale, read, study


def main(n_draws: int, only: str, processes: int) -> int:
    """Simulate what is not kept as it would be now, write the page, name what is wrong; 1 where anything is."""
    wanted = [c for c in CELLS if only in c.name]
    found = study(n_draws, wanted, processes=processes) if n_draws else read()
    KEPT.with_suffix(".md").write_text(page(CELLS, found), "utf-8")
    wrong = [*_list_missing_cells(found), *list_failing_claims(CELLS, found)]
    sys.stdout.write(("\n".join(wrong) or "every claim holds") + "\n")
    return bool(wrong)


def _list_missing_cells(found: Mapping[str, CellFigures]) -> Iterator[str]:
    """Name the cells that are not simulated as the page promises."""
    for name, one in ((c.name, found.get(c.name)) for c in CELLS):
        if one is None:
            yield f"{name}: not simulated"
        elif is_stale(one):
            yield f"{name}: code that it runs has changed, and its first draws were not drawn again"
        elif one.n_draws < DRAWS:
            yield f"{name}: {one.n_draws:,} draws of {DRAWS:,}"


if __name__ == "__main__":
    parser = ArgumentParser(prog="python -m tests.calibration")
    parser.add_argument("draws", nargs="?", type=int, default=DRAWS, help="draws of a cell; 0 simulates none")
    parser.add_argument("--only", default="", help="simulate the cells whose names hold this text")
    parser.add_argument("--processes", type=int, default=PROCESSES)
    given = parser.parse_args()
    sys.exit(main(given.draws, given.only, given.processes))
