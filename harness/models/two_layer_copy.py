"""Random copy of a base with two narrow layers, which tells the base's scoring engine without its weights.

Invariant: a copy has each kind of layer that the base has, with windows of a few tokens. If no copy can be
made (of recurrent layers, for example), the base itself is probed.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from harness.errors import CandidateFailed
from harness.models.loglikelihood import UNSUPPORTED, Executor, gap
from harness.models.prefix_cache import windows
from harness.progress import quiet_libraries

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_Answer = TypeVar("_Answer")

_MOST_PARAMETERS = 100_000_000  # of a copy; a configuration that we cannot make narrower has more
_BUDGET = 512  # tokens of a pass: room for all probes
_WINDOW = 8  # tokens; one more or less of them is seen in log p
# Standard deviation of a product of a row of inputs of unit variance: its softmax then prefers some.
_SPREAD = 1.7
_BIAS = 0.1  # added to what families leave at 0 or 1
_HEARD_NATS = 0.5  # by which log p differs at least after other contexts
# Sizes by transformers' names, and what they are at most in a copy.
_MOST = {
    "vocab_size": 512,
    "vocab_size_per_layer_input": 512,
    "intermediate_size": 64,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "ffn_dim": 64,
    "ffn_hidden_size": 64,
    "n_inner": 64,
    "num_experts": 8,
    "num_local_experts": 8,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "sliding_window": _WINDOW,
}
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_HEADS = ("num_attention_heads", "n_head", "n_heads")
_KEY_HEADS = ("num_key_value_heads", "num_kv_heads")
_HIDDEN = ("hidden_size", "n_embd", "d_model")
_MOST_HEADS = 4
_NOT_COPIED = ("quantization_config", "dtype", "torch_dtype", "architectures")


def find_copied_engine(path: Path, device: str) -> str | None:
    """Return the scoring engine of a base; None if no copy of it can tell."""

    def find_engine(model: Any) -> str | None:
        executor = Executor(model.to(device), _BUDGET)
        # Its answers must depend on their context; otherwise an ignored mask would not show.
        contexts, answer = [tuple(range(5 + n, 11 + n)) for n in range(0, 24, 6)], (40, 41, 42)
        found = [logprobs for logprobs, _ in executor.score([(context, answer) for context in contexts])]
        return executor.engine if gap(found[1:], found[:-1]) > _HEARD_NATS else None

    return ask_copy(path, find_engine)


def ask_copy(path: Path, ask: Callable[[Any], _Answer]) -> _Answer | None:
    """Return what `ask` finds of a random copy of a base; None if there is no copy, or it cannot be read."""
    from huggingface_hub.errors import StrictDataclassError

    quiet_libraries()
    try:
        model = two_layer_copy(path)
        return None if model is None else ask(model)
    except (CandidateFailed, OSError, ImportError, ArithmeticError, StrictDataclassError, *UNSUPPORTED):
        return None


def two_layer_copy(path: Path) -> "PreTrainedModel | None":
    """Make a random copy of a base from its configuration; None if it is large or has other layers."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    kinds = _kinds(config)
    if not kinds:
        return None
    said = config.to_dict()
    for name in getattr(config, "sub_configs", {}):
        if isinstance(said.get(name), Mapping):
            said[name] = _narrow(said[name])
    small = type(config).from_dict(_narrow(said))
    if _kinds(small) != kinds:
        return None
    kind: Any = AutoModelForCausalLM
    with torch.device("meta"):
        planned = kind.from_config(small, dtype=torch.float32)
    if sum(p.numel() for p in planned.parameters()) > _MOST_PARAMETERS:
        return None
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: PreTrainedModel = kind.from_config(small, dtype=torch.float32)
        _draw(model)
    model.eval()
    return model


def _draw(model: "PreTrainedModel") -> None:
    """Draw weights with which each layer changes log p, whatever the family's initialisation."""
    import torch

    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, _SPREAD * parameter.shape[-1] ** -0.5)
        else:
            parameter.data += _BIAS * torch.randn_like(parameter)
    embeddings: Any = model.get_input_embeddings()
    embeddings.weight.data *= embeddings.weight.shape[1] ** 0.5 / _SPREAD


def _kinds(config: "PretrainedConfig") -> set[bool] | None:
    """Return whether layers of a model have a window, each kind once; None if they keep no keys."""
    by_layer = windows(config)
    return None if by_layer is None else set(map(bool, by_layer))


def _narrow(config: Mapping[str, Any]) -> dict[str, Any]:
    """Narrow a configuration; the width of a head stays, because rotations of positions depend on it."""
    small = {name: value for name, value in config.items() if name not in _NOT_COPIED}
    small |= {name: _cap(small[name], most) for name, most in _MOST.items() if small.get(name)}
    # The first layer of each kind, two at least, with what the configuration says of them.
    if name := _find_first(_LAYERS, small):
        n_layers = small[name]
        kinds: Sequence[str] = small.get("layer_types") or ()
        kept = sorted({list(kinds).index(kind) for kind in kinds})
        kept = sorted({*kept, *[n for n in range(n_layers) if n not in kept][: max(0, 2 - len(kept))]})
        lists = {
            key: value for key, value in small.items() if isinstance(value, list) and len(value) == n_layers
        }
        dicts = {key: value for key, value in small.items() if isinstance(value, dict) and value}
        by_layer = {key: value for key, value in dicts.items() if all(str(n).isdigit() for n in value)}
        small[name] = len(kept)
        small |= {key: [values[n] for n in kept] for key, values in lists.items()}
        for key, values in by_layer.items():
            small[key] = {str(kept.index(int(n))): values[n] for n in values if int(n) in kept}
    # At most four heads, of which as many share keys as before or two do, and the width of one.
    heads, hidden = _find_first(_HEADS, small), _find_first(_HIDDEN, small)
    if heads and hidden and small[heads] > _MOST_HEADS:
        n_heads, width = small[heads], small.get("head_dim") or small[hidden] // small[heads]
        small |= {heads: _MOST_HEADS, hidden: _MOST_HEADS * width}
        if name := _find_first(_KEY_HEADS, small):
            small[name] = {1: 1, n_heads: _MOST_HEADS}.get(small[name], _MOST_HEADS // 2)
    last = small.get("vocab_size", 1) - 1
    ids = {name: value for name, value in small.items() if name.endswith(("_token_id", "_token_index"))}
    return small | {name: _cap(value, last) for name, value in ids.items() if value is not None}


def _cap(value: Any, most: int) -> Any:
    return [_cap(one, most) for one in value] if isinstance(value, list) else min(value, most)


def _find_first(names: Sequence[str], said: Mapping[str, Any]) -> str:
    return next((name for name in names if isinstance(said.get(name), int) and said[name]), "")
