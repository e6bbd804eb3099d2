"""Training: losses of one or several candidates in one picture, and what training took.

Invariant: only what was logged is shown; the gap is validation less the running mean of training at the
last step that was validated.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from harness.numbers import UNKNOWN, count, plain, seconds, usd
from harness.records import Run
from harness.report.facts import measured
from harness.report.pictures.curves import known, running_mean
from parts import charts, controls, project

_AT_FIRST = 4


def page() -> None:
    """Draw the page."""
    controls.heading(
        "Training",
        "Loss by step (mean negative log-likelihood): a line for training, diamonds for validation.",
    )
    runs = project.runs()
    report = controls.choose_report() if project.reports() else None
    trained = {
        name: run for name, run in _runs(runs, report).items() if len(known(run.training.get("loss"))) > 1
    }
    if not trained:
        controls.nothing("No training was logged yet.")
        return
    first = list(trained)[:_AT_FIRST]
    chosen = controls.choose_candidates("training", list(trained), first, title="Candidates")
    if not chosen:
        return
    curves = {label: curve for name in chosen for label, curve in _overlaid(name, trained[name]).items()}
    charts.draw(charts.curves(curves, "loss"), "training")
    costs = {f.run_id: usd(f.training_cost_usd) for f in report.facts} if report else {}
    rows = [_row(name, trained[name], costs.get(trained[name].run_id, UNKNOWN)) for name in chosen]
    st.dataframe(rows, hide_index=True)
    controls.offer_csv(rows, "training")
    for name in chosen:
        _more(name, trained[name])


def _runs(runs: list[Run], report: Any) -> dict[str, Run]:
    """Return runs by label, one for each training: a candidate that borrows weights logs the same again."""
    seen: dict[object, str] = {}
    out = {}
    for name, run in (controls.runs_of(report, runs) or controls.newest(runs)).items():
        key = run.training.get("fit_key")
        if run.recipe.get("weights_of") and key in seen:
            continue
        seen.setdefault(key, name)
        out[name] = run
    return out


def _overlaid(name: str, run: Run) -> dict[str, charts.Curves]:
    """Return the curves of a training; of a sweep those of every trial."""
    trials = [t for t in run.training.get("sweep", []) if known(t.get("loss"))]
    if not trials:
        return {name: _curves(run.training)}
    return {
        f"{name}[{', '.join(f'{key}={value}' for key, value in t['params'].items())}]"
        + " (chosen)" * t["chosen"]: _curves(t)
        for t in trials
    }


def _curves(of: Mapping[str, Any]) -> charts.Curves:
    """Return the running mean of the training loss and the validation loss by step."""
    return running_mean(known(of.get("loss"))), known(of.get("validation_loss"))


def _row(name: str, run: Run, cost: str) -> dict[str, Any]:
    of, (training, validation) = run.training, _curves(run.training)
    return {
        "candidate": name,
        "last training loss": plain(training[-1][1]),
        "best validation loss": plain(of.get("best_validation_loss")),
        "overfitting gap": _gap(training, validation),
        "tokens/s": count(of.get("tokens_per_s")),
        "peak memory GiB": plain(of.get("peak_memory_gib")),
        "time": seconds(of.get("wall_s")),
        "steps": count(of.get("n_steps")),
        "trained parameters": count(of.get("n_trainable")),
        "cost USD": cost,
    }


def _gap(training: Sequence[tuple[float, float]], validation: Sequence[tuple[float, float]]) -> str:
    """Subtract the training loss from the validation loss at the last step that was validated."""
    if not validation:
        return UNKNOWN
    step, loss = validation[-1]
    before = [value for at, value in training if at <= step]
    return plain(loss - before[-1], sign=True) if before else UNKNOWN


def _more(name: str, run: Run) -> None:
    """Show what else was logged of a training: rewards, the trials of a sweep."""
    others = {key: value for key, value in run.training.items() if key.startswith("reward_") and known(value)}
    sweep = run.training.get("sweep", [])
    if others or sweep:
        with st.expander(name):
            for key, value in others.items():
                st.text(f"{key.replace('_', ' ')}: {measured(key, value)}")
            if sweep:
                tried = [{**t["params"], "validation": t["validation"], "chosen": t["chosen"]} for t in sweep]
                st.dataframe(tried, hide_index=True)


page()
