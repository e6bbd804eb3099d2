"""Loaders of a base by what its weights are quantised to: as they are, in NF4, or in 8 bits.

Invariant: weights are in the machine's precision, and lie where they are placed.
"""

import logging
from typing import TYPE_CHECKING, Any

from harness.models.devices.placement import Placement
from harness.models.hardware import Machine, dtype
from harness.models.hub import ModelSource

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def _load_plain(
    source: ModelSource, machine: Machine, attention: str | None, placed: Placement
) -> "PreTrainedModel":
    """Load onto the device; on a GPU each tensor goes there as it is read, not through a copy of them all."""
    from transformers import AutoModelForCausalLM

    kind: Any = AutoModelForCausalLM
    model: PreTrainedModel = kind.from_pretrained(
        source.path,
        dtype=dtype(machine.precision),
        attn_implementation=attention,
        trust_remote_code=False,
        **placed.arguments,
    )
    return model


def _load_nf4(
    source: ModelSource, machine: Machine, attention: str | None, placed: Placement
) -> "PreTrainedModel":
    """Load with NF4 weights and double quantisation: on a GPU as they are, on a CPU dequantised once.

    A CPU gains no speed from four bits, and bitsandbytes repacks such weights at the first forward
    pass of an evaluation, rounding their scales again and cutting the gradient of later training.

    Source: Dettmers et al. 2023 (arXiv:2305.14314).
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    kind: Any = AutoModelForCausalLM
    model: Any = kind.from_pretrained(
        source.path,
        dtype=dtype(machine.precision),
        attn_implementation=attention,
        **{"device_map": {"": machine.device}, **placed.arguments},
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype(machine.precision),
        ),
    )
    if machine.device != "cuda":
        model = model.dequantize(dtype(machine.precision))
        model.is_loaded_in_4bit = False  # stays set, and would train the adapter in bf16
    loaded: PreTrainedModel = model
    return loaded


def _load_int8(
    source: ModelSource, machine: Machine, attention: str | None, placed: Placement
) -> "PreTrainedModel":
    """Load with LLM.int8: inputs and weights quantised by rows to 8 bits, large activations multiplied apart.

    Which activations these are depends on all rows that are computed together. On a CPU bitsandbytes trains
    on the dequantised weights and answers with the quantised ones.

    Source: Dettmers et al. 2022 (arXiv:2208.07339).
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    # It would say of each product that it is made in fp16.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    kind: Any = AutoModelForCausalLM
    model: PreTrainedModel = kind.from_pretrained(
        source.path,
        dtype=dtype(machine.precision),
        attn_implementation=attention,
        **{"device_map": {"": machine.device}, **placed.arguments},
        quantization_config=BitsAndBytesConfig(load_in_8bit=True),
    )
    return model


LOADERS = {"": _load_plain, "nf4": _load_nf4, "int8": _load_int8}
