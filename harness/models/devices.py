"""Loading of a base: its devices, precision and quantisation, and checks of its files.

Invariant: placement depends on sizes alone; a base that fits one device is not spread. cuDNN's attention is
never used: its backward pass gives NaN gradients with a mask when a batch is 64 tokens longer than a multiple
of 128.
Source: pytorch/pytorch issue 196678 (H100 and H200, torch from 2.11 on), huggingface/trl issue 7181
"""

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import inf
from pathlib import Path
from typing import Any, cast

from harness.errors import CandidateFailed, one_line
from harness.models import hub, memory, out_of_memory
from harness.models.hardware import Machine, dtype
from harness.models.hardware import memory as device_memory
from harness.models.hub import ModelSource, load_tokenizer
from harness.models.later import Model, Tokenizer, torch, transformers
from harness.models.loglikelihood import UNSUPPORTED
from harness.models.weight_files import read_config, weights_files
from harness.progress import quiet_libraries

_LAYER = re.compile(r"\.(\d+)\.")
_OF_A_DEVICE = re.compile("CUDA|NVIDIA")  # errors of a missing or failed GPU, not of the base
_SPARE = 0.9  # share of main memory for weights that are offloaded from a GPU
# Tokens whose keys and values must fit in memory besides the weights: a long prompt. Batches are halved when
# memory runs out, so a base with room for one long prompt fits.
LEAST_TOKENS = 4_096
Placement = Mapping[str, Any]  # transformers' `device_map`, and `max_memory` unless it is whole on one device
Room = Mapping[int | str, int]  # free bytes by accelerate's device names: 0, 1, … and cpu


def free_room(machine: Machine) -> Room:
    """Return the free memory of each device that a base may use."""
    room: dict[int | str, int] = {"cpu": int(device_memory("cpu").free_gib * 2**30)}
    if machine.device == "cuda":
        room |= {index: torch.cuda.mem_get_info(index)[0] for index in range(torch.cuda.device_count())}
    return room


def weights_bytes(source: ModelSource, precision: str) -> float:
    """Return the bytes of a base's weights when loaded, from its size and shape."""
    shape = hub.shape(source)
    if shape is None:
        return source.n_parameters * memory.BYTES[precision]
    return 1e9 * memory.weights_gb(shape, precision, quantization=source.quantization)


def place(source: ModelSource, machine: Machine, room: Room) -> Placement:
    """Plan the placement of a base for inference, with room for the keys of at least one long prompt."""
    shape = hub.shape(source)
    keys = memory.kv_cache_bytes(shape, LEAST_TOKENS, machine.precision) if shape else 0.0
    weights, main = weights_bytes(source, machine.precision), "cpu" if machine.device == "cpu" else 0
    if weights + keys <= room[main] or (machine.device == "cpu" and source.quantization):
        return {} if machine.device == "cpu" else {"device_map": {"": machine.device}}
    gpus = {name: n for name, n in room.items() if name != "cpu"}
    keys_per_device = keys / max(1, len(gpus))  # each device holds the keys of its own layers
    max_memory: dict[int | str, int] = {name: max(0, int(n - keys_per_device)) for name, n in gpus.items()}
    if not source.quantization:  # bitsandbytes computes on GPUs only here
        max_memory["cpu"] = max(0, int(_SPARE * (room["cpu"] - (0 if gpus else keys))))
    return {"device_map": "auto", "max_memory": max_memory}


def is_spread(model: Any) -> bool:
    """Tell whether a model is on several devices, or partly on disk."""
    return len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1


def _load_weights(source: ModelSource, machine: Machine, attention: str | None, placed: Placement) -> Model:
    from transformers.integrations.fsdp import is_fsdp_enabled

    if (source.path / hub.WITHOUT_WEIGHTS).exists() and not weights_files(source.path):
        raise CandidateFailed(f"{source.path}: a model without its weights", "a copy of its weights there")
    precision = dtype(machine.precision)
    arguments = dict(placed)
    is_sharded = is_fsdp_enabled()  # FSDP shards floats only: four bits stay
    if source.quantization:
        arguments = {"device_map": {"": "cpu" if is_sharded else machine.device}, **arguments}
    if source.quantization == "nf4":
        # With double quantisation. Source: Dettmers et al. 2023 (arXiv:2305.14314).
        arguments["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=precision,
            bnb_4bit_quant_storage=precision if is_sharded else None,
        )
    if source.quantization == "int8":
        # Inputs and weights are quantised per row to 8 bits, and large activations are multiplied separately;
        # which ones depends on all rows of a batch. On a CPU bitsandbytes trains with dequantised weights and
        # infers with quantised ones. Source: Dettmers et al. 2022 (arXiv:2208.07339).
        arguments["quantization_config"] = transformers.BitsAndBytesConfig(load_in_8bit=True)
        # bitsandbytes would warn at each product that it casts to fp16.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    kind: Any = transformers.AutoModelForCausalLM
    model, info = kind.from_pretrained(
        source.path,
        dtype=precision,
        attn_implementation=attention,
        trust_remote_code=False,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are refused below, by name
        **arguments,
    )
    # transformers would initialise parameters that the files lack at random. A classifier's files lack the
    # output layer; others differ in size, or have more layers than config.json.
    published = "the config.json that was published with the weights"
    for name, stored, built in sorted(info["mismatched_keys"]):
        reason = f"{source.path}: {name} is {[*stored]} in its files, and {[*built]} by its config.json"
        raise CandidateFailed(reason, published)
    names = {name for name, _ in model.named_parameters()}
    if lacking := sorted(names.intersection(info["missing_keys"])):
        n, cls = len(lacking), type(model).__name__
        reason = f"{source.path}: its files lack {n} of {len(names)} tensors of {cls}, such as {lacking[0]}"
        raise CandidateFailed(reason, "a base that was saved as a causal language model")
    text: Any = model.config.get_text_config(decoder=True)
    n_layers = getattr(text, "num_hidden_layers", inf)
    n_read = n_layers + (getattr(text, "num_nextn_predict_layers", 0) or 0)
    for name in sorted(info["unexpected_keys"]):
        match = _LAYER.search(name)
        if match and int(match[1]) >= n_read and f"{name[: match.start()]}.0.{name[match.end() :]}" in names:
            found = f"num_hidden_layers: {n_layers} by its config.json, and {name} in its files"
            raise CandidateFailed(f"{source.path}: {found}", published)
    if source.quantization == "nf4" and machine.device != "cuda" and not is_sharded:
        # Four bits are no faster on a CPU, and bitsandbytes would repack the weights at the first evaluation,
        # which rounds their scales again and stops gradients in later training.
        model = model.dequantize(precision)
        model.is_loaded_in_4bit = False  # otherwise the adapter would be trained in bf16
    return cast(Model, model)


