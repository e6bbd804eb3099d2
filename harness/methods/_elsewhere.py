"""Whole models that others made, held against the base that they are to stand in for.

Invariant: configurations and the headers of safetensors are read, never a pickle and no tensor.
"""

from collections.abc import Iterator
from pathlib import Path

from harness.errors import Problem, UserError
from harness.models.hub import ModelSource, architecture_difference
from harness.models.weight_files import read_config, refuse_damaged

PICKLED = "adapter_model.bin"


def model_problems(folder: Path, source: ModelSource, where: str) -> Iterator[Problem]:
    """Compare the layers of a whole model with those of the base, where its files are whole."""
    try:
        read_config(folder)
        refuse_damaged(folder)
    except UserError as damaged:
        yield from damaged.problems
        return
    if found := architecture_difference(folder, source.path):
        step = f"name it as base_model: {folder} of an experiment of its own"
        yield Problem(where, found, f"the architecture of {source.name}", step)
