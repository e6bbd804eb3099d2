"""Proposals of `harness init` from rows, without a model: the base's tokenizer is absent."""

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


def request(folder, data, **fields):
    """Make a request for a file, or for rows; other arguments are fields of the request."""
    path = write(folder / "mine.jsonl", data) if isinstance(data, list) else str(data)
    return Request(folder / "new", path, **{"base_model": "org/name"} | fields)


def propose(folder, data, **fields):
    return scaffold.propose(request(folder, data, **fields), HERE)


def read_evaluated(task):
    """Read the items that a task evaluates: with folds, all training rows."""
    items = load_task(task, 0)
    return [*items.validation, *items.test]
