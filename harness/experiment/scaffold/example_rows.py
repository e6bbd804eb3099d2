"""Example rows: the counter of a library for tools, to be edited by who has no rows yet."""

import csv
from pathlib import Path

from harness.errors import Problem, refuse


def write_example(folder: Path) -> Path:
    """Write rows of a small example, to be edited; returns their path.

    Raises:
        UserError: the folder holds an experiment or such rows already.
    """
    path = folder / "example.csv"
    refuse([existing_file(at) for at in (path, folder / "harness.yaml") if at.exists()])
    rows = [
        (form.format(thing), label)
        for label, forms in _EXAMPLE.items()
        for form in forms
        for thing in _THINGS
    ]
    folder.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return path


# The counter of a library for tools: what people write, by what they want.
_THINGS = ("drill", "ladder", "tent", "sewing machine", "projector")
_EXAMPLE = {
    "borrow": (
        "May I have the {} from Friday on?",
        "Is the {} free this weekend?",
        "I would like to take the {}.",
    ),
    "return": ("When do you take the {} back?", "I am bringing the {} tonight.", "Where do I leave the {}?"),
    "extend": (
        "Can I keep the {} a week longer?",
        "I need the {} until Monday.",
        "More time with the {}, please.",
    ),
    "broken": (
        "The {} does not work any more.",
        "A part of the {} came off.",
        "Your {} was damaged when I got it.",
    ),
}


def existing_file(path: Path) -> Problem:
    """Return the problem of a file that would be overwritten."""
    return Problem(
        str(path), "a file that is there already", "a new file", "choose another folder, or move it away"
    )
