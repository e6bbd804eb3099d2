"""Estimates of a model's memory and operations from its shape.

Invariant: estimates are pure arithmetic with one set of named constants; 1 GB = 1e9 bytes.
Source: Rajbhandari et al. 2020 (arXiv:1910.02054) for the bytes of a parameter in training, Korthikanti et
al. 2022 (arXiv:2205.05198) for activations, Dettmers et al. 2023 (arXiv:2305.14314) for NF4, Kaplan et al.
2020 (arXiv:2001.08361) for operations
"""

from typing import NamedTuple

from harness.models.shapes import Shape

BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0}
BITS = {"nf4": 4.127, "int8": 8.0}  # per weight: NF4 with double quantisation, LLM.int8
# Numbers that optimisers of torch and bitsandbytes store per parameter, under transformers' names.
_REMEMBERED = {"ademamix": 3, "lion": 1, "adagrad": 1, "rmsprop": 1, "sgd": 0, "adafactor": 0}
LAYER_BYTES = 34  # activations per layer, token and hidden unit, with attention computed in blocks
CHECKPOINT_BYTES = 2  # kept per layer with gradient checkpointing
LOGIT_BYTES = 8  # per token and vocabulary entry in training: logits, their gradient, a copy
# The same when distilling: logits and log-probabilities of both models and of the mixture, both divergences,
# gradients. Measured for TRL's generalized_jsd_loss on a CPU.
DISTILLED_BYTES = {"fp32": 68, "bf16": 50, "fp16": 50}
# Rows and columns of logits that exist at a time when the loss is computed in tiles, as TRL does on a GPU.
TILE = (4096, 32_768)
OVERHEAD_GB = 3.0  # GPU context, libraries, buffers, fragmentation

# Quantisation skips experts, so it saves too little if their share is larger.
MOST_IN_EXPERTS = 0.2
_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def lora_parameters(shape: Shape, r: int, modules: str | tuple[str, ...] = "all-linear") -> int:
    """Count the parameters of low-rank adapters: the sum of r (d_in + d_out) over the named modules."""
    if isinstance(modules, str) and shape.adapted:
        return round(r * shape.adapted)
    queries, keys = shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim
    width = shape.shared_width if shape.in_experts else shape.intermediate
    sums = (
        shape.hidden + queries,
        shape.hidden + keys,
        shape.hidden + keys,
        queries + shape.hidden,
        *[shape.hidden + width if width else 0] * 3,
    )
    names = _LINEAR if isinstance(modules, str) else modules
    return r * shape.n_layers * sum(s for name, s in zip(_LINEAR, sums, strict=True) if name in names)


def weights_gb(shape: Shape, precision: str, *, quantization: str = "") -> float:
    """Return the GB of the weights; in quantised files as stored, quantised here without experts."""
    if not quantization:
        return (shape.stored_bytes or shape.n_parameters * BYTES[precision]) / 1e9
    unquantised = shape.in_embeddings + shape.in_experts
    quantised = max(shape.n_parameters - unquantised, 0.0)
    return (quantised * BITS[quantization] / 8 + unquantised * 2) / 1e9


def optimizer_bytes(optim: str | None, trained_in: str = "fp32") -> float:
    """Return the optimiser's bytes per parameter: in the parameter's type, bitsandbytes' in 8 or 32 bits."""
    name = optim or "adamw"
    n = next((n for family, n in _REMEMBERED.items() if family in name), 2)
    if name.endswith("8bit"):
        return float(n)
    return n * (4.0 if name.endswith(("32bit", "ademamix")) else BYTES[trained_in])


class Peak(NamedTuple):
    """Peak memory in GB, by part."""

    weights: float
    gradients: float = 0.0
    optimizer: float = 0.0
    activations: float = 0.0
    logits: float = 0.0
    keys: float = 0.0
    overhead: float = OVERHEAD_GB

    @property
    def total(self) -> float:
        """Sum of all parts."""
        return sum(self)


