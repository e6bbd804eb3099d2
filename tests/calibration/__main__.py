"""`python -m tests.calibration [DRAWS]`: simulate every cell and write `reports/calibration.md`."""

import sys

from tests.calibration.cell import DRAWS
from tests.calibration.design import CELLS
from tests.calibration.page import failing, page
from tests.calibration.study import KEPT, study


def main(n_draws: int) -> int:
    """Simulate what is not kept yet, write the page, name the claims that fail; 1 where there are any."""
    found = study(n_draws)
    KEPT.with_suffix(".md").write_text(page(CELLS, found), "utf-8")
    wrong = [f"{c.name}: not simulated" for c in CELLS if c.name not in found] + failing(CELLS, found)
    sys.stdout.write(("\n".join(wrong) or "every claim holds") + "\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if sys.argv[1:] else DRAWS))
