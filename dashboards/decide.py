"""Decide: the arithmetic of the recommendation, live.

Invariant: untouched, the page says what `harness decide` says; every change goes through the same
function with another policy or another price of the device.
"""

from collections.abc import Callable, Sequence
from math import isfinite

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from harness.decide import Decision, decide, hour_usd, repriced
from harness.numbers import count, usd
from harness.report import ExperimentReport
from harness.report.sections import arithmetic_rows
from harness.spec import DecidePolicy
from parts import charts, controls, texts

_VOLUMES = (100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000)
_MONTHS = (1, 3, 6, 12, 24, 36)
_PRICES = (0.0, 0.01, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 100.0)
_TAUS = (0.0, 0.01, 0.1, 1.0, 10.0, 100.0, 1_000.0, 10_000.0, 100_000.0)


def page() -> None:
    """Draw the page."""
    controls.heading("Decide", "What to ship, and how that depends on volume, prices and τ.")
    report = controls.choose_report()
    if report is None:
        return
    if report.policy is None:
        st.info("This report does not say what its decision went by. Next: `harness report` writes it again.")
        return
    policy, times = _policy(report, report.policy)
    found = decide(
        repriced(report.facts, times),
        policy,
        closed_labels=report.closed_labels,
        has_documents=report.has_documents,
        metric_name=report.metric,
        higher_is_better=report.higher_is_better,
        curve=report.curve,
    )
    texts.say(found.sentence, "lead")
    if found.sentence != (report.decision.sentence if report.decision else ""):
        st.caption("Other than the report, because of what was changed here.")
    _break_even(found)
    st.subheader("Reasons", anchor=False)
    texts.say_all([*found.reasons, *(f"Missing from the comparison: {what}" for what in found.missing)])
    st.subheader("Arithmetic", anchor=False)
    rows = [{"input": name, "value": value} for name, value in arithmetic_rows(found)]
    st.dataframe(rows, hide_index=True, height=38 + 35 * len(rows))
    controls.offer_csv(rows, "decide")


def _policy(report: ExperimentReport, written: DecidePolicy) -> tuple[DecidePolicy, float]:
    """Let the policy be changed; return it with how many times dearer the device is."""
    hour = hour_usd(report.facts)
    with st.container(border=True):
        a, b, c, d = st.columns(4)
        volume = _slider(a, "requests a month", _VOLUMES, written.requests_per_month, count)
        months = _slider(b, "horizon, months", _MONTHS, written.horizon_months, lambda x: f"{x:g}")
        label = _slider(c, "a label, USD", _PRICES, written.label_cost_usd, usd)
        tau = _slider(d, "τ, points per USD of training", _TAUS, written.tau, lambda x: f"{x:,g}")
        price = _slider(a, "a device hour, USD", _PRICES[1:], hour, usd) if hour else 0.0
        hosting = _slider(b, "hosting a month, USD", _PRICES, written.hosting_usd_per_month, usd)
        right = 1.0 if written.right_answer_usd is None else written.right_answer_usd
        answer = _slider(c, "one more right answer, USD", _PRICES, right, usd)
        d.button("As written", on_click=_reset, help="Back to what harness.yaml says.", key="reset")
    changed = {
        "requests_per_month": volume,
        "horizon_months": months,
        "label_cost_usd": label,
        "tau": tau,
        "hosting_usd_per_month": hosting,
    }
    if answer != right:
        changed["right_answer_usd"] = answer
    return written.model_copy(update=changed), price / hour if hour else 1.0


def _slider(
    at: DeltaGenerator, title: str, steps: Sequence[float], written: float, shown: Callable[[float], str]
) -> float:
    """Draw a slider over steps, among which what is written is one."""
    options = sorted({*map(float, steps), float(written)})
    return float(
        at.select_slider(title, options, value=float(written), format_func=shown, key=f"decide_{title}")
    )


def _reset() -> None:
    for key in [key for key in st.session_state if str(key).startswith("decide_")]:
        del st.session_state[key]


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
        marks = {f"break-even after {count(at)}": at} | marks
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
