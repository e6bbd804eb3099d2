"""Page of an experiment as one HTML file, made from `page.html` and `page.css`.

Invariant: texts from models and files are never read as markup, and the page runs no script.
"""

from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.analysis.candidate_facts import CandidateFacts
from harness.analysis.verdict import WORDS
from harness.records import TrainingRecord
from harness.report import pictures, training_tables, wording
from harness.report.document import CAPTION, CLASSES
from harness.report.escape import clean, clean_lines, shorten, shorten_for_picture
from harness.report.experiment_report import RIGHT, WRONG, ExperimentReport, describe_prompt
from harness.report.sections import experiment_document

if TYPE_CHECKING:
    from jinja2 import Environment

_FOLDER = Path(__file__).parent
_BRIEF_ANSWER = 60  # characters of a folded answer


def html(report: ExperimentReport) -> str:
    """Render the report as one self-contained HTML file; its own policy forbids scripts."""
    from markupsafe import Markup, escape

    environment = page_environment(_FOLDER)
    environment.filters |= {"lines": lambda text: escape(clean_lines(text)), "drawn": Markup}
    environment.filters["brief"] = lambda text: shorten(clean(" ".join(text[:400].split())), _BRIEF_ANSWER)
    document = experiment_document(report)
    chapters: list[dict[str, Any]] = [
        {"id": f"s{i}", "section": section} for i, section in enumerate(document.sections)
    ]
    return environment.get_template("page.html").render(
        report=report,
        document=document,
        body=[c for c in chapters if not c["section"].appendix],
        appendix=[c for c in chapters if c["section"].appendix],
        caption=CAPTION,
        curves=_curves(wording.best_first(report)),
        heat=pictures.heat(report),
        answers=[(task, list(group)) for task, group in groupby(report.answers, key=lambda item: item.task)],
        marks={RIGHT: "right", WRONG: "wrong"},
        describe_prompt=describe_prompt,
        verdict_classes=CLASSES,
        verdict_words=WORDS,
        colours=Markup((_FOLDER / "page.css").read_text(encoding="utf-8") + pictures.rules()),
    )


def _curves(facts: Iterable[CandidateFacts]) -> list[str]:
    trainings: list[TrainingRecord] = []
    labels: list[str] = []
    for f in facts:
        if f.training in trainings:
            labels[trainings.index(f.training)] += f", {f.label}"
        else:
            trainings.append(f.training)
            labels.append(f.label)
    titles = shorten_for_picture(labels, training_tables.LONGEST)
    return list(filter(None, map(training_tables.curves, labels, trainings, titles)))


def page_environment(folder: Path) -> "Environment":
    """Return a Jinja environment for a folder of HTML templates that cleans and escapes every text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else clean(str(value)),
    )
