"""Folders with a configuration and headers of safetensors, for code that reads a base without its weights."""

import json
from math import prod

_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "I32": 4, "U8": 1, "F8_E4M3": 1}


def write_headers(folder, config, tensors):
    """Write a configuration and tensors, (type, shape) by name; the weights are a hole in the file."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    header, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        begin, end = end, end + _BYTES[dtype] * prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    raw = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + end)
    return folder


def decoder(*, layers, hidden, inner, heads, kv_heads, head_dim, vocabulary, tied, quantised=None):
    """Return the tensors of a decoder like Llama; `quantised(name, d_out, d_in)` returns a linear layer's."""
    linear = quantised or (lambda name, *shape: {f"{name}.weight": ("BF16", shape)})
    queries, keys = heads * head_dim, kv_heads * head_dim
    tensors = {
        "model.embed_tokens.weight": ("BF16", (vocabulary, hidden)),
        "model.norm.weight": ("BF16", (hidden,)),
    }
    if not tied:
        tensors["lm_head.weight"] = ("BF16", (vocabulary, hidden))
    for i in range(layers):
        at = f"model.layers.{i}"
        attention = {"q": (queries, hidden), "k": (keys, hidden), "v": (keys, hidden), "o": (hidden, queries)}
        feed_forward = {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}
        for block, projections in (("self_attn", attention), ("mlp", feed_forward)):
            for name, size in projections.items():
                tensors |= linear(f"{at}.{block}.{name}_proj", *size)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{at}.{norm}.weight"] = ("BF16", (hidden,))
    return tensors
