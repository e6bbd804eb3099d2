"""Bottleneck adapters: two small layers whose output is added to that of a sublayer.

Invariant: behind each sublayer of the style stands h + W_up f(W_down h + b_down) + b_up. In new ones W_up and
b_up are 0, so that they change no bit of what the base computes. Its layer normalisation is not trained.
Source: Houlsby et al. 2019 (arXiv:1902.00751), behind the attention and the feed-forward part of each layer;
Pfeiffer et al. 2020 (arXiv:2005.00247), behind the feed-forward part alone. An adapter of m units for d
hidden ones has 2md + d + m parameters. The non-linearity of a style is AdapterHub's (arXiv:2007.07779).
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.errors import CandidateFailed

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module, ModuleDict
    from torch.utils.hooks import RemovableHandle

FORM = "bottleneck_layers"
_ATTENTION = ("self_attn", "attn", "attention", "self_attention")
_FEED_FORWARD = ("mlp", "feed_forward", "ffn", "block_sparse_moe")
_SUBLAYERS = {"houlsby": (_ATTENTION, _FEED_FORWARD), "pfeiffer": (_FEED_FORWARD,)}
NON_LINEARITY = {"houlsby": "swish", "pfeiffer": "relu"}
_ACTIVATIONS = {"relu": "ReLU", "gelu": "GELU", "swish": "SiLU", "tanh": "Tanh"}
_SPREAD = 0.01  # standard deviation of a new W_down, cut at twice that (Houlsby et al. 2019, section 2.1)


class Bottleneck(NamedTuple):
    """Form of bottleneck adapters: `size` units each, behind the sublayers of a `style`."""

    style: str
    size: int
    non_linearity: str


def n_parameters(style: str, size: int, hidden: int, n_layers: int) -> int:
    """Count the parameters: 2md + d + m for each sublayer."""
    return n_layers * len(_SUBLAYERS[style]) * (2 * size * hidden + hidden + size)


def new_bottlenecks(model: Any, form: Bottleneck) -> "ModuleDict":
    """Make the adapters of a base, in fp32 on its device, by the sublayers that they stand behind.

    Raises:
        CandidateFailed: the base has no such sublayers.
    """
    from torch import nn

    hidden = model.config.get_text_config().hidden_size

    def make() -> nn.Sequential:
        down, up = nn.Linear(hidden, form.size), nn.Linear(form.size, hidden)
        activation: nn.Module = getattr(nn, _ACTIVATIONS[form.non_linearity])()
        nn.init.trunc_normal_(down.weight, std=_SPREAD, a=-2 * _SPREAD, b=2 * _SPREAD)
        for zero in (down.bias, up.weight, up.bias):
            nn.init.zeros_(zero)
        return nn.Sequential(OrderedDict(down=down, activation=activation, up=up))

    return nn.ModuleDict({name: make() for name in _sublayers(model, form.style)}).to(model.device)


def hook(model: Any, form: Bottleneck, bottlenecks: "ModuleDict") -> "list[RemovableHandle]":
    """Add the adapters' output to that of their sublayers, until the handles are removed."""
    found = _sublayers(model, form.style)
    return [found[name].register_forward_hook(_make_hook(one)) for name, one in bottlenecks.items()]


@contextmanager
def put_on(model: Any, config: Mapping[str, Any], tensors: "Mapping[str, Tensor]") -> Iterator[None]:
    """Let a base compute with stored adapters, in its own precision.

    Raises:
        CandidateFailed: the adapters are not of this base.
    """
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


def _make_hook(bottleneck: Any) -> Any:
    """Return a hook that adds a bottleneck's output to that of a sublayer, the first of several outputs."""

    def add(module: Any, args: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        changed = hidden + bottleneck(hidden.to(bottleneck.down.weight.dtype)).to(hidden.dtype)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    return add


def _sublayers(model: Any, style: str) -> "dict[str, Module]":
    """Map names such as `0_mlp` to the sublayers of each decoder layer that a style adds to."""
    from torch import nn

    n_layers = model.config.get_text_config().num_hidden_layers
    lists = (m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == n_layers)
    layers = next(lists, nn.ModuleList())
    found = {
        f"{i}_{name}": getattr(layer, name)
        for i, layer in enumerate(layers)
        for names in _SUBLAYERS[style]
        for name in names
        if hasattr(layer, name)
    }
    if not found or len(found) != len(layers) * len(_SUBLAYERS[style]):
        reason = f"a base whose layers have no attention or feed-forward part that the style {style} knows"
        raise CandidateFailed(reason, "another method, as one of low-rank adapters")
    return found
