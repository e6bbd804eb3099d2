"""Pictures of a report, drawn as SVG: what is lost and gained, the trade, training, chances.

Invariant: a picture shows numbers of the report alone, each mark says its numbers as text, colour
never says anything alone, and no text of a model or a file is read as markup.
"""

from harness.report.plots.forest import chances, forest
from harness.report.plots.loss_curves import curves
from harness.report.plots.pareto_front import front, front_file
