"""CPU kernels: attention in chunks of queries, and linear layers in oneDNN's layout.

Invariant: prepacked bf16 products are bit-identical (a third less time at 64 rows, half at one row); in fp32
they are from some 32 rows on. Chunks depend on position alone. Fused attention in bf16 takes three times as
long over 1,000 tokens. Source: oneDNN's blocked layouts, by the operators that PyTorch's compiler uses; the
tiles of FlashAttention (Dao et al. 2022, arXiv:2205.14135), with whole rows of scores.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from harness.models.later import Model, torch, transformers

_OPERATORS = ("_reorder_linear_weight", "_linear_pointwise")


def multiplies_bf16() -> bool:
    """Tell whether oneDNN supports prepacked bf16 products on this processor."""
    ops = torch.ops.mkldnn
    return all(hasattr(ops, name) for name in _OPERATORS) and bool(ops._is_mkldnn_bf16_supported())  # noqa: SLF001


def prepack(model: "torch.nn.Module") -> None:
    """Prepack linear layers on a CPU: fp32 by columns, bf16 for oneDNN where the processor has it."""
    linear = [m for m in model.modules() if type(m) is torch.nn.Linear and m.weight.device.type == "cpu"]
    read_by_rows = {m.weight.data_ptr() for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    for module in linear:
        if module.weight.dtype == torch.float32 and module.weight.data_ptr() not in read_by_rows:
            module.weight.data = module.weight.data.t().contiguous().t()  # stored by columns
    if not multiplies_bf16():
        return
    lay_out, multiply = (getattr(torch.ops.mkldnn, name) for name in _OPERATORS)
    for module in linear:
        if module.weight.dtype == torch.bfloat16:
            layout = lay_out(module.weight.detach())
            forward = partial(multiply, W=layout, B=module.bias, attr="none", scalars=[], algorithm="")
            setattr(module, "forward", forward)  # noqa: B010  (mypy refuses to assign a method)


def replace_weight(layer: Any, weight: "torch.Tensor") -> "torch.nn.Linear":
    """Return a copy of a linear layer with another weight, in the layer's precision."""
    copy = torch.nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    copy.weight = torch.nn.Parameter(weight.to(layer.weight.dtype), requires_grad=False)
    copy.bias = layer.bias
    prepack(copy)
    return copy.train(layer.training)


_QUERIES = 128  # per chunk; their scores against 1,000 keys fit in a core's cache


@contextmanager
def chunk_attention(model: Model) -> Iterator[None]:
    """Let a model on a CPU use chunked attention within the context; other models are unchanged."""
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    before = model.config._attn_implementation  # noqa: SLF001  (transformers has a public setter only)
    if model.device.type != "cpu" or before != "sdpa":
        yield
        return
    transformers.AttentionInterface.register("parts", attend)
    AttentionMaskInterface.register("parts", eager_mask)
    model.set_attn_implementation("parts")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def attend(
    module: Any,
    query: "torch.Tensor",
    key: "torch.Tensor",
    value: "torch.Tensor",
    attention_mask: "torch.Tensor",
    scaling: float | None = None,
    **_: Any,
) -> "tuple[torch.Tensor, None]":
    """Attend with the last n queries (b, h, n, d) to keys (b, g, t, d), each shared by h/g heads.

    `attention_mask` (b or 1, 1, n, t) is added to the scores. Returns (b, n, h, d).
    """
    b, h, n, d = query.shape
    g, t = key.shape[1:3]
    groups = query.mul(d**-0.5 if scaling is None else scaling).view(b, g, h // g, n, d)
    keys = key.transpose(-1, -2)
    output = value.new_empty((b, n, h, value.shape[-1]))
    for start in range(0, n, _QUERIES):
        end = min(start + _QUERIES, n)
        n_keys = t - n + end  # number of keys up to the chunk's last query
        queries = groups[:, :, :, start:end].reshape(b, g, -1, d)
        scores = (queries @ keys[..., :n_keys]).view(b, h, -1, n_keys)
        weights = scores.add_(attention_mask[:, :, start:end, :n_keys]).softmax(-1)
        mixed = weights.view(b, g, -1, n_keys) @ value[:, :, :n_keys]
        output[:, start:end] = mixed.view(b, h, end - start, -1).transpose(1, 2)
    return output, None