def load_base(
    source: ModelSource, machine: Machine, attention: str = "sdpa", placed: Placement | None = None
) -> tuple[Model, Tokenizer]:
    """Load model and tokenizer in the machine's precision, quantised if the source says so.

    The model goes to the machine's device, or where it is `placed`. `attention` is transformers'
    `attn_implementation`; an architecture that lacks it uses its own. Scoring needs one that honours masks.

    Raises:
        CandidateFailed: the model does not fit the device's memory, transformers cannot load it, its files
            lack tensors, or its tokenizer has tokens without embeddings.
    """
    quiet_libraries()
    avoid_cudnn_attention()
    found = f"{source.name} does not fit the memory of {machine.name}"
    step = "a smaller base_model or device: cpu"
    with out_of_memory.explain_out_of_memory(found, step), _refuse_unloadable(source):
        if hub.is_encoder_decoder(source):
            raise CandidateFailed(f"{source.name} is an encoder with a decoder", "a causal language model")
        probed = build_without_weights(source.path) if "flash" in attention else None
        has_flash = "flash" not in attention or getattr(probed, "_supports_flash_attn", False)
        # By default transformers uses sdpa where an architecture has it.
        implementation = attention if has_flash and attention != "sdpa" else None
        if placed is None:
            placed = {"device_map": {"": machine.device}} if machine.device != "cpu" else {}
        model = _load_weights(source, machine, implementation, placed)
        if model.device.type == "meta":
            reason = f"{source.name}: no memory has room for its embeddings"
            raise CandidateFailed(reason, "a smaller base_model")
        config = model.config.get_text_config()
        if getattr(config, "num_local_experts", None) == 0:
            config.router_aux_loss_coef = 0.0  # otherwise TRL asks the model for that loss
        tokenizer = load_tokenizer(source)
        embeddings: Any = model.get_input_embeddings()
        # Added tokens without embeddings are allowed if no chat contains them.
        n_ids, added, chat = len(embeddings.weight), tokenizer.get_added_vocab(), f"{tokenizer.chat_template}"
        in_use = (tokenizer.bos_token, tokenizer.eos_token)
        extra_tokens = {token for token, i in tokenizer.get_vocab().items() if i >= n_ids}
        if faulty := sorted(t for t in extra_tokens if t not in added or t in in_use or t in chat):
            reason = f"{source.name}: {len(faulty)} of its tokens have no embeddings, such as {faulty[0]!r}"
            step = "its own tokenizer, or model.resize_token_embeddings before saving it"
            raise CandidateFailed(reason, step)
        return model, tokenizer


@contextmanager
def _refuse_unloadable(source: ModelSource) -> Iterator[None]:
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except (*UNSUPPORTED, ImportError, StrictDataclassError) as error:
        if out_of_memory.ran_out_of_memory(error) or _OF_A_DEVICE.search(str(error)):
            raise
        cause = error.__cause__ if isinstance(error, StrictDataclassError) else None
        reason = f"{source.name} cannot be loaded ({one_line(cause or error)})"
        step = "another base_model, or a newer transformers"
        if "auto_map" in read_config(source.path):
            reason = f"{source.name} brings its own code (auto_map), which is never run"
            step = "a version that transformers has itself, or the model behind an endpoint"
        raise CandidateFailed(reason, step) from error


def build_without_weights(folder: Path) -> Any:
    """Build a base on the meta device; None if transformers cannot (loading it will report why)."""
    from huggingface_hub.errors import StrictDataclassError

    quiet_libraries()
    kind: Any = transformers.AutoModelForCausalLM
    try:
        with torch.device("meta"):
            return kind.from_config(transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False))
    except (*UNSUPPORTED, OSError, ImportError, StrictDataclassError):
        return None


def avoid_cudnn_attention() -> None:
    """Disable cuDNN's attention; FlashAttention, memory-efficient and plain attention stay."""
    torch.backends.cuda.enable_cudnn_sdp(False)
