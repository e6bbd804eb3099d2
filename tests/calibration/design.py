"""The design: all cells of every estimator whose numbers users see.

Invariant: fractional. The factors are the kind of score, the clusters, and the numbers of items, seeds, tasks
and candidates; each level is in at least one cell of every estimator that it could affect.
"""

from tests.calibration import chances, chosen, collapses, decisions, estimates, gates, nights
from tests.calibration.cell import Cell

_FILES = (estimates, gates, collapses, chances, decisions, nights, chosen)
CELLS: tuple[Cell, ...] = tuple(cell for file in _FILES for cell in file.CELLS)
BY_NAME = {cell.name: cell for cell in CELLS}
