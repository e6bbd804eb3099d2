"""Shape of a decoder, on which its memory and its operations depend, from transformers' configuration.

Invariant: transformers itself fills in the defaults of a family; no weights are read and nothing is fetched.
The configuration of an unknown family is used as written.
Source: `configuration_*.py` and `modeling_deepseek_v2.py` of transformers 5.23
"""

import json
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import version
from typing import Any, NamedTuple

from harness.cache import memo
from harness.errors import Problem
from harness.models.later import peft, torch, transformers
from harness.progress import quiet_libraries
from harness.records import digest

# Keys of a configuration by Llama's names, with the names that other families use.
_OTHER_NAMES: dict[str, tuple[str, ...]] = {
    "num_key_value_heads": ("num_kv_heads",),
    "intermediate_size": ("ffn_dim", "ffn_hidden_size"),
    "num_experts": ("num_local_experts", "n_routed_experts", "moe_num_experts"),
    "num_experts_per_tok": (
        "experts_per_token",
        "num_experts_per_token",
        "top_k_experts",
        "moe_topk",
        "moe_k",
    ),
    "shared_expert_intermediate_size": ("shared_intermediate_size",),
    "num_shared_experts": ("n_shared_experts", "moe_num_shared_experts"),
}
_KEYS = (
    *("num_hidden_layers", "hidden_size", "num_attention_heads", "head_dim", "vocab_size", *_OTHER_NAMES),
    *("max_position_embeddings", "tie_word_embeddings", "multi_query", "new_decoder_architecture"),
    *("kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "moe_intermediate_size", "is_moe"),
    *("first_k_dense_replace", "mlp_only_layers", "layer_types", "num_kv_shared_layers", "model_type"),
    "is_encoder_decoder",
)
# The same in a configuration like GPT-2's.
_LIKE_GPT_2 = {
    "n_layer": "num_hidden_layers",
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
}
_NEEDED = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size")
# Keys that a family may leave out, or list by layer.
_OPTIONAL = ("num_key_value_heads", "head_dim", "intermediate_size", "num_experts", "num_experts_per_tok")
_PACKED_BITS = (1, 2, 3, 4, 8)  # per weight, of weights that are packed into 32 bits
# Formats of quantised files that transformers unpacks to 16 bits where it cannot compute with them.
UNPACKED = {
    "fp8": "a GPU older than compute capability 8.9 (RTX 4090, H100) unpacks FP8 to 16 bits",
    "mxfp4": (
        "MXFP4 is unpacked to 16 bits by a GPU older than compute capability 7.5 (T4), without the packages "
        "triton and kernels, and by every training"
    ),
}
# Layers whose state does not grow with the text, by transformers' names.
_KEEPING_NOTHING = ("linear_attention", "conv", "moe", "mlp")
# Families with one shared expert in each layer that no key names.
_SHARING_ONE = ("llama4", "llama4_text")


class Shape(NamedTuple):
    """Shape of a decoder, on which its memory and its operations depend.

    `in_experts` parameters are in experts, `idle` of them unused by a token; the shared expert is
    `shared_width` wide. A layer of multi-head latent attention keeps `latent` numbers per token. If layers
    differ, heads and widths are the largest, and layers keep on average a share `keeping` of that.
    `stored_bytes` is the size of quantised files, else 0; `adapted` see `count_adapted`.
    """

    n_parameters: float
    n_layers: int
    hidden: int
    intermediate: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool = False
    in_experts: float = 0.0
    idle: float = 0.0
    shared_width: int = 0
    latent: int = 0
    stored_bytes: float = 0.0
    keeping: float = 1.0
    adapted: float = 0.0

    @property
    def active(self) -> float:
        """Parameters that a token passes."""
        return self.n_parameters - self.idle

    @property
    def in_embeddings(self) -> float:
        """Parameters of the embeddings and the output layer, which quantisation leaves as they are."""
        return (1 if self.tied else 2) * self.vocabulary * self.hidden

    @property
    def kept(self) -> float:
        """Numbers that a layer keeps per token: key and value of each head, or the latent that gives both."""
        return self.keeping * (self.latent or 2 * self.n_kv_heads * self.head_dim)


def shape_of(
    config: Mapping[str, Any], n_parameters: float, stored_bytes: float = 0.0, in_experts: float | None = None
) -> Shape | None:
    """Read a shape from transformers' configuration; None if it lacks a needed value.

    `stored_bytes` counts only if the configuration says that the files are quantised. Without `in_experts`
    (from the files' headers) all layers but the first dense ones are taken to have experts.
    """
    values = complete_config(config)
    if any(values.get(name) is None for name in _NEEDED) or values.get("is_encoder_decoder"):
        return None
    try:
        heads, hidden = _widest(values["num_attention_heads"]), int(values["hidden_size"])
        latent = int(values.get("kv_lora_rank") or 0)
        rotated = int(values.get("qk_rope_head_dim") or 0)
        width = _widest(values.get("head_dim")) or (hidden // heads if heads else 0)
        is_multi_query = bool(values.get("multi_query")) and not values.get("new_decoder_architecture")
        # The share of the widest layer's keys that layers keep on average.
        n_layers = int(values["num_hidden_layers"])
        key_heads, widths = (_list_each(values.get(n), n_layers) for n in ("num_key_value_heads", "head_dim"))
        kinds = _list_each(values.get("layer_types"), n_layers)
        sizes = [n * width for n, width in zip(key_heads, widths, strict=True)]
        keys = [size for size, kind in zip(sizes, kinds, strict=True) if kind not in _KEEPING_NOTHING]
        shared, widest = int(values.get("num_kv_shared_layers") or 0), n_layers * max(key_heads) * max(widths)
        keeping = sum(keys[: len(keys) - shared]) / widest if widest else 1.0
        return Shape(
            n_parameters,
            n_layers,
            hidden,
            _widest(values.get("intermediate_size")) or 4 * hidden,
            heads,
            1 if is_multi_query else _widest(values.get("num_key_value_heads")) or heads,
            rotated + int(values.get("qk_nope_head_dim") or 0) if latent else width,
            int(values["vocab_size"]),
            bool(values.get("tie_word_embeddings")),
            *_experts(values, hidden, in_experts),
            latent + rotated if latent else 0,
            stored_bytes if quantization_method(config) else 0.0,
            keeping,
            count_adapted(config),
        )
    except (KeyError, TypeError, ValueError):
        return None


def count_adapted(config: Mapping[str, Any]) -> float:
    """Count the parameters of a LoRA of rank 1 on all linear layers, as PEFT makes it; 0 if it cannot."""

    def count() -> int:
        quiet_libraries()
        kind: Any = transformers.AutoModelForCausalLM
        try:
            full_config = transformers.CONFIG_MAPPING[str(config.get("model_type"))].from_dict(dict(config))
            with torch.device("meta"):
                adapted = peft.get_peft_model(
                    kind.from_config(full_config), peft.LoraConfig(r=1, target_modules="all-linear")
                )
        except Exception:  # noqa: BLE001 (a family unknown to transformers or PEFT fails in many ways)
            return 0
        return sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)

    versions = [_version(name) for name in ("transformers", "peft")]
    return float(memo("adapted", digest([json.dumps(config, sort_keys=True), versions]), count))


def _list_each(value: Any, n_layers: int) -> list[Any]:
    return value if isinstance(value, list) and len(value) == n_layers else [value or 1] * n_layers


def _experts(values: Mapping[str, Any], hidden: int, counted: float | None) -> tuple[float, float, int]:
    """Return the parameters in experts (three matrices each), the idle ones, and the shared width."""
    # Doge's configuration has experts even if the model has none.
    n_experts = int(values.get("num_experts") or 0) if values.get("is_moe") is not False else 0
    if not n_experts or counted == 0:
        return counted or 0.0, 0.0, 0
    n_active = int(values.get("num_experts_per_tok") or n_experts)
    n_layers = int(values["num_hidden_layers"]) - int(values.get("first_k_dense_replace") or 0)
    n_layers -= len(values.get("mlp_only_layers") or ())
    width = _widest(values.get("moe_intermediate_size") or values["intermediate_size"])
    expert_size = 3.0 * hidden * width * n_layers
    shared = int(values.get("num_shared_experts") or 0) * width
    shared = int(values.get("shared_expert_intermediate_size") or 0) or shared
    shared = width if values.get("model_type") in _SHARING_ONE else shared
    in_all = n_experts * expert_size if counted is None else counted
    return in_all, in_all * max(0, n_experts - n_active) / n_experts, shared


def _widest(width: int | list[int] | None) -> int:
    """Return a width, the largest if layers differ; 0 if unknown."""
    return int(max(width) if isinstance(width, list) else width or 0)


_version = cache(version)  # parsing a package's metadata is slow, and estimates need it a hundred times


def complete_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a configuration by Llama's names, with its family's defaults; 0 heads without attention."""
    # Files of Mamba-2's families contain Infinity, which canonical JSON cannot write.
    key = digest([json.dumps(config, sort_keys=True), _version("transformers"), [_KEYS, _OTHER_NAMES]])
    return memo("shapes", key, lambda: _fill_by_transformers(config)) or _rename_keys(config)


def _fill_by_transformers(config: Mapping[str, Any]) -> dict[str, Any]:
    from huggingface_hub.errors import StrictDataclassError

    family = str(config.get("model_type", ""))
    if family not in transformers.CONFIG_MAPPING:
        return {}
    try:
        text = transformers.CONFIG_MAPPING[family].from_dict(dict(config)).get_text_config(decoder=True)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, StrictDataclassError):
        return {}
    values = {}
    for name in _KEYS:
        candidates = (_value(text, key) for key in (name, *_OTHER_NAMES.get(name, ())))
        if (value := next((v for v in candidates if v is not None), None)) is not None:
            values[name] = value
    return values if hasattr(text, "num_attention_heads") else {"num_attention_heads": 0} | values


def _value(config: Any, name: str) -> Any:
    """Return a value of a configuration; a list if it differs by layer, as in Gemma-4."""
    if name in (getattr(config, "per_layer_attributes", None) or ()):
        return [getattr(layer, name, None) for layer in config.per_layer_config]
    return getattr(config, name, None)


def _rename_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Rename a configuration's keys to Llama's names; GPT-2 ties its embeddings by default."""
    llama_names = _LIKE_GPT_2 | {alias: name for name, aliases in _OTHER_NAMES.items() for alias in aliases}
    tied = {"tie_word_embeddings": config.get("tie_word_embeddings", "n_embd" in config)}
    text = config.get("text_config") or config
    return tied | {llama_names.get(name, name): value for name, value in text.items()}


def quantization_method(config: Mapping[str, Any]) -> str:
    """Return transformers' name of the method that quantised a model's files; empty if none did."""
    section = _section(config, "quantization_config")
    return str(section.get("quant_method") or "unknown") if section else ""


def find_packed_bits(config: Mapping[str, Any]) -> int:
    """Return the bits of a packed weight: GPTQ, AWQ, compressed-tensors and HQQ have other keys."""
    section = _section(config, "quantization_config")
    weights = (_section(group, "weights") for group in _section(section, "config_groups").values())
    hqq_section = _section(section, "quant_config")  # for all layers, or a section for each kind of layer
    layers = (_section(part, "weight_quant_params") for part in (hqq_section, *hqq_section.values()))
    candidates = [section.get("bits"), section.get("w_bit"), *(weight.get("num_bits") for weight in weights)]
    candidates += [layer.get("nbits") for layer in layers]
    bits = next((v for v in candidates if v is not None), None)
    return int(bits) if isinstance(bits, int) and bits in _PACKED_BITS else 4


def _section(config: Any, name: str) -> Mapping[str, Any]:
    section = config.get(name) if isinstance(config, Mapping) else None
    return section if isinstance(section, Mapping) else {}


def config_problems(config: Any, where: str) -> Iterator[Problem]:
    """Yield values of a model's configuration that a shape cannot have."""
    step = "the config.json that was published with the model"
    whole = config if isinstance(config, Mapping) else {"config.json": config}
    for section in ("config.json", "text_config", "quantization_config"):
        content = whole.get(section, {} if section == "config.json" else None)
        if not isinstance(content, Mapping) and (content is not None or section == "config.json"):
            yield Problem(where, f"{section}: {whole[section]!r}", "an object of names and values", step)
            return
    text = _rename_keys(whole)
    for name in _NEEDED:
        if (value := text.get(name)) is not None and not (type(value) is int and value > 0):
            yield Problem(where, f"{name}: {value!r}", "a positive whole number", step)
    for name in _OPTIONAL:
        each = value if isinstance(value := text.get(name), list) else [value]
        if not all(v is None or (type(v) is int and v >= 0) for v in each):
            yield Problem(where, f"{name}: {value!r}", "a whole number of 0 or more", step)
    bits = _section(whole, "quantization_config").get("bits")
    if bits is not None and bits not in _PACKED_BITS:
        one_of = ", ".join(map(str, _PACKED_BITS))
        yield Problem(where, f"quantization_config: {{bits: {bits!r}}}", f"one of {one_of}", step)
