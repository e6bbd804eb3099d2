"""Training: losses of one or several candidates in one plot, time and cost, and the training rows."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import streamlit as st

from harness.formatting import RATE, UNKNOWN, plain, usd
from harness.records import Run, TrainingRecord, Trial
from harness.report import (
    ExperimentReport,
    describe_forgetting,
    diagnose,
    figure_text,
    figure_title,
    front_sentence,
    sets_section,
    trials_section,
)
from harness.report.training_tables import (
    LIKELIHOOD,
    PREFERENCES,
    gap,
    is_of_preferences,
    numeric_points,
    round_length,
    round_means,
    smooth,
)
from parts import charts, controls, project, safe_text

_AT_FIRST = 4
_FIGURES = (
    "wall_s", "tokens_per_s", "peak_memory_gib", "n_steps", "n_trainable", "trainable_share", "size_bytes",
    "base_size_bytes",
)  # fmt: skip


def page() -> None:
    """Draw the page."""
    controls.heading("Training", "Loss by step: a line for training, diamonds for validation.")
    runs = project.runs()
    report = controls.report_if_any()
    _draw_trainings(runs, report)
    # Candidates that differ only in their training rows.
    for i, training_set in enumerate(report.training_sets if report else ()):
        section = sets_section(training_set, report.unit if report else RATE)
        st.subheader(safe_text.label(section.title), anchor=False)
        safe_text.table(section.columns, section.rows)
        safe_text.say_all(section.notes)
        controls.offer_csv(partial(controls.map_to_cells, section), f"training-rows-{i}")


def _draw_trainings(runs: list[Run], report: ExperimentReport | None) -> None:
    # One run for each training: candidates that borrow weights have the same log.
    seen: set[object] = set()
    distinct = {}
    shown = controls.runs_of(report, runs) or controls.newest(runs)
    for name, run in sorted(shown.items(), key=lambda named: bool(named[1].recipe.get("weights_of"))):
        key = run.training.fit_key
        if run.recipe.get("weights_of") and key in seen:
            continue
        seen.add(key)
        distinct[name] = run
    trained = {name: run for name, run in distinct.items() if len(numeric_points(run.training.loss)) > 1}
    if not trained:
        controls.show_empty("No training was logged yet.")
        return
    first = list(trained)[:_AT_FIRST]
    chosen = controls.choose_candidates("training", list(trained), first, title="Candidates")
    if not chosen:
        return
    _draw({name: trained[name] for name in chosen})
    for name in chosen:
        if diagnosis := diagnose(trained[name].training):
            st.text(f"{name} {diagnosis.sentence}.")
    tracked = {name: trained[name] for name in chosen if trained[name].training.tracked}
    _draw_points({name: run.training for name, run in tracked.items()})
    sign = report.unit.sign if report else 1
    safe_text.say_all(
        f"{name}: {sentence}."
        for name, run in tracked.items()
        if not run.recipe.get("weights_of")
        and (sentence := front_sentence(run.candidate, run.training, sign))
    )
    _draw_steps({name: trained[name].training for name in chosen})
    costs = {f.run_id: usd(f.training_cost_usd) for f in report.facts} if report else {}
    rows = [_row(name, trained[name], costs.get(trained[name].run_id, UNKNOWN)) for name in chosen]
    controls.show_rows(rows, "training")
    for name in chosen:
        _show_more(name, trained[name], report)


def _draw(chosen: Mapping[str, Run]) -> None:
    """Draw likelihood and preference losses in separate plots."""
    by_kind: dict[bool, dict[str, charts.Curves]] = {False: {}, True: {}}
    for name, run in chosen.items():
        trials = [t for t in run.training.sweep if numeric_points(t.loss)]
        curves = {} if trials else {name: _curves(run.training)}
        for t in trials:
            params = ", ".join(f"{key}={value}" for key, value in t.params.items())
            curves[f"{name}[{params}]" + " (chosen)" * t.chosen] = _curves(t)
        by_kind[is_of_preferences(run.training)] |= curves
    if by_kind[False]:
        charts.draw(charts.curves(by_kind[False], "loss"), "training")
        st.caption(LIKELIHOOD)
    if by_kind[True]:
        charts.draw(charts.curves(by_kind[True], "preference loss"), "preferences", height=280)
        st.caption(PREFERENCES)


def _draw_points(tracked: Mapping[str, TrainingRecord]) -> None:
    """Draw target and capability along the tracked trainings, and say when they forget."""
    targets = {
        name: ([(p.step, p.target) for p in record.tracked if p.target is not None], ())
        for name, record in tracked.items()
    }
    changes = {
        name: ([(p.step, 100 * p.capability) for p in record.tracked if p.capability is not None], ())
        for name, record in tracked.items()
    }
    if any(points for points, _ in targets.values()):
        charts.draw(charts.curves(targets, "target, on validation"), "tracked-target", height=280)
    if any(points for points, _ in changes.values()):
        charts.draw(charts.curves(changes, "capability, points against the base"), "tracked", height=280)
    for name, record in tracked.items():
        if sentence := describe_forgetting(record):
            st.text(f"{name} {sentence}.")


def _draw_steps(chosen: Mapping[str, TrainingRecord]) -> None:
    accuracies = {
        name: (round_means(r.token_accuracy, round_length(r)), numeric_points(r.validation_token_accuracy))
        for name, r in chosen.items()
        if r.token_accuracy
    }
    rates = {name: (numeric_points(r.learning_rate), ()) for name, r in chosen.items() if r.learning_rate}
    if not accuracies and not rates:
        return
    with st.expander("Token accuracy and learning rate by step"):
        if accuracies:
            charts.draw(charts.curves(accuracies, "token accuracy"), "token-accuracy", height=280)
        if rates:
            charts.draw(charts.curves(rates, "learning rate"), "learning-rate", height=280)


def _curves(training: TrainingRecord | Trial) -> charts.Curves:
    return smooth(training), numeric_points(training.validation_loss)


def _row(name: str, run: Run, cost: str) -> dict[str, Any]:
    record = run.training
    return {
        "candidate": name,
        "loss": "preference" if is_of_preferences(record) else "likelihood",
        "last training loss": plain(smooth(record)[-1][1]),
        "best validation loss": plain(record.best_validation_loss),
        "overfitting gap": plain(gap(record), sign=True),
        "cost USD": cost,
        **{figure_title(figure): figure_text(figure, getattr(record, figure)) for figure in _FIGURES},
    }


def _show_more(name: str, run: Run, report: ExperimentReport | None) -> None:
    pair_curves = ("reward_margin", "reward_accuracy", "heldout_margin", "heldout_accuracy")
    curves = (*pair_curves, "reward", "equal_rewards", "kl")
    rewards = {name: getattr(run.training, name) for name in curves}
    others = {key: value for key, value in rewards.items() if numeric_points(value)}
    sweep = run.training.sweep
    if others or sweep:
        with st.expander(safe_text.label(name)):
            for key, value in others.items():
                st.text(f"{key.replace('_', ' ')}: {figure_text(key, value)}")
            if sweep:
                metric, unit = (report.metric, report.unit) if report else ("score", RATE)
                section = trials_section(sweep, run.training.searched_by, metric, unit, name)
                st.text(section.lead)
                st.dataframe(controls.map_to_cells(section), hide_index=True)


page()
