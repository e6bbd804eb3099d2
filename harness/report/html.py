"""Write a report as one HTML file that needs nothing else: tables, pictures, answers, provenance.

Invariant: the page holds no script and its own policy forbids any; every text is cleaned and
escaped; every number was printed by `numbers`.
"""

from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from harness import formatting
from harness.comparison import Comparison
from harness.decision import CandidateFacts
from harness.records import TrainingRecord
from harness.report import plots
from harness.report.document import Section
from harness.report.escape import clean_lines, page_environment
from harness.report.experiment_report import ExperimentReport, Flip
from harness.report.labels import CLASSES, WORDS, shorten_for_picture
from harness.report.plots import svg
from harness.report.plots.heat_map import heat
from harness.report.plots.loss_curves import LONGEST
from harness.report.sections import experiment_document
from harness.report.wording import best_first

_FOLDER = Path(__file__).parent


class Chapter(NamedTuple):
    """One section with its place in the page.

    `flips` are grouped by task; `same_as` names the run of the same weights whose items are shown.
    """

    id: str
    section: Section
    above: tuple[str, ...] = ()
    flips: tuple[tuple[str, tuple[Flip, ...]], ...] = ()
    same_as: str = ""


def html(report: ExperimentReport) -> str:
    """Render the whole report."""
    from markupsafe import Markup, escape

    environment = page_environment(_FOLDER)
    environment.filters |= {"lines": lambda text: escape(clean_lines(text)), "drawn": Markup}
    shown = experiment_document(report)
    chapters = _chapters(report, shown.sections)
    return environment.get_template("page.html").render(
        report=report,
        document=shown,
        body=[c for c in chapters if not c.section.appendix],
        appendix=[c for c in chapters if c.section.appendix],
        heat=heat(report),
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
        flips: list[tuple[str, tuple[Flip, ...]]] = []
        if section.kind == "forgetting" and f:
            above, flips = [plots.forest(report, f)], _flips(report, f)
        elif section.kind == "gate" and f and f.verdict:
            above = [plots.chances(f.label, f.verdict)]
        elif section.kind == "training":
            above = _curves(facts.values())
        same_as = _name_same_weights(report, section.label) if flips else ""
        out.append(Chapter(f"s{i}", section, tuple(filter(None, above)), tuple(flips), same_as))
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


def _flips(report: ExperimentReport, f: CandidateFacts) -> list[tuple[str, tuple[Flip, ...]]]:
    """Group the items that are shown by task, each with how many there are."""
    compared = report.task_comparisons(f.label)
    if f.vs_untrained:
        compared[f.vs_untrained.task] = f.vs_untrained
    grouped = groupby(report.flips.get(f.label, ()), key=lambda flip: flip.task)
    return [_flips_title(compared[task], tuple(flips)) for task, flips in grouped if task in compared]


def _name_same_weights(report: ExperimentReport, label: str) -> str:
    """Name the run whose general answers stand for this one's too; empty where it shows its own."""
    if any(flip.against == "base" for flip in report.flips.get(label, ())):
        return ""
    weights = {name: of.get("weights") for name, of in report.origins.items() if report.flips.get(name)}
    same = (n for n, digest in weights.items() if n != label and digest and digest == weights.get(label))
    return next(same, "")


def _flips_title(c: Comparison, flips: tuple[Flip, ...]) -> tuple[str, tuple[Flip, ...]]:
    n_lost = sum(flip.lost for flip in flips)
    lost, gained = formatting.count(len(c.lost)), formatting.count(len(c.gained))
    n_gained = formatting.count(len(flips) - n_lost)
    shown = f"{formatting.count(n_lost)} of {lost} lost, {n_gained} of {gained} gained"
    return f"{c.task}, against {flips[0].against}: {shown}", flips
