"""Bases that fit no GPU as published: one that all trainings on it quantise is measured so itself.

Invariant: the choice rests on sizes and recipes alone. A base on which anything is trained in 16 bits stays
as it is published, and is spread over what memory there is when it answers.
"""

from collections.abc import Iterator, Mapping

from harness import plugins
from harness.errors import Problem, refuse
from harness.models.devices import Room, weights_bytes
from harness.models.hardware import Machine
from harness.models.hub import ModelSource, quantize
from harness.models.memory import OVERHEAD_GB
from harness.spec import Experiment


def choose_quantization(
    experiment: Experiment, sources: Mapping[str, ModelSource], machine: Machine, room: Room
) -> dict[str, ModelSource]:
    """Return the bases, quantised where they do not fit all GPUs together and all trainings quantise them.

    Raises:
        UserError: a candidate is to be served in 16 bits on one of these.
    """
    gpus = [n for name, n in room.items() if name != "cpu"]
    able = sum(gpus) - len(gpus) * OVERHEAD_GB * 1e9
    out = dict(sources)
    for name, source in sources.items():
        wanted = set(_quantizations(experiment, name))
        if gpus and len(wanted) == 1 and weights_bytes(source, machine.precision) > able:
            out[name] = quantize(source, wanted.pop())
    refuse(_sixteen_bit_problems(experiment, out))
    return out


def _quantizations(experiment: Experiment, name: str) -> Iterator[str]:
    """Yield what each training on a base quantises it to; empty of one in 16 bits."""
    for recipe in experiment.candidates.values():
        method = plugins.method(recipe.method)
        starts = not (recipe.weights_of or recipe.init_from or recipe.merges)
        if (recipe.base_model or experiment.base_model) == name and starts and method.tunes:
            yield recipe.quantization or method.quantization


def _sixteen_bit_problems(experiment: Experiment, sources: Mapping[str, ModelSource]) -> Iterator[Problem]:
    """Yield that a candidate is to be served in 16 bits on a base that does not fit so."""
    for name, recipe in experiment.candidates.items():
        source = sources.get(recipe.base_model or experiment.base_model)
        if recipe.serve_on == "bf16" and source and source.quantization:
            found = f"serve_on: bf16 on {source.name}, which fits no GPU here in 16 bits"
            step = "remove serve_on, or a machine with more memory"
            yield Problem(f"candidate {name}", found, f"{source.quantization}, as it is trained", step)


def sentences(sources: Mapping[str, ModelSource]) -> list[str]:
    """Name the bases that are measured as they are served."""
    return [
        f"{name} does not fit the GPUs here in 16 bits: the base itself is measured in "
        f"{source.quantization.upper()}, as it is served"
        for name, source in sources.items()
        if source.quantization
    ]
