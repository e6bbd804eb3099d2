"""Pareto: the gain on the target against the change on the capability suite.

Invariant: a point is on the front where no other is as good in both and better in one; the area under
it has one fixed reference, so that two experiments of one metric can be compared.
"""

from collections.abc import Sequence

import streamlit as st

from harness import plugins, stats
from harness.formatting import UNKNOWN, percent, points, score
from harness.report import WORDS, ExperimentReport, front_file
from harness.report.pareto_front import Point, points_of
from harness.spec import BASE
from parts import controls, project, safe_text

_SCALE = 0.5  # what both take where nothing is written
_REFERENCE = (0.0, -1.0)  # nothing right on the target, all of the capability suite lost


def page() -> None:
    """Draw the page."""
    controls.heading(
        "Pareto", "Right is better on your task, up keeps more of what the model could do before."
    )
    report = controls.shown_report()
    if report is None:
        return
    found = points_of(report)
    if not found:
        st.info("No candidate has both a score and a measured change on the capability suite.")
        return
    # Turn the scales of a rescue into points, as far as both of their scores are known.
    tried = {
        one.original.facts.label: [
            Point(f"{one.original.facts.label} at scale {scale:g}", target, kept, "", False, False)
            for scale, t in one.path
            if (target := t.facts.target) and (kept := t.capability_change)
        ]
        for one in project.rescues(report)
    }
    rescued = {label: line for label, line in tried.items() if len(line) > 1}
    # Group the scales of one fine-tune, each in the order of its scale: they lie on one line.
    runs = {label: run.recipe for label, run in controls.runs_of(report, project.runs()).items()}
    by_label = {p.label: p for p in found}
    families: dict[str, list[tuple[float, Point]]] = {}
    for label, recipe in runs.items():
        of = recipe.get("init_from")
        scaled = plugins.find_method(recipe.get("method", BASE)).interpolates
        if scaled and of in by_label and label in by_label:
            scale = float(recipe.get("params", {}).get("scale", _SCALE))
            families.setdefault(of, [(1.0, by_label[of])]).append((scale, by_label[label]))
    lines = [
        *[[p for _, p in sorted(family, key=lambda one: one[0])] for family in families.values()],
        *rescued.values(),
    ]
    drawn = front_file(report, lines=lines)
    st.image(drawn, width="stretch")
    st.download_button("SVG", drawn, "pareto.svg", "image/svg+xml", icon=":material/download:")
    _say_front(report, found)
    if rescued:
        safe_text.say(
            f"Grey lines: the scales that the last rescue of {', '.join(rescued)} tried; a rescue measures "
            "one half of the capability suite's items."
        )
    rows = []
    for p in found:
        change = "0 (base weights)" if p.kept.low == p.kept.high == 0 else points(*p.kept[:3])
        row = {"candidate": p.label, f"target {report.metric}": score(report.unit, *p.target[:3])}
        row |= {"capability suite": change, "verdict": p.verdict}
        row["on the front"] = "yes" if p.on_front else ""
        rows.append(row | {"recommended": "yes" if p.recommended else ""})
    controls.show_rows(rows, "pareto")


def _say_front(report: ExperimentReport, found: Sequence[Point]) -> None:
    on_front = [p.label for p in found if p.on_front]
    safe_text.say(f"On the front: {', '.join(on_front)}.")
    if report.unit.is_rate:
        worst = 0.0 if report.unit.higher_is_better else -1.0
        goals = [(report.unit.sign * p.target.score - worst, p.kept.score) for p in found]
        passing = [
            goal for goal, p in zip(goals, found, strict=True) if p.verdict in (WORDS["pass"], UNKNOWN)
        ]
        area = stats.hypervolume(goals, _REFERENCE)
        kept = stats.hypervolume(passing, _REFERENCE) if passing else 0.0
        safe_text.say(
            f"Area under the front: {percent(area)} %, of those that pass the gate {percent(kept)} %; 100 % "
            "is everything answered right and nothing forgotten."
        )
    absent = [f.label for f in report.facts if f.state == "done" and f.label not in {p.label for p in found}]
    if absent:
        safe_text.say(f"Not measured on the capability suite, so not drawn: {', '.join(absent)}.")


page()
