"""The design: every cell of every estimator that a user sees a number of.

Invariant: fractional. The factors are the kind of score, the clusters, the number of items, of seeds, tasks and
candidates; each level of each stands in at least one cell of every estimator that it could trouble.
"""

from tests.calibration import chances, chosen, collapses, decisions, estimates, gates, nights
from tests.calibration.cell import Cell

_FILES = (estimates, gates, collapses, chances, decisions, nights, chosen)
CELLS: tuple[Cell, ...] = tuple(cell for file in _FILES for cell in file.CELLS)
BY_NAME = {cell.name: cell for cell in CELLS}
