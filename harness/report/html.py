"""Write a report as one HTML file that needs nothing else: tables, pictures, answers, provenance.

Invariant: the page holds no script and its own policy forbids any; every text is cleaned and
escaped; every number was printed by `numbers`.
"""

from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from harness.decision import CandidateFacts
from harness.records import TrainingRecord
from harness.report import plots
from harness.report.document import Section
from harness.report.escape import clean, clean_lines, page_environment, shorten
from harness.report.experiment_report import ExperimentReport, describe_prompt
from harness.report.labels import CLASSES, RIGHT, WORDS, WRONG, shorten_for_picture
from harness.report.plots import svg
from harness.report.plots.heat_map import heat
from harness.report.plots.loss_curves import LONGEST
from harness.report.sections import experiment_document
from harness.report.wording import best_first

_FOLDER = Path(__file__).parent
_BRIEF = 60  # characters of an answer that is not opened


class Chapter(NamedTuple):
    """One section with its place in the page."""

    id: str
    section: Section
    above: tuple[str, ...] = ()


def html(report: ExperimentReport) -> str:
    """Render the whole report."""
    from markupsafe import Markup, escape

    environment = page_environment(_FOLDER)
    environment.filters |= {"lines": lambda text: escape(clean_lines(text)), "drawn": Markup}
    environment.filters["brief"] = lambda text: shorten(clean(" ".join(text[:400].split())), _BRIEF)
    shown = experiment_document(report)
    chapters = _chapters(report, shown.sections)
    return environment.get_template("page.html").render(
        report=report,
        document=shown,
        body=[c for c in chapters if not c.section.appendix],
        appendix=[c for c in chapters if c.section.appendix],
        heat=heat(report),
        answers=[(task, list(of)) for task, of in groupby(report.answers, key=lambda item: item.task)],
        marks={RIGHT: "right", WRONG: "wrong"},
        describe_prompt=describe_prompt,
        verdict_classes=CLASSES,
        verdict_words=WORDS,
        colours=Markup((_FOLDER / "page.css").read_text(encoding="utf-8") + svg.rules()),
    )


def _chapters(report: ExperimentReport, sections: Sequence[Section]) -> list[Chapter]:
    facts = {f.label: f for f in best_first(report)}
    out = []
    for i, section in enumerate(sections):
        f = facts.get(section.label)
        above: list[str] = []
        if section.kind == "forgetting" and f:
            above = [plots.forest(report, f)]
        elif section.kind == "gate" and f and f.verdict:
            above = [plots.chances(f.label, f.verdict)]
        elif section.kind == "training":
            above = _curves(facts.values())
        out.append(Chapter(f"s{i}", section, tuple(filter(None, above))))
    return out


def _curves(facts: Iterable[CandidateFacts]) -> list[str]:
    """Draw each training once, whoever serves its weights."""
    named: list[tuple[list[str], TrainingRecord]] = []
    for f in facts:
        labels = next((labels for labels, training in named if training == f.training), None)
        if labels is None:
            named.append(([f.label], f.training))
        else:
            labels.append(f.label)
    drawn = [(", ".join(labels), training) for labels, training in named]
    titles = shorten_for_picture([label for label, _ in drawn], LONGEST)
    return [plots.curves(*one, title) for one, title in zip(drawn, titles, strict=True)]
