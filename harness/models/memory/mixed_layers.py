"""Linear modules of families whose layers differ: state spaces beside attention, heads of a number by layer.

Invariant: the sums are those of the modules that transformers builds and PEFT adapts unasked; experts and
what routes among them are left alone.
Source: `modeling_jamba.py` and `modeling_laguna.py` of transformers 5.23.
"""

from collections.abc import Mapping
from typing import Any

_LINEAR, _DENSE = "linear_attention", "dense"
# What is read of a configuration beside what all families say, by family.
KEYS = {
    "jamba": ("mamba_expand", "mamba_d_state", "mamba_dt_rank", "expert_layer_period", "expert_layer_offset"),
    "laguna": ("num_attention_heads_per_layer", "mlp_layer_types", "gating"),
}


def sum_linear_sizes(said: Mapping[str, Any]) -> float:
    """Return the sum of d_in and d_out over the linear modules of all layers; 0 of a family of one kind."""
    family = said.get("model_type")
    needed = KEYS.get(str(family), ())
    if not needed or any(said.get(name) is None for name in (*needed, "layer_types")):
        return 0.0
    return float(_jamba(said) if family == "jamba" else _laguna(said))


def _jamba(said: Mapping[str, Any]) -> int:
    """Sum over attention, state spaces, and the networks of the layers that have no experts."""
    hidden, heads = said["hidden_size"], said["num_attention_heads"]
    inner, of_step, state = said["mamba_expand"] * hidden, said["mamba_dt_rank"], said["mamba_d_state"]
    space = (hidden + 2 * inner) + (inner + of_step + 2 * state) + (of_step + inner) + (inner + hidden)
    attention = _attention(hidden, heads, said["num_key_value_heads"], hidden // heads)
    kinds, period, offset = said["layer_types"], said["expert_layer_period"], said["expert_layer_offset"]
    has_experts = [said["num_experts"] > 1 and i % period == offset for i in range(len(kinds))]
    return sum(space if kind == _LINEAR else attention for kind in kinds) + sum(
        _network(hidden, said["intermediate_size"]) for experts in has_experts if not experts
    )


def _laguna(said: Mapping[str, Any]) -> int:
    """Sum over attention with its gates, and the network of each layer or what all tokens pass of it."""
    hidden, width = said["hidden_size"], said["head_dim"]
    by_head = said["gating"] is True or said["gating"] == "per-head"
    of_gate = 1 if by_head else width
    attention: int = sum(
        _attention(hidden, heads, said["num_key_value_heads"], width) + hidden + heads * of_gate
        for heads in said["num_attention_heads_per_layer"]
    )
    widths = {True: said["intermediate_size"], False: said["shared_expert_intermediate_size"]}
    return attention + sum(_network(hidden, widths[kind == _DENSE]) for kind in said["mlp_layer_types"])


def _attention(hidden: int, heads: int, kv_heads: int, width: int) -> int:
    queries, keys = heads * width, kv_heads * width
    return 2 * (hidden + queries) + 2 * (hidden + keys)


def _network(hidden: int, width: int) -> int:
    return 3 * (hidden + width)
