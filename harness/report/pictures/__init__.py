"""Pictures of a report, drawn as SVG: what is lost and gained, the trade, training, the gate's chances.

Invariant: a picture shows numbers of the report alone, each mark says its numbers as text, colour
never says anything alone, and no text of a model or a file is read as markup.
"""

from harness.report.pictures.chances import chances
from harness.report.pictures.curves import curves
from harness.report.pictures.forest import forest
from harness.report.pictures.front import front, front_file

__all__ = ["chances", "curves", "forest", "front", "front_file"]
