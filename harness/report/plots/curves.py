"""The loss of one training by step: every batch, their mean over a round, and validation.

Invariant: the axis of the loss begins at 0; nothing is drawn that was not logged.
"""

from harness import formatting
from harness.records import TrainingRecord
from harness.report.plots.loss_curves import numeric_points, of_preferences, smooth
from harness.report.plots.svg import Scale, axes, group, line, mark, path, picture, text

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
    x = Scale(0, max(step for step, _ in both), _LEFT, _RIGHT)
    y = Scale(0, 1.05 * max(loss for _, loss in both) or 1.0, _BOTTOM, _TOP)
    body = [text(0, 14, title, "strong"), *_legend(bool(validation)), *axes(x, y, "step", _of(training))]
    body.append(path(((x(step), y(loss)) for step, loss in train), "batch"))
    body.append(path(((x(step), y(loss)) for step, loss in smooth(training)), "train"))
    body += [path(((x(step), y(loss)) for step, loss in validation), "validation")] if validation else []
    body += [_validation_mark(step, loss, x, y) for step, loss in validation]
    return picture(_WIDTH, _HEIGHT, f"{_of(training).capitalize()} of {label} by step", body)


def _of(training: TrainingRecord) -> str:
    return "preference loss" if of_preferences(training) else "loss"


def _validation_mark(step: float, loss: float, x: Scale, y: Scale) -> str:
    said = f"step {formatting.count(step)}: validation loss {formatting.plain(loss)}"
    beside = text(x(step) - 9, y(loss) - 9, formatting.plain(loss), "over small", "end")
    return group(said, mark("diamond", x(step), y(loss), "validated"), beside)


def _legend(validated: bool) -> list[str]:
    out = [line(150, 10, 170, 10, "train"), text(175, 14, "training, mean of a round", "small")]
    if validated:
        out += [mark("diamond", 338, 10, "validated"), text(350, 14, "validation", "small")]
    return out
