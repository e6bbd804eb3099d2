"""Decide: the arithmetic of the recommendation, live.

Invariant: untouched, the page says what `harness decide` says; every change goes through the same
function with another policy or another price of the device.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from math import isfinite

import streamlit as st

from harness.comparison import Comparison
from harness.decision import (
    CandidateFacts,
    Decision,
    apply_budgets,
    best_untrained,
    decide,
    index_sentences,
    reprice,
)
from harness.formatting import round_up
from harness.report import ExperimentReport
from harness.report.tables.decision_tables import arithmetic_rows
from harness.spec import DecidePolicy
from parts import charts, controls, paired_runs, project, safe_text
from parts.decision_sliders import sliders


def page() -> None:
    """Draw the page."""
    controls.heading("Decide", "What to ship, and how that depends on volume, prices, budgets and τ.")
    report = controls.shown_report()
    if report is None:
        return
    if report.policy is None:
        st.info(
            "This report does not hold the settings of its decision. Next: `harness report` writes it again."
        )
        return
    policy, times = sliders(report, report.policy)
    facts = _gains(report, reprice(report.facts, times), policy)
    found = decide(
        facts,
        policy,
        closed_labels=report.closed_labels,
        has_documents=report.has_documents,
        metric_name=report.metric,
        curve=report.curve,
        family=report.family,
        goal=report.declared.min if report.declared else None,
        win_rate=report.declared.win_rate if report.declared else None,
        trivial=report.trivial,
        can_fold=report.can_fold,
        spare=report.spare,
        relative=report.macro_margin is None,
    )
    safe_text.say(found.sentence, "lead")
    if found.sentence != (report.decision.sentence if report.decision else ""):
        st.caption("Differs from the report because of the changes made here.")
    _break_even(found)
    st.subheader("Reasons", anchor=False)
    safe_text.say_all([*found.reasons, *index_sentences(facts, policy)])
    st.subheader("Arithmetic", anchor=False)
    rows = [
        {"input": name, "value": value}
        for name, value in arithmetic_rows(found, report.unit)
        if policy.right_answer_usd is not None or not name.startswith("worth of the gain")  # of an assumption
    ]
    controls.show_rows(rows, "decide", 2_000)


def _gains(
    report: ExperimentReport, facts: Sequence[CandidateFacts], policy: DecidePolicy
) -> Sequence[CandidateFacts]:
    """Measure gains against the best untrained candidate within the budgets, where that is another one."""
    best = best_untrained(apply_budgets(facts, policy))
    if best is None or best == best_untrained(report.facts):
        return facts
    key, runs = f"{report.task}/test", controls.runs_of(report, project.runs())
    rows = {label: run.rows[key] for label, run in runs.items() if key in run.rows}
    pair = partial(paired_runs.Pair, report.task, report.metric, rows.get(best, ""))
    found = {label: paired_runs.compare(pair(digest)) for label, digest in rows.items() if label != best}
    safe_text.say(
        f"Within these budgets {best} is the best that trains nothing: gains are measured against it again, "
        "the gate's verdicts are the report's."
    )
    compared = {label: c for label, c in found.items() if isinstance(c, Comparison)}
    return [
        replace(
            f,
            vs_untrained=compared.get(f.label),
            # Measured against the other one; without it the seeds' own errors bound it.
            over_items=f.over_items and f.over_items._replace(vs_untrained=None),
        )
        for f in facts
    ]


def _break_even(found: Decision) -> None:
    """Draw what both choices cost by the number of requests, up to the forecast or the break-even."""
    of = found.arithmetic
    tuned, other = of.get("cost_per_1k_fine_tune_usd"), of.get("cost_per_1k_alternative_usd")
    if not isinstance(tuned, float) or not isinstance(other, float):
        return
    once, forecast = float(of["spent_once_usd"] or 0.0), float(of["forecast_requests"] or 0.0)
    at = of.get("break_even_requests")
    marks = {"forecast": forecast}
    most = 1.1 * forecast
    if isinstance(at, float) and isfinite(at):
        marks = {f"break-even after {round_up(at)}": at} | marks
        if at < forecast / 8:
            near = st.segmented_control("Up to", ["break-even", "forecast"], default="break-even", key="upto")
            most = 2.5 * at if near == "break-even" else most
        else:
            most = 1.1 * max(forecast, at) if at < 20 * forecast else most
    lines = {
        f"fine-tune: {of['fine_tune']}": (once, tuned / 1000),
        f"instead: {of['alternative']}": (0.0, other / 1000),
    }
    charts.draw(charts.costs(lines, most, marks), "break_even")


page()
