"""Table of the trials of a sweep or search: what each tried and found, which was pruned or chosen."""

from collections.abc import Sequence

from harness.formatting import RATE, UNKNOWN, Unit, count, percent, plain, score, seconds
from harness.records import Trial
from harness.report.document import Section
from harness.store import TrialRun


def trials_section(trials: Sequence[Trial], searched_by: str, metric: str, unit: Unit, label: str) -> Section:
    """Lay out every trial of a sweep or search in its order, and which one validation chose."""
    named = list(trials[0].params) if trials else []
    steps, is_bound = any(one.points for one in trials), any(one.forgetting is not None for one in trials)
    columns = [*named, *["steps"] * steps, f"validation {metric}"]
    columns += [*["forgetting on validation, %"] * is_bound, "time", "weights", ""]
    rows = []
    for one in trials:
        found = "diverged" if one.validation is None else score(unit, one.validation)
        forgot = UNKNOWN if one.forgetting is None else percent(one.forgetting)
        taken = seconds(one.wall_s) if one.wall_s else UNKNOWN
        weights = UNKNOWN if one.validation is None else one.fit_key or UNKNOWN
        said = [*[_steps(one)] * steps, found, *[forgot] * is_bound, taken, weights, _outcome(one)]
        rows.append([*map(tried_text, one.params.values()), *said])
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
    return " ".join(said)


def trial_line(one: TrialRun) -> str:
    """Say on one line what a trial tried, and what became of it."""
    tried = ", ".join(f"{name} {tried_text(value)}" for name, value in one.trial.params.items())
    return f"{tried}: {_result_text(one)}"


def tried_text(value: object) -> str:
    """Print a value that was tried: a text in one line, promptings with their parameters."""
    if isinstance(value, dict):
        return " and ".join(
            f"{name}({', '.join(f'{key}={given}' for key, given in params.items())})" if params else name
            for name, params in value.items()
        )
    return "none" if value is None else " ".join(str(value).split())


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
    return "chosen" if trial.chosen else ""
