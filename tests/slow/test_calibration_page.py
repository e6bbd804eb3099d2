"""A small version of the calibration page: claims that once failed, and one claim of every estimator."""

import pytest

from tests.calibration.cell import holds, run
from tests.calibration.design import CELLS
from tests.calibration.page import format_claim, format_figure

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("cell", [c for c in CELLS if c.in_tests], ids=lambda cell: cell.name)
def test_what_is_claimed_is_what_simulation_gives(cell):
    figures = run(cell, cell.in_tests)
    wrong = [
        f"{claim.says}: {format_figure(claim, figures[name])} %, claimed {format_claim(claim)} %"
        for name, claim in cell.claims.items()
        if not holds(claim, figures[name])
    ]
    assert wrong == []
