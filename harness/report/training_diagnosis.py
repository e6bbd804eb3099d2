"""Diagnosis of one training: underfitting, overfitting or neither from losses, forgetting from points.

Invariant: it rests on what was logged alone, says which figures, and says nothing of a training on
preferences or with smoothed labels, whose loss is no likelihood, nor of less than two rounds of steps.
Source: Goodfellow, Bengio and Courville 2016, *Deep Learning*, section 5.2, for the terms. The limits are
this project's own: a change of a twentieth is more than validation on a hundred rows varies by.
"""

from typing import NamedTuple

from harness.formatting import count, plain, points
from harness.records import TrackedPoint, TrainingRecord
from harness.report.plots.loss_curves import is_of_preferences, numeric_points, round_length, smooth
from harness.stats import pareto_front

_CHANGE = 0.05  # of a loss, and more is a change
_KNOWN_BY_HEART = 0.1  # nats a token of the rows trained on


class Diagnosis(NamedTuple):
    """Kind of a training (`underfits`, `overfits`, `memorizes` or `fits`), and a sentence that says why."""

    kind: str
    sentence: str


def diagnose(training: TrainingRecord) -> Diagnosis | None:
    """Diagnose a training; None where its losses do not say."""
    train, span = smooth(training), round_length(training)
    if is_of_preferences(training) or training.label_smoothing or len(train) < 2 * span:
        return None
    return (
        _overfits(training, train)
        or _underfits(train, span)
        or _memorizes(training, train)
        or _fits(training, train)
    )


Points = list[tuple[float, float]]


def _overfits(training: TrainingRecord, train: Points) -> Diagnosis | None:
    """Find a validation loss that rose from its best while the training loss went on falling."""
    validation = numeric_points(training.validation_loss)
    if len(validation) < 2:
        return None
    step, best = min(validation, key=lambda point: point[1])
    last = validation[-1][1]
    then = [loss for at, loss in train if at <= step]
    if last <= best * (1 + _CHANGE) or not then or train[-1][1] >= then[-1]:
        return None
    return Diagnosis(
        "overfits",
        f"overfits after step {count(step)}: validation loss rose from {plain(best)} to {plain(last)} while "
        f"training loss fell from {plain(then[-1])} to {plain(train[-1][1])}; fewer epochs would do",
    )


def _underfits(train: Points, span: int) -> Diagnosis | None:
    """Find a training loss that hardly fell, or was still falling when the last round began."""
    first, before, last = train[span - 1][1], train[-1 - span][1], train[-1][1]
    if last > first * (1 - _CHANGE):
        said = f"training loss went from {plain(first)} to {plain(last)}; a higher learning rate may help"
        return Diagnosis("underfits", f"underfits: {said}")
    if last > _KNOWN_BY_HEART and last < before * (1 - 2 * _CHANGE):
        said = f"training loss was still falling, from {plain(before)} to {plain(last)} in the last round"
        return Diagnosis("underfits", f"underfits: {said}; more epochs may help")
    return None


def _memorizes(training: TrainingRecord, train: Points) -> Diagnosis | None:
    """Find rows that are known by heart: a training loss near zero, far below that of validation."""
    validation, last = numeric_points(training.validation_loss), train[-1][1]
    if not validation or last >= _KNOWN_BY_HEART or validation[-1][1] <= 2 * last + _CHANGE:
        return None
    said = f"training loss {plain(last)}, validation loss {plain(validation[-1][1])}"
    return Diagnosis("memorizes", f"knows its training rows by heart: {said}; more rows would do more")


def _fits(training: TrainingRecord, train: Points) -> Diagnosis:
    said = f"training loss levelled off at {plain(train[-1][1])}"
    if validation := numeric_points(training.validation_loss):
        said += f", validation loss {plain(validation[-1][1])}"
    if training.n_replayed:
        said += ", which holds none of the rows replayed"
    return Diagnosis("fits", f"neither underfits nor overfits: {said}")


def describe_forgetting(training: TrainingRecord) -> str:
    """Say whether a tracked training forgets, and early or late; empty where nothing was measured.

    Early is by half of its steps at least half of what is lost in the worst place, at a point that is shown
    to have lost something.
    """
    known = [point for point in training.tracked if point.capability is not None]
    if not known:
        return ""
    lost = [point for point in known if point.high is not None and point.high < 0]
    if not lost:
        return f"is not seen to forget: capability {_capability(known[-1])}"
    worst = min(lost, key=_change)
    first = next(point for point in lost if _change(point) <= _change(worst) / 2)
    steps = training.n_steps or known[-1].step
    when = "early" if 2 * first.step <= steps else "late"
    later = "" if first is worst else f", and {_capability(worst)}"
    return f"forgets {when}: capability {_capability(first)} of {count(steps)}{later}"


def front_sentence(name: str, training: TrainingRecord, sign: int = 1) -> str:
    """Say which steps of a tracked training no other beats in both target and capability, its end aside.

    `sign` is −1 where lower scores on the target are better. Empty where there is no such step.
    """
    known = [(p, p.target, p.capability) for p in training.tracked if p.target is not None]
    found = [(p, sign * target, kept) for p, target, kept in known if kept is not None]
    if not found:
        return ""
    front = [found[i][0].step for i in pareto_front([(target, kept) for _, target, kept in found])]
    end = training.n_steps or found[-1][0].step
    earlier = sorted(step for step in front if step != end)
    if not earlier:
        return ""
    recipe = f"{{method: checkpoint, init_from: {name}, params: {{step: {earlier[0]}}}}}"
    steps = f"step{'s' * (len(earlier) > 1)} {', '.join(map(count, earlier))}"
    said = f"{steps} of its training on the front of target and capability"
    return f"{said}: {recipe} is such a candidate, without training"


def _change(point: TrackedPoint) -> float:
    return point.capability or 0.0


def _capability(point: TrackedPoint) -> str:
    return f"{points(point.capability, point.low, point.high)} points at step {count(point.step)}"
