"""Loading of a base: model and tokenizer in a machine's precision, placed, quantised and checked.

Invariant: what transformers cannot load, and a tokenizer that does not fit, fails with its reason.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import CandidateFailed, one_line
from harness.models import oom
from harness.models.devices import placement
from harness.models.devices.cuda_attention import avoid_cudnn_attention
from harness.models.devices.loaders import LOADERS
from harness.models.hardware import Machine
from harness.models.hub import ModelSource, is_encoder_decoder, load_tokenizer
from harness.models.loglikelihood import UNSUPPORTED
from harness.progress import quiet_libraries

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_OF_A_DEVICE = re.compile("CUDA|NVIDIA")  # no GPU, or one that failed: no fault of the base


def load_base(
    source: ModelSource, machine: Machine, attention: str = "sdpa", placed: placement.Placement | None = None
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Load model and tokenizer in the machine's precision, quantised where the source is.

    They lie on the machine's device, or as they are `placed`.

    `attention` is transformers' `attn_implementation`; one that the architecture does not have gives way to
    its own. Scoring needs one that honours masks.

    Raises:
        CandidateFailed: the model does not fit the device's memory, transformers cannot load it, its files
            lack tensors, or its tokenizer has tokens that it has no embeddings for.
    """
    quiet_libraries()
    avoid_cudnn_attention()
    found = f"{source.name} does not fit the memory of {machine.name}"
    with oom.explain_out_of_memory(found, "a smaller base_model or device: cpu"), _refuse_unloadable(source):
        if is_encoder_decoder(source):
            raise CandidateFailed(f"{source.name} is an encoder with a decoder", "a causal language model")
        known = choose_supported_attention(source.path, attention)
        placed = placed or placement.Placement({"": machine.device} if machine.device != "cpu" else None)
        model = LOADERS[source.quantization](source, machine, known, placed)
        placement.refuse_headless(model, source.name)
        _expect_no_router(model.config.get_text_config())
        tokenizer = load_tokenizer(source)
        embeddings: Any = model.get_input_embeddings()
        _refuse_unknown_ids(tokenizer, len(embeddings.weight), source.name)
        return model, tokenizer


def _expect_no_router(config: Any) -> None:
    """Weight no loss of routers where there are none, as in the small sizes of Granite 4.0."""
    if getattr(config, "num_local_experts", None) == 0:
        config.router_aux_loss_coef = 0.0  # else TRL asks the model for it


def _refuse_unknown_ids(tokenizer: "PreTrainedTokenizerBase", n_ids: int, name: str) -> None:
    """Refuse a tokenizer with tokens beyond the embeddings; added ones that stand in no chat may stay."""
    if len(tokenizer) <= n_ids:
        return
    added, chat = tokenizer.get_added_vocab(), f"{tokenizer.chat_template}"
    in_use = (tokenizer.bos_token, tokenizer.eos_token)
    beyond = {token for token, i in tokenizer.get_vocab().items() if i >= n_ids}
    if read := sorted(one for one in beyond if one not in added or one in in_use or one in chat):
        found = f"{name}: {len(read)} of its tokens have no embeddings, such as {read[0]!r}"
        raise CandidateFailed(found, "its own tokenizer, or model.resize_token_embeddings before saving it")


@contextmanager
def _refuse_unloadable(source: ModelSource) -> Iterator[None]:
    """Turn what transformers cannot load into a failure of the candidate that says why."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except (*UNSUPPORTED, ImportError, StrictDataclassError) as error:
        if oom.ran_out(error) or _OF_A_DEVICE.search(str(error)):
            raise
        cause = error.__cause__ if isinstance(error, StrictDataclassError) else None
        reason = f"{source.name} cannot be loaded ({one_line(cause or error)})"
        raise CandidateFailed(reason, "another base_model, or a newer transformers") from error


def choose_supported_attention(folder: Path, wanted: str) -> str | None:
    """Return the attention that is wanted where an architecture has it; None leaves it to transformers."""
    if wanted == "sdpa":  # what transformers takes unasked, where an architecture has it
        return None
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    has_flash = model._supports_flash_attn  # noqa: SLF001  (transformers asks so itself)
    return wanted if has_flash or "flash" not in wanted else None


def build_without_weights(folder: Path) -> Any:
    """Build a base on the meta device; None where transformers cannot, which loading it will say."""
    import torch
    from huggingface_hub.errors import StrictDataclassError

    quiet_libraries()
    from transformers import AutoConfig, AutoModelForCausalLM

    kind: Any = AutoModelForCausalLM
    try:
        with torch.device("meta"):
            return kind.from_config(AutoConfig.from_pretrained(folder, trust_remote_code=False))
    except (*UNSUPPORTED, OSError, ImportError, StrictDataclassError):
        return None
