"""Training: losses of one or several candidates in one plot, time and cost, and the training rows."""

from collections.abc import Mapping
from functools import partial

import streamlit as st

from harness.formatting import RATE, UNKNOWN, plain, usd
from harness.records import Run, TrainingRecord, Trial
from harness.report import (
    ExperimentReport,
    compare_rates,
    describe_forgetting,
    diagnose,
    figure_text,
    figure_title,
    front_sentence,
    sets_section,
    training_tables,
    trials_section,
)
from parts import charts, controls, project, safe_text

_AT_FIRST = 4
_REWARDS = (
    "reward_margin", "reward_accuracy", "heldout_margin", "heldout_accuracy", "reward", "equal_rewards", "kl",
)  # fmt: skip
_FIGURES = (
    "wall_s", "tokens_per_s", "peak_memory_gib", "n_steps", "n_trainable", "trainable_share", "size_bytes",
    "base_size_bytes",
)  # fmt: skip


def page() -> None:
    """Draw the page."""
    controls.heading("Training", "Loss by step: a line for training, diamonds for validation.")
    runs, report = project.runs(), controls.report_if_any()
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
    seen_keys, trained_runs = set[object](), dict[str, Run]()
    shown_runs = controls.runs_of(report, runs) or controls.newest(runs)
    for name, run in sorted(shown_runs.items(), key=lambda item: bool(item[1].recipe.get("weights_of"))):
        is_new = not run.recipe.get("weights_of") or run.training.fit_key not in seen_keys
        seen_keys.add(run.training.fit_key)
        if is_new and len(training_tables.numeric_points(run.training.loss)) > 1:
            trained_runs[name] = run
    if not trained_runs:
        controls.show_empty("No training was logged yet.")
        return
    names, first = list(trained_runs), list(trained_runs)[:_AT_FIRST]
    chosen = controls.choose_candidates("training", names, first, title="Candidates")
    if not chosen:
        return
    records = {name: trained_runs[name].training for name in chosen}
    _draw_losses(records)
    for name, record in records.items():
        if diagnosis := diagnose(record):
            st.text(f"{name} {diagnosis[1]}.")
        if sentence := compare_rates(record):
            st.text(f"{name}: {sentence}")
    _draw_points({name: record for name, record in records.items() if record.tracked})
    sign = report.unit.sign if report else 1
    safe_text.say_all(
        f"{name}: {sentence}."
        for name, record in records.items()
        if record.tracked
        and not trained_runs[name].recipe.get("weights_of")
        and (sentence := front_sentence(trained_runs[name].candidate, record, sign))
    )
    costs = {f.run_id: usd(f.training_cost_usd) for f in report.facts} if report else {}
    rows = [
        {
            "candidate": name,
            "loss": "preference" if training_tables.is_of_preferences(record) else "likelihood",
            "last training loss": plain(training_tables.smooth(record)[-1][1]),
            "best validation loss": plain(record.best_validation_loss),
            "overfitting gap": plain(training_tables.gap(record), sign=True),
            "cost USD": costs.get(trained_runs[name].run_id, UNKNOWN),
            **{figure_title(figure): figure_text(figure, plain_record.get(figure)) for figure in _FIGURES},
        }
        for name, record in records.items()
        for plain_record in [record.to_plain()]
    ]
    controls.show_rows(rows, "training")
    for name, record in records.items():
        reward_curves = {
            key: value for key in _REWARDS if training_tables.numeric_points(value := getattr(record, key))
        }
        if reward_curves or record.sweep:
            with st.expander(safe_text.label(name)):
                for key, value in reward_curves.items():
                    st.text(f"{key.replace('_', ' ')}: {figure_text(key, value)}")
                if record.sweep:
                    metric, unit = (report.metric, report.unit) if report else ("score", RATE)
                    section = trials_section(record, metric, unit, name)
                    if section.lead:
                        st.text(section.lead)
                    st.dataframe(controls.map_to_cells(section), hide_index=True)


def _draw_points(tracked: Mapping[str, TrainingRecord]) -> None:
    """Draw target and capability along the tracked trainings, and say when they forget."""
    targets: dict[str, charts.Curves] = {}
    changes: dict[str, charts.Curves] = {}
    for name, record in tracked.items():
        targets[name] = [(p.step, p.target) for p in record.tracked if p.target is not None], ()
        capability_points = [(p.step, 100 * p.capability) for p in record.tracked if p.capability is not None]
        changes[name] = capability_points, ()
    if any(points for points, _ in targets.values()):
        charts.draw(charts.curves(targets, "target, on validation"), "tracked-target", height=280)
    if any(points for points, _ in changes.values()):
        charts.draw(charts.curves(changes, "capability, points against the base"), "tracked", height=280)
    for name, record in tracked.items():
        if sentence := describe_forgetting(record):
            st.text(f"{name} {sentence}.")


def _draw_losses(records: Mapping[str, TrainingRecord]) -> None:
    """Draw likelihood and preference losses in separate plots, then accuracies and learning rates."""
    by_kind: dict[bool, dict[str, charts.Curves]] = {False: {}, True: {}}
    accuracies: dict[str, charts.Curves] = {}
    rates: dict[str, charts.Curves] = {}
    for name, record in records.items():
        trials_by_label: dict[str, TrainingRecord | Trial] = {}
        for t in record.sweep:
            if training_tables.numeric_points(t.loss):
                params = ", ".join(f"{key}={value}" for key, value in t.params.items())
                trials_by_label[f"{name}[{params}]" + " (chosen)" * t.chosen] = t
        for label, source in (trials_by_label or {name: record}).items():
            by_kind[training_tables.is_of_preferences(record)][label] = (
                training_tables.smooth(source),
                training_tables.numeric_points(source.validation_loss),
            )
        if record.token_accuracy:
            means = training_tables.round_means(record.token_accuracy, training_tables.round_length(record))
            accuracies[name] = means, training_tables.numeric_points(record.validation_token_accuracy)
        if record.learning_rate:
            rates[name] = training_tables.numeric_points(record.learning_rate), ()
    if by_kind[False]:
        charts.draw(charts.curves(by_kind[False], "loss"), "training")
        st.caption(training_tables.LIKELIHOOD)
    if by_kind[True]:
        charts.draw(charts.curves(by_kind[True], "preference loss"), "preferences", height=280)
        st.caption(training_tables.PREFERENCES)
    if accuracies or rates:
        with st.expander("Token accuracy and learning rate by step"):
            if accuracies:
                charts.draw(charts.curves(accuracies, "token accuracy"), "token-accuracy", height=280)
            if rates:
                charts.draw(charts.curves(rates, "learning rate"), "learning-rate", height=280)


page()
