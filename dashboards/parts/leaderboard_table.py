"""The table of the leaderboard and its filters: a column for each measured thing, printed with its interval.

Invariant: cells are printed as reports print them and stay numbers, so that a click on a head sorts by value;
filters stand in the page's address.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import streamlit as st

from harness.comparison import Estimate
from harness.decision import CandidateFacts, gain, is_fine_tuned
from harness.formatting import UNKNOWN, change, count, errors, points, score
from harness.records import Run
from harness.report import CLASSES, ERROR, ExperimentReport, find_shown_figure, print_measured, verdict_word
from harness.report.escape import clean
from parts import controls
from parts.leaderboard_rows import Line
from parts.safe_text import COLOURS
from parts.score_cache import AT_ONCE

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler  # type: ignore[import-untyped]

_FACETS: dict[str, Callable[[Run], str]] = {
    "experiment": lambda run: run.experiment,
    "model": lambda run: run.base_model,
    "method": lambda run: run.method,
    "seed": lambda run: str(run.seed),
}
_VERDICTS = {word: COLOURS[class_] for word, class_ in CLASSES.items()} | {UNKNOWN: "#77808a"}
_SPEED = ("latency_p50_s", "latency_p95_s", "requests_per_s")
_DISTURBED = "~: measured while other work took the processors; nothing is decided by it."
_WITH_INTERVAL = 160  # pixels, for the longest: −0.123 [−0.145, −0.101]


def choose_runs(runs: Sequence[Run], report: ExperimentReport | None) -> list[Run]:
    """Let runs be filtered; without a filter the report's are shown."""
    reported = {f.run_id for f in report.facts} if report is not None else set()
    shown = controls.runs_of(report, runs)
    with st.expander("Filters"):
        everything = st.toggle(
            "All stored runs, not only the report's", value=not shown, key="all_runs", bind="query-params"
        )
        pool = [run for run in runs if everything or report is None or run.run_id in reported]
        columns = st.columns(5)
        for column, (title, pick) in zip(columns, _FACETS.items(), strict=False):
            options = sorted({pick(run) for run in pool})
            key = f"filter_{title}"
            picked = column.multiselect(title, options, key=key, format_func=clean, bind="query-params")
            pool = [run for run in pool if not picked or pick(run) in picked]
        since = columns[-1].text_input(
            "created since", placeholder="2026-01-31", key="filter_since", bind="query-params"
        )
        return [run for run in pool if run.created >= since]


class Printed(float):
    """A number that carries how it is printed."""

    text: str

    @classmethod
    def of(cls, x: float | None, text: str) -> "Printed | None":
        """Join a number and its text; None where there is no number."""
        if x is None:
            return None
        made = cls(x)
        made.text = text
        return made


def columns(metrics: Sequence[str]) -> dict[str, Any]:
    """Say how each column is headed and how wide it is, in the order of the table."""
    number, text = st.column_config.NumberColumn, st.column_config.TextColumn
    rank = f"The best {AT_ONCE} of the runs shown; those whose paired difference holds 0 share a rank."
    gain = "Paired difference to the best that trains nothing, in points, with its 95 % interval."
    kept = "Mean change over the capability tasks that count, in points, with its 95 % interval."
    score_ = "Score on the target's test items, with its 95 % interval."
    others = {
        _key(name): number(name.replace("_", " "), width=_WITH_INTERVAL, help=score_) for name in metrics
    }
    return {
        "rank": number("rank", width=50, pinned=True, help=rank),
        "champion": text("★", width=34, pinned=True, help="The champion: what gates compare with."),
        "candidate": text("candidate", pinned=True),
        "verdict": st.column_config.MultiselectColumn(
            "verdict", width=96, options=list(_VERDICTS), color=list(_VERDICTS.values())
        ),
        "score": number("target", width=_WITH_INTERVAL, help=score_),
        **others,
        "gain": number("vs best untrained", width=_WITH_INTERVAL, help=gain),
        "forgetting": number("capability suite", width=_WITH_INTERVAL, help=kept),
        "usd": number("$/1k", width=70, help=f"USD for 1,000 requests. {_DISTURBED}"),
        "p50": number("p50", width=70, help=f"Median time of one request. {_DISTURBED}"),
        "p95": number("p95", width=70, help=f"Time that 95 % of requests keep. {_DISTURBED}"),
        "rate": number("requests/s", width=80, help=f"Answered in batches. {_DISTURBED}"),
        "tokens": number("tokens", width=80, help="Tokens of a request: of its prompt + of its answer."),
        "created": text("created", width=130),
        "method": text("method"),
        "model": text("model"),
        "run": text("run"),
    }


def _key(metric: str) -> str:
    return f"by {metric}"


def style_table(lines: Sequence[Line], metrics: Sequence[str]) -> "Styler":
    """Print the lines."""
    from pandas import DataFrame  # type: ignore[import-untyped]

    frame = DataFrame([_cells(line) for line in lines], columns=list(columns(metrics)), dtype=object)
    printed = [name for name in frame if any(isinstance(cell, Printed) for cell in frame[name])]
    return frame.style.format(lambda cell: cell.text if cell is not None else UNKNOWN, subset=printed)


