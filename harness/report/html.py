"""A report as one HTML file that needs nothing else: tables, pictures, answers, provenance.

Invariant: the page has no script, and its own policy forbids any; every text is cleaned and escaped.
"""

from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from harness.analysis.candidate_facts import CandidateFacts
from harness.analysis.verdict import WORDS
from harness.records import TrainingRecord
from harness.report import pictures
from harness.report.document import CAPTION, CLASSES, Section
from harness.report.escape import clean, clean_lines, page_environment, shorten, shorten_for_picture
from harness.report.experiment_report import RIGHT, WRONG, ExperimentReport, describe_prompt
from harness.report.pictures import heat
from harness.report.sections import experiment_document
from harness.report.training_tables import LONGEST, curves
from harness.report.wording import best_first

_FOLDER = Path(__file__).parent
_BRIEF = 60  # characters of an answer that is not opened


class Chapter(NamedTuple):
    """One section with its place in the page."""

    id: str
    section: Section


def html(report: ExperimentReport) -> str:
    """Render the whole report."""
    from markupsafe import Markup, escape

    environment = page_environment(_FOLDER)
    environment.filters |= {"lines": lambda text: escape(clean_lines(text)), "drawn": Markup}
    environment.filters["brief"] = lambda text: shorten(clean(" ".join(text[:400].split())), _BRIEF)
    shown = experiment_document(report)
    chapters = [Chapter(f"s{i}", section) for i, section in enumerate(shown.sections)]
    return environment.get_template("page.html").render(
        report=report,
        document=shown,
        body=[c for c in chapters if not c.section.appendix],
        appendix=[c for c in chapters if c.section.appendix],
        caption=CAPTION,
        curves=list(filter(None, _curves(best_first(report)))),
        heat=heat(report),
        answers=[(task, list(of)) for task, of in groupby(report.answers, key=lambda item: item.task)],
        marks={RIGHT: "right", WRONG: "wrong"},
        describe_prompt=describe_prompt,
        verdict_classes=CLASSES,
        verdict_words=WORDS,
        colours=Markup((_FOLDER / "page.css").read_text(encoding="utf-8") + pictures.rules()),
    )


def _curves(facts: Iterable[CandidateFacts]) -> list[str]:
    """Draw each training once, under the names of all candidates that use its weights."""
    trainings: list[TrainingRecord] = []
    labels: list[str] = []
    for f in facts:
        if f.training in trainings:
            labels[trainings.index(f.training)] += f", {f.label}"
        else:
            trainings.append(f.training)
            labels.append(f.label)
    titles = shorten_for_picture(labels, LONGEST)
    return list(map(curves, labels, trainings, titles))
