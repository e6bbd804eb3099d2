"""Write a report as one HTML file that needs nothing else: tables, pictures, answers, provenance.

Invariant: the page holds no script and its own policy forbids any; every text is cleaned and
escaped; every number was printed by `numbers`.
"""

from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from harness import formatting
from harness.comparison import Comparison, orient
from harness.decision import CandidateFacts, is_fine_tuned
from harness.records import TrainingRecord
from harness.report import plots
from harness.report.document import Section
from harness.report.escape import clean, clean_lines
from harness.report.experiment_report import ExperimentReport, Flip, best_first
from harness.report.labels import CLASSES, WORDS, for_picture
from harness.report.plots import style
from harness.report.plots.curves import LONGEST
from harness.report.sections import experiment_document

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
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else clean(str(value)),
    )
    environment.filters |= {"lines": lambda text: Markup(_escape(text)), "drawn": Markup}
    shown = experiment_document(report)
    return environment.get_template("page.html").render(
        report=report,
        document=shown,
        chapters=_chapters(report, shown.sections),
        front=plots.front(report),
        heat=heat(report),
        verdict_classes=CLASSES,
        verdict_words=WORDS,
        colours=Markup((_FOLDER / "page.css").read_text(encoding="utf-8") + style.rules()),
    )


def _escape(text: str) -> str:
    from markupsafe import escape

    return str(escape(clean_lines(text)))


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
        same_as = _same_weights(report, section.label) if flips else ""
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
    titles = for_picture([label for label, _ in drawn], LONGEST)
    return [plots.curves(*one, title) for one, title in zip(drawn, titles, strict=True)]


def _flips(report: ExperimentReport, f: CandidateFacts) -> list[tuple[str, tuple[Flip, ...]]]:
    """Group the items that are shown by task, each with how many there are."""
    compared = {c.task: c for c in reversed(report.comparisons.get(f.label, ())) if not c.slice}
    if f.vs_untrained:
        compared[f.vs_untrained.task] = f.vs_untrained
    grouped = groupby(report.flips.get(f.label, ()), key=lambda flip: flip.task)
    return [_flips_title(compared[task], tuple(flips)) for task, flips in grouped if task in compared]


def _same_weights(report: ExperimentReport, label: str) -> str:
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


_FULL_COLOUR = 0.30  # the change that gets the whole colour; larger ones get no more


class Cell(NamedTuple):
    """`strength` runs from −1 (lost) over 0 to 1 (gained); `shown` says whether the interval leaves 0 out."""

    change: str
    interval: str
    said: str
    strength: float
    shown: bool


class Heat(NamedTuple):
    """One row a task with a cell for each label; None where a candidate did not answer it."""

    labels: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell | None, ...]], ...]


def heat(report: ExperimentReport) -> Heat:
    """Lay out the primary metric of every task of the suites that is a rate, for every fine-tune."""
    labels = tuple(
        f.label for f in best_first(report) if is_fine_tuned(f) and report.comparisons.get(f.label)
    )
    by_label = [_primary_rates(report.comparisons[label]) for label in labels]
    tasks = list(dict.fromkeys(task for of in by_label for task in of))
    rows = tuple(
        (task, tuple(_heat_cell(of[task]) if task in of else None for of in by_label)) for task in tasks
    )
    return Heat(labels, rows)


def _primary_rates(comparisons: tuple[Comparison, ...]) -> dict[str, Comparison]:
    first = {c.task: c for c in reversed(comparisons) if not c.slice}
    return {task: c for task, c in reversed(first.items()) if c.unit.is_rate}


def _heat_cell(c: Comparison) -> Cell:
    better = orient(c)
    change = formatting.points(c.delta)
    interval = formatting.points(c.delta, c.low, c.high).removeprefix(change).strip()
    said = f"{c.metric} {change} {interval} points, n = {formatting.count(c.n)}"
    strength = max(-1.0, min(1.0, better.delta / _FULL_COLOUR))
    return Cell(change, interval, said, strength, better.low > 0 or better.high < 0)
