"""Pictures of trainings: the loss by step, smoothed so that it says how well rows are known.

Invariant: the axis of a loss begins at 0 and nothing is drawn that was not logged. Batches hold rows of like
length, so a mean covers a round, in which rows of every length come by once; with less, it would say where in
the round it stands.
Source: `get_length_grouped_indices` of transformers; a round is a quarter of an epoch, at most 50 steps.
"""

from math import isfinite
from statistics import fmean

from harness import formatting
from harness.records import Curve, TrainingRecord, Trial
from harness.report.plots.svg import AxisScale, axes, group, line, mark, path, picture, text

LIKELIHOOD = (
    "Loss is the mean negative log-likelihood of the answers. Training loss is averaged over a round, in "
    "which rows of every length come by: a quarter of an epoch, at most 50 steps. The overfitting gap is the "
    "validation loss less that mean, where validation was last measured; above 0, rows trained on are known "
    "better than others."
)
PREFERENCES = (
    "The loss of a training on preferences is another one: that of DPO is −log σ of the reward margin, 0.69 "
    "where chosen and rejected answers are not told apart; that of a training on rewards says less than its "
    "reward. Validation loss is the same of the pairs held out; "
    "held-out accuracy is the share of them in which the chosen answer is preferred, and 50 % is a guess."
)
_ROUNDS, _LONGEST_ROUND = 4, 50  # rounds an epoch at least, steps a round at most


def numeric_points(curve: Curve) -> list[tuple[float, float]]:
    """Keep the points of a curve whose value is a number."""
    return [(step, value) for step, value in curve if value is not None and isfinite(value)]


def smooth(training: TrainingRecord | Trial) -> list[tuple[float, float]]:
    """Average the training loss of each step with those before it, over a round."""
    return round_means(training.loss, round_length(training))


def round_means(curve: Curve, span: int) -> list[tuple[float, float]]:
    """Average each point of a curve with those before it, `span` of them in all."""
    points = numeric_points(curve)
    return [
        (points[i][0], fmean(value for _, value in points[max(0, i + 1 - span) : i + 1]))
        for i in range(len(points))
    ]


def round_length(training: TrainingRecord | Trial) -> int:
    """Count the logged steps of a round.

    An epoch ends where validation is first measured; without validation all steps count as one.
    """
    train, validation = numeric_points(training.loss), numeric_points(training.validation_loss)
    epoch = sum(step <= validation[0][0] for step, _ in train) if validation else len(train)
    return max(1, min(epoch // _ROUNDS, _LONGEST_ROUND))


def gap(training: TrainingRecord) -> float | None:
    """Subtract the training loss over the last round from the validation loss, at the last step validated.

    Above 0 the rows trained on are known better than others: overfitting. None without validation, and
    where labels were smoothed in training alone, which makes two kinds of loss.
    """
    validation = numeric_points(training.validation_loss)
    if not validation or training.label_smoothing:
        return None
    step, loss = validation[-1]
    before = [mean for at, mean in smooth(training) if at <= step]
    return loss - before[-1] if before else None


def is_of_preferences(training: TrainingRecord) -> bool:
    """Tell whether the loss is one of preferences or rewards, and no likelihood of answers."""
    return bool(training.reward_margin or training.reward)


_WIDTH, _HEIGHT = 430.0, 250.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 44.0, 416.0, 40.0, 208.0
LONGEST = 20  # cells of a title, which the legend follows


def curves(label: str, training: TrainingRecord, title: str) -> str:
    """Draw the loss on training and validation rows; empty where no curve was kept.

    The `title` stands over the picture, for at most `LONGEST` cells.
    """
    train, validation = numeric_points(training.loss), numeric_points(training.validation_loss)
    if len(train) < 2:
        return ""
    both = [*train, *validation]
    x = AxisScale(0, max(step for step, _ in both), _LEFT, _RIGHT)
    y = AxisScale(0, 1.05 * max(loss for _, loss in both) or 1.0, _BOTTOM, _TOP)
    body = [
        text(0, 14, title, "strong"),
        *_legend(bool(validation)),
        *axes(x, y, "step", _loss_name(training)),
    ]
    body.append(path(((x(step), y(loss)) for step, loss in train), "batch"))
    body.append(path(((x(step), y(loss)) for step, loss in smooth(training)), "train"))
    body += [path(((x(step), y(loss)) for step, loss in validation), "validation")] if validation else []
    body += [_validation_mark(step, loss, x, y) for step, loss in validation]
    return picture(_WIDTH, _HEIGHT, f"{_loss_name(training).capitalize()} of {label} by step", body)


def _loss_name(training: TrainingRecord) -> str:
    return "preference loss" if is_of_preferences(training) else "loss"


def _validation_mark(step: float, loss: float, x: AxisScale, y: AxisScale) -> str:
    said = f"step {formatting.count(step)}: validation loss {formatting.plain(loss)}"
    beside = text(x(step) - 9, y(loss) - 9, formatting.plain(loss), "over small", "end")
    return group(said, mark("diamond", x(step), y(loss), "validated"), beside)


def _legend(validated: bool) -> list[str]:
    out = [line(150, 10, 170, 10, "train"), text(175, 14, "training, mean of a round", "small")]
    if validated:
        out += [mark("diamond", 338, 10, "validated"), text(350, 14, "validation", "small")]
    return out
