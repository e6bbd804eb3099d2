"""Decide: the arithmetic of the recommendation, live."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from math import inf, isfinite

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from harness.analysis.candidate_facts import CandidateFacts, best_untrained
from harness.analysis.decision import Decision
from harness.analysis.economics import apply_budgets, hour_usd, index_sentences
from harness.analysis.estimators import Comparison
from harness.experiment import decide_by
from harness.formatting import count, round_up, seconds, usd
from harness.report import ExperimentReport
from harness.report.result_tables import arithmetic_rows
from harness.spec import DecidePolicy
from parts import charts, controls, project, safe_text, scores

_VOLUMES = (100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000)
_MONTHS = (1, 3, 6, 12, 24, 36)
_PRICES = (0.0, 0.01, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 100.0)
_TAUS = (0.0, 0.01, 0.1, 1.0, 10.0, 100.0, 1_000.0, 10_000.0, 100_000.0)
_LATENCIES = (0.01, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, inf)
_RATES = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 1_000.0)
_UNSET = -1.0  # worth of a right answer

_TAU = "Points of the target metric that a fine-tune must gain for each USD of training."
_SLOW = "Candidates whose median request takes longer are left out before the choice."
_FEW = "Candidates that answer fewer requests a second, in batches, are left out before the choice."


def sliders(report: ExperimentReport, written: DecidePolicy) -> tuple[DecidePolicy, float]:
    """Draw the sliders; return the changed policy and the factor on the device's price."""
    hour = hour_usd(report.facts)
    decided_by = (report.file_name, written, hour)
    if st.session_state.get("decided_by") != decided_by:
        _reset()  # sliders start again for another experiment or policy
        st.session_state["decided_by"] = decided_by

    def slider(
        column: DeltaGenerator,
        title: str,
        steps: Sequence[float],
        value: float,
        show: Callable[[float], str] = usd,
        help_text: str | None = None,
    ) -> float:
        options, key = sorted({*map(float, steps), float(value)}), f"decide_{title}"
        st.session_state.setdefault(key, float(value))  # resets the browser's slider, which keeps its place
        return float(column.select_slider(title, options, format_func=show, key=key, help=help_text))

    with st.container(border=True):
        a, b, c = st.columns(3)
        changed = {
            "requests_per_month": slider(a, "requests a month", _VOLUMES, written.requests_per_month, count),
            "horizon_months": slider(b, "horizon, months", _MONTHS, written.horizon_months, "{:g}".format),
            "tau": slider(c, "τ, points per USD of training", _TAUS, written.tau, "{:,g}".format, _TAU),
        }
        price = slider(a, "a device hour, USD", _PRICES[1:], hour) if hour else 0.0
        changed["label_cost_usd"] = slider(b, "a label, USD", _PRICES, written.label_cost_usd)
        right = _UNSET if written.right_answer_usd is None else written.right_answer_usd
        steps = (_UNSET, *_PRICES)
        answer = slider(c, "one more right answer, USD", steps, right, lambda x: _name(x, _UNSET, usd))
        hosting = written.hosting_usd_per_month
        changed["hosting_usd_per_month"] = slider(a, "hosting a month, USD", _PRICES, hosting)
        max_latency = written.max_latency_s or inf
        show_latency = partial(_name, nothing=inf, show=seconds)
        latency = slider(b, "longest median request", _LATENCIES, max_latency, show_latency, _SLOW)
        min_rps, show_rate = written.min_requests_per_s or 0.0, partial(_name, nothing=0, show="{:,g}".format)
        min_rps = slider(c, "requests a second, at least", _RATES, min_rps, show_rate, _FEW)
        st.button("As written", on_click=_reset, help="Back to what harness.yaml says.", key="reset")
    budgets = {
        "max_latency_s": None if latency == inf else latency,
        "min_requests_per_s": min_rps or None,
        "right_answer_usd": None if answer == _UNSET else answer,
    }
    return written.model_copy(update=changed | budgets), price / hour if hour else 1.0


def _name(value: float, nothing: float, show: Callable[[float], str]) -> str:
    return ("not set" if nothing == _UNSET else "any") if value == nothing else show(value)


def _reset() -> None:
    for key in [key for key in st.session_state if str(key).startswith("decide_")]:
        del st.session_state[key]


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
    policy, price_factor = sliders(report, report.policy)
    repriced_facts = [  # at another price of a device hour
        replace(
            f,
            cost_per_1k_usd=None if f.cost_per_1k_usd is None else price_factor * f.cost_per_1k_usd,
            training_cost_usd=price_factor * f.training_cost_usd,
        )
        for f in report.facts
    ]
    facts = _gains(report, repriced_facts, policy)
    decision = decide_by(report, facts, policy)
    safe_text.say(decision.sentence, "lead")
    if decision.sentence != (report.decision.sentence if report.decision else ""):
        st.caption("Differs from the report because of the changes made here.")
    _break_even(decision)
    st.subheader("Reasons", anchor=False)
    safe_text.say_all([*decision.reasons, *index_sentences(facts, policy)])
    st.subheader("Arithmetic", anchor=False)
    rows = [
        {"input": name, "value": value}
        for name, value in arithmetic_rows(decision, report.unit)
        # Without a set price the worth of the gain rests on an assumption.
        if policy.right_answer_usd is not None or not name.startswith("worth of the gain")
    ]
    controls.show_rows(rows, "decide", 2_000)


def _gains(
    report: ExperimentReport, facts: Sequence[CandidateFacts], policy: DecidePolicy
) -> Sequence[CandidateFacts]:
    """Measure gains against the best untrained candidate within the budgets, if the budgets change it."""
    best = best_untrained(apply_budgets(facts, policy))
    if best is None or best == best_untrained(report.facts):
        return facts
    key, runs = f"{report.task}/test", controls.runs_of(report, project.runs())
    rows = {label: run.rows[key] for label, run in runs.items() if key in run.rows}
    pair = partial(scores.Pair, report.task, report.metric, rows.get(best, ""))
    outcomes = {label: scores.compare(pair(digest)) for label, digest in rows.items() if label != best}
    safe_text.say(
        f"Within these budgets {best} is the best untrained candidate: gains are measured against it; "
        "the gate's verdicts are the report's."
    )
    compared = {label: c for label, c in outcomes.items() if isinstance(c, Comparison)}
    return [
        replace(
            f,
            vs_untrained=compared.get(f.label),
            # That estimate was against the other candidate; without it the seeds' errors bound the gain.
            over_items=f.over_items and f.over_items._replace(vs_untrained=None),
        )
        for f in facts
    ]


def _break_even(decision: Decision) -> None:
    """Draw the cost of both choices by the number of requests."""
    figures = decision.arithmetic
    tuned, alternative = figures.get("cost_per_1k_fine_tune_usd"), figures.get("cost_per_1k_alternative_usd")
    if not isinstance(tuned, float) or not isinstance(alternative, float):
        return
    once, forecast = float(figures["spent_once_usd"] or 0.0), float(figures["forecast_requests"] or 0.0)
    break_even = figures.get("break_even_requests")
    marks = {"forecast": forecast}
    max_requests = 1.1 * forecast
    if isinstance(break_even, float) and isfinite(break_even):
        marks = {f"break-even after {round_up(break_even)}": break_even} | marks
        max_requests = max(max_requests, 1.1 * break_even)
    lines = {
        f"fine-tune: {figures['fine_tune']}": (once, tuned / 1000),
        f"instead: {figures['alternative']}": (0.0, alternative / 1000),
    }
    charts.draw(charts.costs(lines, max_requests, marks), "break_even")


page()
