"""Memory and floating-point operations of a model from its shape, before anything is loaded.

Invariant: pure arithmetic with one set of named constants; bytes and operations, 1 GB = 1e9 bytes.

Source: Rajbhandari et al. 2020 (arXiv:1910.02054) for the bytes of a parameter in training,
Korthikanti et al. 2022 (arXiv:2205.05198) for activations, Dettmers et al. 2023
(arXiv:2305.14314) for NF4, Kaplan et al. 2020 (arXiv:2001.08361) for operations.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0}
BITS = {"nf4": 4.127, "int8": 8.0}  # of a weight: NF4 with its scales quantised too, LLM.int8
STATE_BYTES = 16  # of a parameter in training: fp32 weight, gradient, and both moments of AdamW
LAYER_BYTES = 34  # activations of a layer, for a token and hidden unit, with attention computed in blocks
CHECKPOINT_BYTES = 2  # what is kept of a layer that is computed again for its gradient
LOGIT_BYTES = 8  # of a token and entry of the vocabulary in training: logits, their gradient, a copy
OVERHEAD_GB = 3.0  # context of the GPU, its libraries, buffers, fragments

_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Shape(NamedTuple):
    """Shape of a decoder, on which its memory and its operations depend."""

    n_parameters: float
    n_layers: int
    hidden: int
    intermediate: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool = False

    @property
    def in_embeddings(self) -> float:
        """Parameters of the embeddings and the output layer, which quantisation leaves as they are."""
        return (1 if self.tied else 2) * self.vocabulary * self.hidden


def shape_of(config: Mapping[str, Any], n_parameters: float) -> Shape | None:
    """Read a shape from transformers' configuration; None where it does not say what is needed."""
    text = config.get("text_config") or config
    try:
        heads, hidden = int(text["num_attention_heads"]), int(text["hidden_size"])
        return Shape(
            n_parameters,
            int(text["num_hidden_layers"]),
            hidden,
            int(text["intermediate_size"]),
            heads,
            int(text.get("num_key_value_heads") or heads),
            int(text.get("head_dim") or hidden // heads),
            int(text["vocab_size"]),
            bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", False))),
        )
    except (KeyError, TypeError, ValueError):
        return None


def lora_parameters(shape: Shape, r: int, modules: str | tuple[str, ...] = "all-linear") -> int:
    """Count the parameters of low-rank adapters: the sum of r (d_in + d_out) over the named modules."""
    queries, keys = shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim
    sums = (
        shape.hidden + queries,
        shape.hidden + keys,
        shape.hidden + keys,
        queries + shape.hidden,
        *[shape.hidden + shape.intermediate] * 3,
    )
    wanted = _LINEAR if isinstance(modules, str) else modules
    return r * shape.n_layers * sum(s for name, s in zip(_LINEAR, sums, strict=True) if name in wanted)


def weights_gb(shape: Shape, precision: str, *, quantization: str = "") -> float:
    """Return the weights' size in GB; quantisation leaves embeddings and output layer in 16 bits."""
    if not quantization:
        return shape.n_parameters * BYTES[precision] / 1e9
    quantised = max(shape.n_parameters - shape.in_embeddings, 0.0)
    return (quantised * BITS[quantization] / 8 + shape.in_embeddings * 2) / 1e9


def training_gb(
    shape: Shape,
    n_trained: float,
    tokens: float,
    precision: str = "bf16",
    *,
    quantization: str = "",
    checkpointing: bool = True,
) -> float:
    """Estimate the peak memory of training in GB, `tokens` being batch size times length.

    Weights + 16 bytes a trained parameter + activations + logits + overhead. Where all parameters
    are trained the weights are their fp32 copies, and a copy in 16 bits beside them for the products.
    """
    of_layer = tokens * shape.hidden * LAYER_BYTES
    kept = tokens * shape.hidden * CHECKPOINT_BYTES * shape.n_layers
    activations = kept + of_layer if checkpointing else of_layer * shape.n_layers
    whole = n_trained >= shape.n_parameters
    weights = (
        0.0 if whole and precision == "fp32" else weights_gb(shape, precision, quantization=quantization)
    )
    logits = LOGIT_BYTES * tokens * shape.vocabulary
    return weights + (STATE_BYTES * n_trained + activations + logits) / 1e9 + OVERHEAD_GB


def kv_cache_bytes(shape: Shape, tokens: float, precision: str = "bf16") -> float:
    """Return 2 L n_kv d_head bytes for each token that is kept while answers are generated."""
    return 2 * shape.n_layers * shape.n_kv_heads * shape.head_dim * tokens * BYTES[precision]


def inference_gb(shape: Shape, tokens: float, precision: str = "bf16", *, quantization: str = "") -> float:
    """Estimate the memory of answering with so many tokens in the cache: weights, cache, overhead."""
    weights = weights_gb(shape, precision, quantization=quantization)
    return weights + kv_cache_bytes(shape, tokens, precision) / 1e9 + OVERHEAD_GB


def inference_flops(
    n_parameters: float, tokens: float, *, encoder_decoder: bool = False, attention: float = 0.0
) -> float:
    """Return 2 N operations a token, and `attention` more; each token sees half an encoder-decoder."""
    return (1 if encoder_decoder else 2) * n_parameters * tokens + attention


def attention_flops(shape: Shape, tokens: float, context: float) -> float:
    """Return 4 L s h for each token that looks back on s others."""
    return 4 * shape.n_layers * context * shape.hidden * tokens


def training_flops(
    n_parameters: float,
    tokens: float,
    n_adapter: float = 0.0,
    *,
    checkpointing: bool = False,
    encoder_decoder: bool = False,
) -> float:
    """Return 6 N D for all parameters, (4 N + 6 N_adapter) D for an adapter; 2 N D more for checkpointing."""
    each = 4 * n_parameters + 6 * n_adapter if n_adapter else 6 * n_parameters
    each += 2 * n_parameters if checkpointing else 0
    return each * tokens / (2 if encoder_decoder else 1)
