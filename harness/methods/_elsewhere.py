"""Weights that others made, held against the base that they are to stand on.

Invariant: configurations and the headers of safetensors are read, never a pickle and no tensor.
"""

from collections.abc import Iterator
from pathlib import Path

from harness.errors import Problem, UserError
from harness.models.adapters import CONFIG, WEIGHTS, tensors_of
from harness.models.hub import ModelSource, architecture_difference
from harness.models.model_folder import read_config, refuse_damaged
from harness.records import parse_json

PICKLED = "adapter_model.bin"
_PREFIX = "base_model.model."


def read_named_base(folder: Path) -> str | None:
    """Return the base that an adapter in a folder names."""
    named: str | None = parse_json((folder / CONFIG).read_text("utf-8")).get("base_model_name_or_path")
    return named


def adapter_problems(folder: Path, source: ModelSource, where: str) -> Iterator[Problem]:
    """Compare the shapes of an adapter's low-rank matrices with those of the base's own, by name."""
    try:
        adapter = tensors_of(folder / WEIGHTS)
    except (ValueError, AttributeError, LookupError, TypeError):
        found = f"a damaged {WEIGHTS}, which is no safetensors file"
        yield Problem(f"{folder / WEIGHTS}", found, "the adapter's weights", "export it again")
        return
    try:
        named = read_named_base(folder)
    except (ValueError, AttributeError):
        found = f"a damaged {CONFIG}, which is no JSON object"
        yield Problem(f"{folder / CONFIG}", found, "PEFT's configuration", "export it again")
        return
    base = {
        name: tensor.shape
        for file in source.path.glob("*.safetensors")
        for name, tensor in tensors_of(file).items()
    }
    wrong = [said for name, t in adapter.items() if base and (said := _misfit(name, t.shape, base))]
    if wrong:
        found = f"an adapter for another base ({named}): {wrong[0]}"
        if len(wrong) > 1:
            found += f", and {len(wrong) - 1} more"
        step = f"set base_model: {named} on this candidate" if named else "set its base_model"
        yield Problem(where, found, f"an adapter for {source.name}", step)


def _misfit(name: str, shape: tuple[int, ...], base: dict[str, tuple[int, ...]]) -> str:
    """Say how a matrix A (r, in) or B (out, r) does not fit the base; nothing where it does."""
    for kind, axis in ((".lora_A.weight", 1), (".lora_B.weight", 0)):
        if name.endswith(kind):
            module = name.removeprefix(_PREFIX).removesuffix(kind)
            own = base.get(f"{module}.weight")
            if own is None:
                return f"{module}, which the base does not have"
            return (
                "" if shape[axis] in own else f"{module} of size {shape[axis]}, which the base has as {own}"
            )
    return ""


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
