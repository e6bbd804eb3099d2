"""The sliders of the Decide page: what a decision goes by, changed for a look.

Invariant: what is written in harness.yaml is a step of every slider, and where each stands at first.
"""

from collections.abc import Callable, Sequence
from math import inf

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from harness.decision import hour_usd
from harness.formatting import count, seconds, usd
from harness.report import ExperimentReport
from harness.spec import DecidePolicy

_VOLUMES = (100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000)
_MONTHS = (1, 3, 6, 12, 24, 36)
_PRICES = (0.0, 0.01, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 100.0)
_TAUS = (0.0, 0.01, 0.1, 1.0, 10.0, 100.0, 1_000.0, 10_000.0, 100_000.0)
_LATENCIES = (0.01, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, inf)
_RATES = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 1_000.0)
_UNSET = -1.0  # of what a right answer is worth

_TAU = "Points of the target metric that a fine-tune has to bring for each USD of training."
_SLOW = "Candidates whose median request takes longer are left out before the choice."
_FEW = "Candidates that answer fewer requests a second, in batches, are left out before the choice."


def sliders(report: ExperimentReport, written: DecidePolicy) -> tuple[DecidePolicy, float]:
    """Let the policy be changed; return it with how many times dearer the device is."""
    hour = hour_usd(report.facts)
    _begin((report.file_name, written, hour))
    with st.container(border=True):
        a, b, c = st.columns(3)
        changed = {
            "requests_per_month": _slider(a, "requests a month", _VOLUMES, written.requests_per_month, count),
            "horizon_months": _slider(b, "horizon, months", _MONTHS, written.horizon_months, "{:g}".format),
            "tau": _slider(c, "τ, points per USD of training", _TAUS, written.tau, "{:,g}".format, _TAU),
        }
        price = _slider(a, "a device hour, USD", _PRICES[1:], hour, usd) if hour else 0.0
        changed["label_cost_usd"] = _slider(b, "a label, USD", _PRICES, written.label_cost_usd, usd)
        right = _UNSET if written.right_answer_usd is None else written.right_answer_usd
        answer = _slider(c, "one more right answer, USD", (_UNSET, *_PRICES), right, _worth)
        hosting = written.hosting_usd_per_month
        changed["hosting_usd_per_month"] = _slider(a, "hosting a month, USD", _PRICES, hosting, usd)
        latency = _slider(b, "longest median request", _LATENCIES, written.max_latency_s or inf, _time, _SLOW)
        least = written.min_requests_per_s or 0.0
        least = _slider(c, "requests a second, at least", _RATES, least, _rate, _FEW)
        st.button("As written", on_click=_reset, help="Back to what harness.yaml says.", key="reset")
    budgets = {
        "max_latency_s": None if latency == inf else latency,
        "min_requests_per_s": least or None,
        "right_answer_usd": None if answer == _UNSET else answer,
    }
    return written.model_copy(update=changed | budgets), price / hour if hour else 1.0


def _slider(
    at: DeltaGenerator,
    title: str,
    steps: Sequence[float],
    written: float,
    shown: Callable[[float], str],
    said: str = "",
) -> float:
    """Draw a slider over steps, among which what is written is one."""
    options, key = sorted({*map(float, steps), float(written)}), f"decide_{title}"
    st.session_state.setdefault(key, float(written))  # so the browser is told: its own slider keeps its place
    return float(at.select_slider(title, options, format_func=shown, key=key, help=said or None))


def _worth(value: float) -> str:
    return "not set" if value == _UNSET else usd(value)


def _time(value: float) -> str:
    return "any" if value == inf else seconds(value)


def _rate(value: float) -> str:
    return f"{value:,g}" if value else "any"


def _begin(written: object) -> None:
    """Leave no slider where it stood for another experiment, or before another policy was written."""
    if st.session_state.get("decided_by") != written:
        _reset()
        st.session_state["decided_by"] = written


def _reset() -> None:
    for key in [key for key in st.session_state if str(key).startswith("decide_")]:
        del st.session_state[key]
