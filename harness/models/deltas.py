"""Deltas that PEFT does not have: bottleneck adapters, and replaced matrices.

Invariant: after a delta is removed the base is bit-identical to before. A bottleneck after a sublayer with
output h gives h + W_up f(W_down h + b_down) + b_up; new ones have W_up and b_up of 0.
Source: Ding et al. 2022 (arXiv:2203.06904) for the name; Houlsby et al. 2019 (arXiv:1902.00751) and Pfeiffer
et al. 2020 (arXiv:2005.00247) for the two styles; AdapterHub (arXiv:2007.07779) for the non-linearity;
Hartford et al. 2024 (arXiv:2406.06623), who train whole matrices of some layers
"""

import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.errors import CandidateFailed
from harness.models.cpu_kernels import replace_weight
from harness.models.later import safetensors, torch
from harness.models.weight_files import tensors_digest
from harness.records import digest, parse_json

if TYPE_CHECKING:
    from torch.nn import Module, ModuleDict
    from torch.utils.hooks import RemovableHandle

CONFIG, WEIGHTS = "delta_config.json", "delta_model.safetensors"
Tensors = Mapping[str, "torch.Tensor"]


def save_delta(folder: Path, form: str, config: Mapping[str, Any], tensors: Tensors) -> None:
    """Write a delta: its form, the form's configuration, and its tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"form": form, **config}, indent=2, sort_keys=True)
    (folder / CONFIG).write_text(f"{text}\n", "utf-8")
    cpu_tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    safetensors.save_file(cpu_tensors, folder / WEIGHTS, {"format": "pt"})


def delta_digest(folder: Path, base_digest: str) -> str:
    """Return the digest of a delta on its base: its form and its tensors."""
    config = parse_json((folder / CONFIG).read_text("utf-8"))
    return digest([base_digest, tensors_digest(folder / WEIGHTS), config])


@contextmanager
def apply_delta(model: Any, folder: Path) -> Iterator[None]:
    """Apply the delta in a folder to a loaded base within the context; CandidateFailed if it does not fit."""
    config = parse_json((folder / CONFIG).read_text("utf-8"))
    forms = {BOTTLENECK_LAYERS: put_on_bottlenecks, MATRICES: put_on_matrices}
    if (form := config.pop("form", None)) not in forms:
        found = f"{folder / CONFIG} of the form {form!r}, and the known ones are {', '.join(forms)}"
        raise CandidateFailed(found, "delete that folder, and compare makes it again")
    tensors = safetensors.load_file(folder / WEIGHTS, device=str(model.device))
    with forms[form](model, config, tensors):
        yield


BOTTLENECK_LAYERS = "bottleneck_layers"
_ATTENTION = ("self_attn", "attn", "attention", "self_attention")
_FEED_FORWARD = ("mlp", "feed_forward", "ffn", "block_sparse_moe")
_SUBLAYERS = {"houlsby": (_ATTENTION, _FEED_FORWARD), "pfeiffer": (_FEED_FORWARD,)}
NON_LINEARITY = {"houlsby": "swish", "pfeiffer": "relu"}
_ACTIVATIONS = {"relu": "ReLU", "gelu": "GELU", "swish": "SiLU", "tanh": "Tanh"}
_SPREAD = 0.01  # standard deviation of a new W_down, cut at twice that (Houlsby et al. 2019, section 2.1)


class Bottleneck(NamedTuple):
    """Form of bottleneck adapters: `size` units each, after the sublayers of a `style`."""

    style: str
    size: int
    non_linearity: str


def n_parameters(style: str, size: int, hidden: int, n_layers: int) -> int:
    """Count the parameters: 2md + d + m for each sublayer."""
    return n_layers * len(_SUBLAYERS[style]) * (2 * size * hidden + hidden + size)


def new_bottlenecks(model: Any, form: Bottleneck) -> "ModuleDict":
    """Create the bottlenecks of a base, in fp32 on its device, keyed by sublayer."""
    hidden = model.config.get_text_config().hidden_size

    def new_bottleneck() -> torch.nn.Sequential:
        down, up = torch.nn.Linear(hidden, form.size), torch.nn.Linear(form.size, hidden)
        activation: torch.nn.Module = getattr(torch.nn, _ACTIVATIONS[form.non_linearity])()
        torch.nn.init.trunc_normal_(down.weight, std=_SPREAD, a=-2 * _SPREAD, b=2 * _SPREAD)
        for zero in (down.bias, up.weight, up.bias):
            torch.nn.init.zeros_(zero)
        return torch.nn.Sequential(OrderedDict(down=down, activation=activation, up=up))

    return torch.nn.ModuleDict({name: new_bottleneck() for name in _sublayers(model, form.style)}).to(
        model.device
    )


def hook(model: Any, form: Bottleneck, bottlenecks: "ModuleDict") -> "list[RemovableHandle]":
    """Add the bottlenecks to the (first) output of their sublayers; return the hooks' handles."""

    def add(bottleneck: Any, module: Any, args: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        changed = hidden + bottleneck(hidden.to(bottleneck.down.weight.dtype)).to(hidden.dtype)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    sublayers = _sublayers(model, form.style)
    return [sublayers[name].register_forward_hook(partial(add, layer)) for name, layer in bottlenecks.items()]


@contextmanager
def put_on_bottlenecks(model: Any, config: Mapping[str, Any], tensors: Tensors) -> Iterator[None]:
    """Apply stored bottlenecks to a base, in its precision."""
    form = Bottleneck(**config)
    bottlenecks = new_bottlenecks(model, form)
    try:
        bottlenecks.load_state_dict(dict(tensors))
    except RuntimeError as error:
        found = f"bottleneck adapters of another base ({str(error).splitlines()[-1].strip()})"
        raise CandidateFailed(found, "the base that they were trained on") from None
    handles = hook(model, form, bottlenecks.to(model.dtype).requires_grad_(False))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _sublayers(model: Any, style: str) -> "dict[str, Module]":
    """Map names such as `0_mlp` to the sublayers of each decoder layer that a style uses."""
    n_layers = model.config.get_text_config().num_hidden_layers
    lists = (m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == n_layers)
    layers = next(lists, torch.nn.ModuleList())
    sublayers = {
        f"{i}_{name}": getattr(layer, name)
        for i, layer in enumerate(layers)
        for names in _SUBLAYERS[style]
        for name in names
        if hasattr(layer, name)
    }
    if not sublayers or len(sublayers) != len(layers) * len(_SUBLAYERS[style]):
        reason = f"a base whose layers have no attention or feed-forward part that the style {style} knows"
        raise CandidateFailed(reason, "another method, as one of low-rank adapters")
    return sublayers


MATRICES = "matrices"


@contextmanager
def put_on_matrices(model: Any, config: Mapping[str, Any], tensors: Tensors) -> Iterator[None]:
    """Apply stored matrices, named after their layers, to a base."""
    layers = {name: layer for name, layer in model.named_modules(remove_duplicate=False) if name in tensors}
    for name, weight in tensors.items():
        base_weight = getattr(layers.get(name), "weight", None)
        if base_weight is None or base_weight.shape != weight.shape:
            last = name.rpartition(".")[2]
            has = "none" if base_weight is None else f"one of the shape {tuple(base_weight.shape)}"
            found = f"a matrix for {last} of the shape {tuple(weight.shape)}, and the base has {has}"
            raise CandidateFailed(found, "the base that it was trained on")
    try:
        for name, layer in layers.items():
            model.set_submodule(name, replace_weight(layer, tensors[name]))
        yield
    finally:
        for name, layer in layers.items():
            model.set_submodule(name, layer)
