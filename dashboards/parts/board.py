"""The lines of the leaderboard: what is stored of each run, joined with what was reported of it.

Invariant: scores of reported runs are the report's own; those of other runs are estimated from their
stored rows, for as many as are shown. Runs that the items cannot tell apart share a rank.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import streamlit as st

from harness import comparison, store
from harness.comparison import Comparison, Estimate
from harness.decide import CandidateFacts, best_untrained, fine_tuned
from harness.numbers import OWN_UNITS, UNKNOWN, change, points, score, seconds, usd
from harness.records import Run
from harness.report import ExperimentReport
from harness.report.escape import clean
from harness.report.facts import best_first, verdict_word
from harness.report.verdicts import ERROR
from parts import controls, project

BASE_WEIGHTS = "(base weights)"  # what stands behind the 0 of a run that cannot have forgotten
AT_ONCE = 25  # runs whose rows are read: as many as the picture shows, and soon read where items are many


def lines(runs: Sequence[Run], report: ExperimentReport | None) -> list[dict[str, Any]]:
    """Join what is stored of each run with what was reported of it, the best first."""
    of = list(project.reports().values()) if report is None else [report, *project.reports().values()]
    facts = {f.run_id: (f, r.metric, f.name == _reference(r)) for r in reversed(of) for f in r.facts}
    unknown = [run for run in reversed(runs) if run.run_id not in facts and run.state == "done"]
    scores = _scores(unknown[:AT_ONCE])
    ranks = _ranks(runs, report)
    champions = project.champion_ids()
    rows = []
    for run in runs:
        f, metric, is_reference = facts.get(run.run_id, (None, "", False))
        name, e = (metric, f.target) if f else scores.get(run.run_id, ("", None))
        row = _row(run, f, name, e) | {"rank": ranks.get(run.run_id), "champion": run.run_id in champions}
        rows.append(row | ({"gain": None, "gain interval": "(this one)"} if is_reference else {}))
    sign = -1 if rows and rows[0]["metric"] in OWN_UNITS else 1
    return sorted(rows, key=lambda row: (row["score"] is None, -sign * (row["score"] or 0.0)))


def _row(run: Run, f: CandidateFacts | None, metric: str, e: Estimate | None) -> dict[str, Any]:
    scale = 1.0 if metric in OWN_UNITS else 100.0
    macro = f.verdict.macro if f and f.verdict and fine_tuned(f) else None
    kept = BASE_WEIGHTS if f and f.verdict and not fine_tuned(f) else ""
    gain = f.vs_untrained if f else None
    return {
        "candidate": clean(controls.label(run)),
        "metric": metric,
        "score": scale * e.score if e else None,
        "low": scale * e.low if e else None,
        "high": scale * e.high if e else None,
        "said": score(metric, e.score, e.low, e.high) if e else "",
        "gain": scale * gain.delta if gain else None,
        "gain interval": _ends(metric, gain) if gain else "",
        "forgetting": 100 * macro.score if macro else 0.0 if kept else None,
        "forgetting interval": points(*macro[:3]).partition(" ")[2] if macro else kept,
        "usd": usd(f.cost_per_1k_usd) if f else "",
        "p50": seconds(run.latency.get("p50_s")),
        "verdict": ERROR if run.state == "failed" else verdict_word(f) if f else UNKNOWN,
        "method": clean(f"{run.method} × {run.prompting}"),
        "model": clean(run.base_model.rpartition("/")[2]),
        "created": run.created[:16].replace("T", " "),
        "run": clean(run.run_id),
    }


def _reference(report: ExperimentReport) -> str | None:
    return best_untrained(report.facts, higher_is_better=report.higher_is_better)


def _ends(metric: str, gain: Comparison) -> str:
    return change(metric, gain.delta, gain.low, gain.high).partition(" ")[2]


def _scores(runs: Iterable[Run]) -> dict[str, tuple[str, Estimate | None]]:
    """Estimate the target's score of runs that no report holds, from their rows."""
    loaded = project.experiment()
    if loaded is None:
        return {}
    target = loaded.experiment.target
    key, name = f"{target.name}/test", target.primary_metric
    of = {run.run_id: run.rows[key] for run in runs if key in run.rows}
    digests = tuple(dict.fromkeys(of.values()))
    made = _estimates(digests, target.name, name, project.modified(*digests))
    return {run_id: (name, made.get(digest)) for run_id, digest in of.items()}


@st.cache_data(show_spinner=False, max_entries=32)
def _estimates(
    digests: tuple[str, ...], task: str, metric: str, changed: tuple[int, ...]
) -> dict[str, Estimate | None]:
    of, found = project.metric(task, metric), store.read_columns(project.project().store, digests, metric)
    return {digest: comparison.estimate_columns(of, columns) for digest, columns in found.items()}


def _ranks(runs: Sequence[Run], report: ExperimentReport | None) -> dict[str, int]:
    """Rank the runs of the report on the items that all of them answered."""
    if report is None or not report.task:
        return {}
    done = {f.run_id for f in best_first(report)[:AT_ONCE] if f.state == "done"}
    key = f"{report.task}/test"
    digests = {run.run_id: run.rows[key] for run in runs if run.run_id in done and key in run.rows}
    changed = project.modified(*digests.values())
    return _ranked(tuple(sorted(digests.items())), report.task, report.metric, changed)


@st.cache_data(show_spinner=False, max_entries=32)
def _ranked(
    digests: tuple[tuple[str, str], ...], task: str, metric: str, changed: tuple[int, ...]
) -> dict[str, int]:
    wanted = dict.fromkeys(digest for _, digest in digests)
    found = store.read_columns(project.project().store, wanted, metric)
    by_run = {run_id: found[digest] for run_id, digest in digests if digest in found}
    return comparison.shared_ranks(project.metric(task, metric), by_run)
