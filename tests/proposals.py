"""Proposals of `harness init` from rows, without a model: the base's tokenizer is not here."""

import csv

from checked_rows import write

from harness.data import load_task
from harness.experiment import scaffold
from harness.experiment.scaffold import Request, Resources
from harness.models.hardware import Machine, Memory

HERE = Resources(Machine("cpu", "a machine", "fp32", 1000.0), Memory(64.0, 80.0, "memory"))


def write_csv(folder, lines, name="mine.csv"):
    with (folder / name).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(lines)
    return folder / name


def request(folder, data, **given):
    """Request a proposal for a file, or for rows; other arguments are fields of the request."""
    path = write(folder / "mine.jsonl", data) if isinstance(data, list) else str(data)
    return Request(folder / "new", path, **{"base_model": "org/name"} | given)


def propose(folder, data, **given):
    return scaffold.propose(request(folder, data, **given), HERE)


def read_evaluated(task):
    """Read the items that a task evaluates: in folds those are all rows to train on."""
    items = load_task(task, 0)
    return [*items.validation, *items.test]