def training_peak(
    shape: Shape,
    n_trained: float,
    tokens: float,
    precision: str = "bf16",
    *,
    quantization: str = "",
    checkpointing: bool = True,
    in_tiles: bool = False,
    optim: str | None = None,
    trained_in: str = "fp32",
    shards: int = 1,
    zero_stage: int = 3,
) -> Peak:
    """Estimate the peak memory of training; `tokens` is batch size times length.

    A trained parameter takes a copy in `trained_in`, its gradient and the optimiser's state. Each process
    holds one of `shards` shards of these, and two whole layers; at `zero_stage` 2 it holds all weights.
    """
    layer_bytes = tokens * shape.hidden * LAYER_BYTES
    checkpoint_bytes = tokens * shape.hidden * CHECKPOINT_BYTES * shape.n_layers
    activations = checkpoint_bytes + layer_bytes if checkpointing else layer_bytes * shape.n_layers
    is_whole = n_trained >= shape.n_parameters
    is_one = is_whole and BYTES[trained_in] <= BYTES[precision]  # products use the weights themselves
    weights = 0.0 if is_one else weights_gb(shape, precision, quantization=quantization)
    logits = LOGIT_BYTES * tokens * shape.vocabulary
    if in_tiles:  # logits in 16 bits, the gradient of the last layer in fp32
        logits = min(logits, 2 * min(tokens, TILE[0]) * TILE[1] + 4 * tokens * shape.hidden)
    weights += BYTES[trained_in] * n_trained / 1e9
    if shards > 1 and zero_stage == 3:  # plus the current and the next layer
        weights = weights / shards + 2 * weights / shape.n_layers
    return Peak(
        weights=weights,
        gradients=BYTES[trained_in] * n_trained / 1e9 / shards,
        optimizer=optimizer_bytes(optim, trained_in) * n_trained / 1e9 / shards,
        activations=activations / 1e9,
        logits=logits / 1e9,
    )


def taught_gb(shape: Shape, teacher: Shape, tokens: float, precision: str = "bf16") -> float:
    """Return the GB that a teacher adds to a training with whole logits: its weights, and the loss."""
    loss = (DISTILLED_BYTES[precision] - LOGIT_BYTES) * tokens * shape.vocabulary
    return weights_gb(teacher, precision) + loss / 1e9


def kv_cache_bytes(shape: Shape, tokens: float, precision: str = "bf16") -> float:
    """Return the bytes of the KV cache of some tokens: 2 L n_kv d_head numbers per token."""
    return shape.n_layers * shape.kept * tokens * BYTES[precision]


def inference_peak(
    shape: Shape, tokens: float, precision: str = "bf16", *, quantization: str = "", read: float = 0.0
) -> Peak:
    """Estimate the memory of inference with `tokens` tokens in the cache, `read` of them in one pass."""
    return Peak(
        weights=weights_gb(shape, precision, quantization=quantization),
        activations=read * shape.hidden * LAYER_BYTES / 1e9,
        keys=kv_cache_bytes(shape, tokens, precision) / 1e9,
    )


def inference_flops(n_parameters: float, tokens: float) -> float:
    """Return 2 N operations per token."""
    return 2 * n_parameters * tokens


def attention_flops(shape: Shape, tokens: float, context: float) -> float:
    """Return 4 L s h operations per token that attends to s others."""
    return 4 * shape.n_layers * context * shape.hidden * tokens


def training_flops(
    n_parameters: float, tokens: float, n_adapter: float = 0.0, *, checkpointing: bool = False
) -> float:
    """Return 6 N D for all parameters, (4 N + 6 N_adapter) D for an adapter; 2 N D more for checkpointing."""
    each = 4 * n_parameters + 6 * n_adapter if n_adapter else 6 * n_parameters
    each += 2 * n_parameters if checkpointing else 0
    return each * tokens
