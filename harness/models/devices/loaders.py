"""Loaders of a base by what its weights are quantised to: as they are, in NF4, or in 8 bits.

Invariant: weights are in the machine's precision, and lie where they are placed.
"""

import logging
import re
from collections.abc import Mapping
from math import inf
from typing import TYPE_CHECKING, Any

from harness.errors import CandidateFailed
from harness.models.devices.placement import Placement
from harness.models.hardware import Machine, dtype
from harness.models.hub import ModelSource

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LAYER = re.compile(r"\.(\d+)\.")


def _load_plain(
    source: ModelSource, machine: Machine, attention: str | None, placed: Placement
) -> "PreTrainedModel":
    """Load onto the device; on a GPU each tensor goes there as it is read, not through a copy of them all."""
    return _load_whole(source, machine, attention, placed.arguments)


def _load_whole(
    source: ModelSource, machine: Machine, attention: str | None, arguments: Mapping[str, Any]
) -> "PreTrainedModel":
    """Load a model by transformers, and refuse one whose files do not fit its configuration."""
    from transformers import AutoModelForCausalLM

    kind: Any = AutoModelForCausalLM
    loaded = kind.from_pretrained(
        source.path,
        dtype=dtype(machine.precision),
        attn_implementation=attention,
        trust_remote_code=False,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # which are refused by name
        **arguments,
    )
    return _refuse_incomplete(source, *loaded)


def _quantization_arguments(machine: Machine, placed: Placement, **config: Any) -> dict[str, Any]:
    """Return the arguments by which bitsandbytes quantises a model as it is loaded."""
    from transformers import BitsAndBytesConfig

    where = {"device_map": {"": machine.device}, **placed.arguments}
    return {**where, "quantization_config": BitsAndBytesConfig(**config)}


def _refuse_incomplete(source: ModelSource, model: "PreTrainedModel", info: Any) -> "PreTrainedModel":
    """Refuse a model whose files lack some of its parameters, which transformers then draws at random."""
    # Those of a classifier lack the output layer; others differ in size, or have layers beyond config.json.
    for name, found, expected in sorted(info["mismatched_keys"]):
        reason = f"{source.path}: {name} is {[*found]} in its files, and {[*expected]} by its config.json"
        raise CandidateFailed(reason, "the config.json that was published with the weights")
    names = {name for name, _ in model.named_parameters()}
    if lacking := sorted(names.intersection(info["missing_keys"])):
        n, kind = len(lacking), type(model).__name__
        found = f"{source.path}: its files lack {n} of {len(names)} tensors of {kind}, such as {lacking[0]}"
        raise CandidateFailed(found, "a base that was saved as a causal language model")
    text: Any = model.config.get_text_config(decoder=True)
    n_layers = getattr(text, "num_hidden_layers", inf)
    n_read = n_layers + (getattr(text, "num_nextn_predict_layers", 0) or 0)
    if left := sorted(name for name in info["unexpected_keys"] if _is_of_layer_beyond(name, n_read, names)):
        found = f"{source.path}: num_hidden_layers: {n_layers} by its config.json, and {left[0]} in its files"
        raise CandidateFailed(found, "the config.json that was published with the weights")
    return model


def _is_of_layer_beyond(name: str, n_layers: float, names: set[str]) -> bool:
    """Tell whether a tensor is one that the first layer has too, of a layer beyond so many."""
    at = _LAYER.search(name)
    return at is not None and int(at[1]) >= n_layers and f"{name[: at.start()]}.0.{name[at.end() :]}" in names


def _load_nf4(
    source: ModelSource, machine: Machine, attention: str | None, placed: Placement
) -> "PreTrainedModel":
    """Load with NF4 weights and double quantisation: on a GPU as they are, on a CPU dequantised once."""
    # A CPU gains no speed from four bits, and bitsandbytes repacks such weights at the first forward pass of
    # an evaluation, rounding their scales again and cutting the gradient of later training.
    # Source: Dettmers et al. 2023 (arXiv:2305.14314).
    arguments = _quantization_arguments(
        machine,
        placed,
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype(machine.precision),
    )
    model: Any = _load_whole(source, machine, attention, arguments)
    if machine.device != "cuda":
        model = model.dequantize(dtype(machine.precision))
        model.is_loaded_in_4bit = False  # stays set, and would train the adapter in bf16
    whole: PreTrainedModel = model
    return whole


def _load_int8(
    source: ModelSource, machine: Machine, attention: str | None, placed: Placement
) -> "PreTrainedModel":
    """Load with LLM.int8: inputs and weights by rows in 8 bits, large activations multiplied apart."""
    # Which activations these are depends on all rows that are computed together. On a CPU bitsandbytes trains
    # on the dequantised weights and answers with the quantised ones.
    # Source: Dettmers et al. 2022 (arXiv:2208.07339).
    # bitsandbytes would say of each product that it is made in fp16.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    return _load_whole(
        source, machine, attention, _quantization_arguments(machine, placed, load_in_8bit=True)
    )


LOADERS = {"": _load_plain, "nf4": _load_nf4, "int8": _load_int8}
