"""Tables of trainings: their figures, trials of a sweep or search, and sets of training rows compared.

Invariant: every score has its interval, every change is paired on the same test items, and costs stand beside
what they bought.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from harness import formatting
from harness.decision import VARIANCE_UNKNOWN, CandidateFacts, TrainingSet, TrainingSets
from harness.formatting import RATE, UNKNOWN, Unit, count, percent, plain, score, seconds
from harness.records import TRAINING, TrainingRecord, Trial
from harness.report.document import Section
from harness.report.escape import clean
from harness.report.plots import loss_curves
from harness.report.training_diagnosis import describe_forgetting, diagnose
from harness.report.wording import figure_text
from harness.store import TrialRun

_TITLES = {figure.name: figure.heading for figure in TRAINING}
_NOT_MEASURED = ("sweep", "searched_by", "stands_on", "scan", "tracked", "learning_rate", "loss_scale")


def show_trainings(trained: Sequence[CandidateFacts]) -> Section:
    """Show the measured figures of each training run; one row a candidate."""
    figures = [_figures(f.training) for f in trained]
    names = list(dict.fromkeys(name for of in figures for name in of))
    columns = ["candidate", "training examples", "cost USD", *map(figure_title, names)]
    rows = [
        [
            f.label,
            formatting.count(f.n_train),
            formatting.usd(f.training_cost_usd),
            *(figure_text(name, of.get(name)) for name in names),
        ]
        for f, of in zip(trained, figures, strict=True)
    ]
    kinds = {loss_curves.is_of_preferences(f.training) for f in trained if loss_curves.smooth(f.training)}
    found = ((f.label, diagnose(f.training)) for f in trained)
    notes = [f"{label} {of.sentence}." for label, of in found if of]
    notes += [f"{f.label} {said}." for f in trained if (said := describe_forgetting(f.training))]
    notes += [loss_curves.LIKELIHOOD] * (False in kinds) + [loss_curves.PREFERENCES] * (True in kinds)
    return Section("training", "Training", columns, rows, notes=notes)


def _figures(training: TrainingRecord) -> dict[str, Any]:
    """Return what is shown of a training: the loss without the order of its rows, and the overfitting gap."""
    found = {name: value for name, value in training.to_plain().items() if name not in _NOT_MEASURED}
    if mean := loss_curves.smooth(training):
        found["loss"] = mean
    gap = loss_curves.gap(training)
    return found if gap is None else {**found, "overfitting_gap": gap}


def figure_title(name: str) -> str:
    """Turn the name of a measured figure into words; a time carries its unit itself."""
    if name in _TITLES:
        return _TITLES[name]
    return clean((name if name.endswith("_per_s") else name.removesuffix("_s")).replace("_", " "))


def trials_section(trials: Sequence[Trial], searched_by: str, metric: str, unit: Unit, label: str) -> Section:
    """Lay out every trial of a sweep or search in its order, and which one validation chose."""
    named = list(trials[0].params) if trials else []
    steps, is_bound = any(one.points for one in trials), any(one.forgetting is not None for one in trials)
    columns = [*named, *["steps"] * steps, f"validation {metric}"]
    columns += [*["forgetting on validation, %"] * is_bound, "time", "weights", ""]
    rows = []
    for one in trials:
        lost = "failed" if one.error else "diverged"
        found = lost if one.validation is None else score(unit, one.validation)
        forgot = UNKNOWN if one.forgetting is None else percent(one.forgetting)
        taken = seconds(one.wall_s) if one.wall_s else UNKNOWN
        weights = UNKNOWN if one.validation is None else one.fit_key or UNKNOWN
        said = [*[_steps(one)] * steps, found, *[forgot] * is_bound, taken, weights, _outcome(one)]
        rows.append([*map(print_tried_value, one.params.values()), *said])
    title = f"{'Search' if searched_by else 'Sweep'}: {label}"
    return Section("sweep", title, columns, rows, _trials_text(trials, searched_by), label=label)


def _trials_text(trials: Sequence[Trial], searched_by: str) -> str:
    """Say how many trials there were, who proposed them, how much they trained, and what bound the choice."""
    by = f", proposed by {searched_by}" if searched_by else ""
    said = [f"{count(len(trials))} trials on validation rows{by}."] if searched_by else []
    if any(trial.is_pruned for trial in trials):
        whole = max(len(trial.points) for trial in trials)
        spent = sum((len(trial.points) or whole) / whole for trial in trials)
        said.append(f"With pruned ones they take as much training as {plain(spent)} whole trials.")
    if most := max((t.most_forgetting for t in trials if t.most_forgetting is not None), default=None):
        said.append(_constraint_text(trials, most))
    for trial in trials:
        if trial.alike:
            same = "; ".join(map(_params_text, (trial.params, *trial.alike)))
            said.append(f"Sent as equal values, so one trial: {same}.")
    return " ".join(said)


def trial_line(one: TrialRun) -> str:
    """Say on one line what a trial tried, and what became of it."""
    return f"{_params_text(one.trial.params)}: {_result_text(one)}"


def _params_text(params: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {print_tried_value(value)}" for name, value in params.items())


def print_tried_value(value: object) -> str:
    """Print a value that was tried: a text in one line, promptings with their parameters."""
    if isinstance(value, dict):
        return " and ".join(
            f"{name}({', '.join(f'{key}={given}' for key, given in params.items())})" if params else name
            for name, params in value.items()
        )
    return "as written" if value is None else " ".join(str(value).split())


def _result_text(one: TrialRun) -> str:
    if one.state == "failed":
        return one.run.error
    (known,) = one.run.metrics.values()
    unit = RATE if known[one.metric].is_rate else Unit(1.0, one.metric)
    found = f"{one.metric} {score(unit, one.trial.validation)}{' %' if unit.is_rate else ''} on validation"
    return f"{found}, pruned at step {count(one.trial.pruned_at)}" if one.trial.is_pruned else found


def _constraint_text(trials: Sequence[Trial], most: float) -> str:
    bound = f"{percent(most)} % on general items for validation"
    keeping = any(t.forgetting is not None and t.forgetting <= most for t in trials)
    if keeping:
        return f"The best was chosen among those that forgot at most {bound}."
    return f"The one that forgot least was chosen, as all forgot more than {bound}."


def _steps(trial: Trial) -> str:
    return count(trial.points[-1][0]) if trial.points else UNKNOWN


def _outcome(trial: Trial) -> str:
    if trial.is_pruned:
        return f"pruned at step {count(trial.pruned_at)}"
    return trial.error or ("chosen" if trial.chosen else "")


_QUANTITY = (
    "rows are counted as trained: one that occurs twice or is sampled again counts each time; in brackets the"
    " labelled ones, where a mixture drew some again; tokens are those of all epochs"
)


def sets_section(of: TrainingSets, unit: Unit) -> Section:
    """Lay out the candidates, the reference first."""
    title = f"Training rows, quality against quantity: {of.method}"
    reached = ("score", "change", "p", "p corrected")
    columns = ("candidate", "trained on", "rows", "tokens", *reached, "labels USD", "training USD")
    looked = f"p corrected for {formatting.pluralize(of.n_tests, 'look')} (Benjamini-Hochberg)"
    seeds = "" if of.seed_variance_known else f"; {VARIANCE_UNKNOWN} (fewer than 3 seeds)"
    note = f"{title}: paired on test with {of.reference}, {looked}; {_QUANTITY}{seeds}"
    rows = [_set_row(one, of, unit) for one in of.sets]
    return Section("training sets", title, columns, rows, notes=[note])


def _set_row(one: TrainingSet, of: TrainingSets, unit: Unit) -> list[str]:
    change = formatting.change(unit, *one.difference[:3]) if one.difference else formatting.UNKNOWN
    ends = one.estimate[1:3] if one.estimate else ()
    reached = [
        formatting.score(unit, one.score, *ends),
        "(reference)" if one.candidate == of.reference else change,
        formatting.p_value(one.p),
        formatting.p_value(one.p_adjusted),
    ]
    rows = formatting.count(one.n_rows)
    if one.n_labelled not in (None, one.n_rows):
        rows = f"{rows} ({formatting.count(one.n_labelled)})"
    costs = [formatting.usd(one.label_cost_usd), formatting.usd(one.training_cost_usd)]
    return [one.candidate, one.source, rows, formatting.count(one.n_tokens), *reached, *costs]
