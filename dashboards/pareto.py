"""Pareto: the gain on the target against the change on the capability suite.

The area under the front has a fixed reference, so that experiments with the same metric can be compared.
"""

from math import isfinite

import streamlit as st

from harness import stats
from harness.formatting import UNKNOWN, percent, points, score
from harness.report import WORDS, front_file
from harness.report.pictures import Point, points_of
from parts import controls, project, safe_text

_REFERENCE = (0.0, -1.0)  # the worst score on the target, all of the capability suite lost


def page() -> None:
    """Draw the page."""
    controls.heading(
        "Pareto", "Right is better on your task, up keeps more of what the model could do before."
    )
    report = controls.shown_report()
    if report is None:
        return
    points_found = points_of(report)
    if not points_found:
        st.info("No candidate has both a score and a measured change on the capability suite.")
        return
    # Scales that a rescue tried, as points, if both of their scores are known.
    tried_scales = {
        rescue.original.facts.label: [
            Point(f"{rescue.original.facts.label} at scale {scale:g}", target, capability, "", False, False)
            for scale, t in rescue.path
            if (target := t.facts.target) and (capability := t.capability_change)
        ]
        for rescue in project.rescues(report)
    }
    lines = {label: line for label, line in tried_scales.items() if len(line) > 1}
    picture = front_file(report, lines=list(lines.values()))
    st.image(picture, width="stretch")
    st.download_button("SVG", picture, "pareto.svg", "image/svg+xml", icon=":material/download:")
    safe_text.say(f"On the front: {', '.join(p.label for p in points_found if p.on_front)}.")
    if isfinite(span := report.unit.span):
        worst, may_pass = report.unit.bounds[0], (WORDS["pass"], UNKNOWN)
        goals = [(abs(p.target.score - worst) / span, p.kept.score) for p in points_found]
        passing = [goal for goal, p in zip(goals, points_found, strict=True) if p.verdict in may_pass]
        area = stats.hypervolume(goals, _REFERENCE)
        passing_area = stats.hypervolume(passing, _REFERENCE) if passing else 0.0
        safe_text.say(
            f"Area under the front: {percent(area)} %, of those that pass the gate {percent(passing_area)} %;"
            " 100 % means the best score on the target and nothing forgotten."
        )
    else:
        safe_text.say(f"No area under the front: {report.metric} has no bounds.")
    drawn_labels = {p.label for p in points_found}
    if absent := [f.label for f in report.facts if f.state == "done" and f.label not in drawn_labels]:
        safe_text.say(f"Not measured on the capability suite, so not drawn: {', '.join(absent)}.")
    if lines:
        safe_text.say(
            f"Grey lines: the scales that the last rescue of {', '.join(lines)} tried; a rescue measures "
            "one half of the capability suite's items."
        )
    rows = []
    for p in points_found:
        change = "0 (base weights)" if p.kept.low == p.kept.high == 0 else points(*p.kept[:3])
        row = {"candidate": p.label, f"target {report.metric}": score(report.unit, *p.target[:3])}
        row |= {"capability suite": change, "verdict": p.verdict}
        row["on the front"] = "yes" if p.on_front else ""
        rows.append(row | {"recommended": "yes" if p.recommended else ""})
    controls.show_rows(rows, "pareto")


page()
