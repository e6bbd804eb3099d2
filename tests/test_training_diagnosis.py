"""The diagnosis of a training from its losses."""

import pytest

from harness.records import TrackedPoint, TrainingRecord
from harness.report.training_tables import describe_forgetting, diagnose, front_sentence

EPOCH = 40


def make_falling_loss(to, start=2.0, n=EPOCH, level_from=0.5):
    reach = int(n * level_from)
    return tuple((i + 1, max(to, start - (start - to) * i / reach)) for i in range(n))


def record(loss, validation=(), **more):
    return TrainingRecord(loss=loss, validation_loss=validation, **more)


def test_a_loss_that_levels_off_is_neither_underfitting_nor_overfitting():
    found = diagnose(record(make_falling_loss(0.5), ((EPOCH, 0.6),)))
    assert found.kind == "fits"
    assert "levelled off at 0.500, validation loss 0.600" in found.sentence
    found = diagnose(record(make_falling_loss(0.5), ((EPOCH, 0.9),), n_replayed=40))
    assert found.sentence.endswith("validation loss 0.900, which holds none of the rows replayed")
    loss = make_falling_loss(0.5, n=2 * EPOCH, level_from=0.4)
    assert diagnose(record(loss, ((EPOCH, 0.60), (2 * EPOCH, 0.62)))).kind == "fits"


def test_validation_that_rises_while_training_falls_is_overfitting_from_the_best_step_on():
    loss = make_falling_loss(0.2, n=4 * EPOCH, level_from=1.0)
    validation = tuple((EPOCH * (i + 1), value) for i, value in enumerate((1.2, 0.9, 1.1, 1.4)))
    found = diagnose(record(loss, validation))
    assert found.kind == "overfits"
    assert "after step 80: validation loss rose from 0.900 to 1.400" in found.sentence


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (tuple((i + 1, 2.0 - 0.001 * i) for i in range(EPOCH)), "a higher learning rate may help"),
        (make_falling_loss(0.4, level_from=1.0), "still falling"),
    ],
)
def test_a_loss_that_hardly_fell_or_falls_still_is_underfitting(loss, said):
    found = diagnose(record(loss, ((EPOCH, 1.0),)))
    assert found.kind == "underfits"
    assert said in found.sentence


@pytest.mark.parametrize(
    "training",
    [
        TrainingRecord(),
        record(((1, 2.0),)),
        record(make_falling_loss(0.5), reward_margin=((1, 0.1),)),
        record(make_falling_loss(0.5), label_smoothing=0.1),
        record(tuple((i, None) for i in range(EPOCH))),
    ],
)
def test_losses_that_do_not_say_are_not_diagnosed(training):
    assert diagnose(training) is None


def make_changes(*changes, half=0.02):
    every = 100 // len(changes)
    points = tuple(
        TrackedPoint(
            step=every * (i + 1), target=0.5, capability=x, low=x - half, high=x + half, n_general=99
        )
        for i, x in enumerate(changes)
    )
    return TrainingRecord(n_steps=100, tracked=points)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ((-0.05, -0.06, -0.07, -0.08), "forgets early: capability −5.0 [−7, −3] points at step 25 of 100"),
        ((0.0, -0.01, -0.03, -0.08), "forgets late: capability −8.0 [−10, −6] points at step 100"),
        ((0.0, -0.01, 0.0, -0.015), "is not seen to forget: capability −1.5 [−4, +1] points"),
    ],
)
def test_points_along_a_training_say_whether_it_forgets_and_when(changes, said):
    assert describe_forgetting(make_changes(*changes)).startswith(said)


def make_points(*points):
    """Return a training of 40 steps with such points: step, target, capability."""
    made = (TrackedPoint(step=step, target=target, capability=kept) for step, target, kept in points)
    return TrainingRecord(n_steps=40, tracked=tuple(made))


def test_steps_that_no_other_beats_in_target_and_capability_are_named_with_the_recipe_of_one():
    made = make_points((10, 0.4, -0.01), (20, 0.6, -0.02), (30, 0.5, -0.03), (40, 0.7, -0.08))
    assert front_sentence("lora", made) == (
        "steps 10, 20 of its training on the front of target and capability: {method: checkpoint, init_from: lora, "
        "params: {step: 10}} is such a candidate, without training"
    )
    made = make_points((10, 0.9, -0.08), (20, 0.2, -0.02), (40, 0.1, -0.03))
    assert front_sentence("lora", made, sign=-1).startswith("step 20 of its training on the front")
    assert front_sentence("lora", make_points((20, 0.4, -0.02), (40, 0.5, -0.01))) == ""
    assert front_sentence("lora", TrainingRecord(tracked=(TrackedPoint(step=5, target=0.5),))) == ""