def _cells(line: Line) -> dict[str, Any]:
    run, f = line.run, line.facts
    return {
        "rank": Printed.of(line.rank, count(line.rank)),
        "champion": "★" if line.is_champion else "",
        "candidate": clean(run.label),
        "verdict": [verdict(line)],
        "score": _score(line.score),
        **{_key(name): _score(e) for name, e in line.others.items()},
        "gain": _gain(line),
        "forgetting": _forgetting(line),
        "usd": _print_figure(line, "cost_per_1k_usd"),
        "p50": _print_figure(line, "latency_p50_s"),
        "p95": _print_figure(line, "latency_p95_s"),
        "rate": _print_figure(line, "requests_per_s"),
        "tokens": _tokens(f),
        "created": run.created[:16].replace("T", " "),
        "method": clean(f"{run.method} × {run.prompting}"),
        "model": clean(run.base_model.rpartition("/")[2]),
        "run": clean(run.run_id),
    }


def verdict(line: Line) -> str:
    """Say a run's verdict in one word."""
    return ERROR if line.run.state == "failed" else verdict_word(line.facts) if line.facts else UNKNOWN


def _print_figure(line: Line, name: str) -> Printed | None:
    """Print a figure of cost or speed; of a run that no report holds what is stored of its latency."""
    f = line.facts or _read_stored_facts(line.run)
    return Printed.of(find_shown_figure(f, name), print_measured(f, name))


def _read_stored_facts(run: Run) -> CandidateFacts:
    """Return the latencies that a run stored, as facts."""
    p50_s, p95_s = (run.latency.get(name) for name in ("p50_s", "p95_s"))
    own = (run.candidate, run.run_id, run.method, run.prompting, run.answer, run.seed)
    made = CandidateFacts(*own, trained=run.weights_digest != run.base_digest, state=run.state)
    if run.latency.get("contended"):
        known = {"latency_p50_s": p50_s, "latency_p95_s": p95_s}
        return replace(made, disturbed={name: x for name, x in known.items() if x is not None})
    return replace(made, latency_p50_s=p50_s, latency_p95_s=p95_s)


def _tokens(f: CandidateFacts | None) -> Printed | None:
    if f is None or f.tokens is None:
        return None
    prompt, output = f.tokens.prompt, f.tokens.output
    return Printed.of(prompt + output, f"{count(prompt)} + {count(output)}")


def _score(e: Estimate | None) -> Printed | None:
    return Printed.of(e.unit.scale * e.score, score(e.unit, *e[:3]) + errors(e.n_errors)) if e else None


def _gain(line: Line) -> Printed | None:
    if line.is_reference:
        return Printed.of(0.0, "(this one)")
    if line.facts is None or (c := gain(line.facts.vs_untrained)) is None:
        return None
    return Printed.of(c.unit.scale * c.delta, change(c.unit, c.delta, c.low, c.high))


def _forgetting(line: Line) -> Printed | None:
    f = line.facts
    if f is None or f.verdict is None:
        return None
    if not is_fine_tuned(f):
        return Printed.of(0.0, "0 (base weights)")
    macro = f.verdict.macro
    return Printed.of(100 * macro.score, points(*macro[:3])) if macro else None


def make_row(line: Line) -> dict[str, Any]:
    """Return a line unrounded, in the metric's unit, for a spreadsheet."""
    run, f = line.run, line.facts
    c, judged = (gain(f.vs_untrained), f.verdict) if f else (None, None)
    macro = judged.macro if f and judged and is_fine_tuned(f) else None
    return {
        "candidate": run.label,
        "metric": line.metric,
        **_ends("score", line.score),
        **{key: value for name, e in line.others.items() for key, value in _ends(name, e).items()},
        **_ends("gain", Estimate(c.delta, c.low, c.high, c.n) if c else None),
        **_ends("forgetting", macro),
        "cost_per_1k_usd": find_shown_figure(f, "cost_per_1k_usd")
        if f and f.cost_per_1k_usd is not None
        else None,
        **_speed(f or _read_stored_facts(run)),
        "verdict": verdict(line),
        "rank": line.rank,
        "champion": line.is_champion,
        "method": run.method,
        "prompting": run.prompting,
        "model": run.base_model,
        "created": run.created,
        "run": run.run_id,
    }


def _speed(f: CandidateFacts) -> dict[str, Any]:
    """Return speed and tokens as a spreadsheet has them; `disturbed` names what other work disturbed."""
    of = {name: f.disturbed.get(name, getattr(f, name)) for name in _SPEED}
    tokens = {"prompt_tokens": f.tokens.prompt, "output_tokens": f.tokens.output} if f.tokens else {}
    return {**of, "prompt_tokens": None, "output_tokens": None, **tokens, "disturbed": ", ".join(f.disturbed)}


def _ends(name: str, e: Estimate | None) -> dict[str, float | None]:
    score_, low, high = (e.score, e.low, e.high) if e else (None, None, None)
    return {name: score_, f"{name}_low": low, f"{name}_high": high}
