"""The loss of a training, smoothed so that it says how well rows are known, not which rows come next.

Invariant: batches hold rows of like length, so a mean covers a round, in which rows of every length come
by once; with less, it would say where in the round it stands.
Source: `get_length_grouped_indices` of transformers; a round is a quarter of an epoch, at most 50 steps.
"""

from math import isfinite
from statistics import fmean

from harness.records import Curve, TrainingRecord, Trial

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
_ROUNDS, _LONGEST = 4, 50  # rounds an epoch at least, steps a round at most


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
    return max(1, min(epoch // _ROUNDS, _LONGEST))


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


def of_preferences(training: TrainingRecord) -> bool:
    """Tell whether the loss is one of preferences or rewards, and no likelihood of answers."""
    return bool(training.reward_margin or training.reward)
