"""Weights of a run as one whole model in fp32 on the CPU: the base with its adapter or delta merged.

Invariant: the merged model's logits are compared with the unmerged one's, and the written tensors are read
again and compared with the merged ones. Only safetensors are written, and no code. Source: PEFT's
`merge_and_unload(safe_merge=True)`
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.errors import CandidateFailed, one_line
from harness.models.against_base import adapter_problems, open_adapter, read_adapter_config
from harness.models.deltas import CONFIG as DELTA_CONFIG
from harness.models.deltas import MATRICES, apply_delta
from harness.models.devices import load_base
from harness.models.embedded_model import save_tokenizer
from harness.models.hardware import Machine, dtype
from harness.models.hub import ModelSource
from harness.models.tokenization import end_ids
from harness.models.weight_files import map_stored_tensors, refuse_infinite, refuse_moved_base
from harness.records import Limits, parse_json

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MERGE_GAP = 0.02  # largest difference of a logit that merging in fp32 may make, in shares of their spread
_TYPES = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}
_N_TOKENS = 48  # tokens of the text on which both are compared


class WholeModel(NamedTuple):
    """A model in fp32 with its tokenizer; `gap` is the largest change of a logit by merging."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    gap: float


def unmergeable(kind: str, folder: Path | None) -> tuple[str, str] | None:
    """Explain why weights of a kind cannot be merged into one model, and what to do; None if they can."""
    if kind == "adapter" and folder:
        family = str(read_adapter_config(folder / "adapter").get("peft_type", "LORA"))
        if family in ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CARTRIDGE", "ADAPTION_PROMPT"):
            return f"an adapter of the family {family}, a soft prompt without changed weights", "method: lora"
    if kind == "delta" and folder:
        form = parse_json((folder / "delta" / DELTA_CONFIG).read_text("utf-8")).get("form")
        if form != MATRICES:
            return f"a delta of the form {form}, whose layers no other program knows", "method: lora or full"
    return None


@contextmanager
def open_whole(source: ModelSource, kind: str, folder: Path | None) -> Iterator[WholeModel]:
    """Open the base, a whole model in its place, or the base with an adapter or delta merged into it.

    A quantised base is opened with its rounded weights, in fp32. CandidateFailed is raised if the weights
    cannot be merged, or the merged model answers otherwise.
    """
    import torch

    if kind == "model" and folder:
        source = source._replace(path=folder / "model")
    model, tokenizer = load_base(source, Machine("cpu", "the processor", "fp32", 1.0))
    model.eval()
    if source.quantization == "int8":
        model = model.dequantize(torch.float32)
    if kind == "adapter" and folder:
        merged, gap = _merge(model, folder / "adapter", source)
        yield WholeModel(merged, tokenizer, gap)
    elif kind == "delta" and folder:
        with apply_delta(model, folder / "delta"):
            yield WholeModel(model, tokenizer, 0.0)
    else:
        yield WholeModel(model, tokenizer, 0.0)


def _merge(model: Any, folder: Path, source: ModelSource) -> tuple[Any, float]:
    """Merge an adapter into a base in fp32, and return the largest change of a logit with it."""
    import torch

    refuse_infinite(folder)
    refuse_moved_base(read_adapter_config(folder))
    for problem in adapter_problems(folder, source, ""):
        raise CandidateFailed(f"{problem.found}; expected {problem.expected}", problem.next_step)
    adapted = open_adapter(model, folder, torch_device="cpu").eval()
    before = _logits(adapted)
    try:
        with torch.no_grad():
            merged = adapted.merge_and_unload(safe_merge=True).eval()
    except (NotImplementedError, AttributeError, TypeError, ValueError) as error:
        found = f"an adapter that PEFT cannot merge ({one_line(error)})"
        raise CandidateFailed(found, "method: lora, which can be merged") from error
    gap = float((_logits(merged) - before).abs().max())
    if not gap <= MERGE_GAP * float(before.std()):
        found = f"a merged model whose logits differ from the adapter's by up to {gap:.3g}"
        raise CandidateFailed(found, "method: lora, or serving the adapter itself")
    return merged, gap


def _logits(model: Any) -> "torch.Tensor":
    """Return the logits of one text of the lower token ids, (t, v)."""
    import torch

    n_ids = int(model.get_input_embeddings().weight.shape[0])
    ids = torch.arange(1, _N_TOKENS + 1) * 37 % n_ids
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=ids[None]).logits[0].float()
    return logits


def stored_precision(path: Path) -> str:
    """Return the precision in which most bytes of a model are stored: fp32, fp16 or bf16; bf16 of others."""
    sizes: dict[str, int] = {}
    for tensor in map_stored_tensors(path).values():
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.end - tensor.begin
    return _TYPES.get(max(sizes, key=lambda name: sizes[name], default=""), "bf16")


def save_beside(whole: WholeModel, folder: Path, limits: Limits) -> None:
    """Write the tokenizer with the chat template, and the generation limits."""
    from transformers import GenerationConfig

    tokenizer = whole.tokenizer
    ends = end_ids(tokenizer, whole.model.generation_config)
    sampled = {"do_sample": True, "temperature": limits.temperature, "top_p": limits.top_p}
    GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=ends,
        pad_token_id=ends[0],
        max_new_tokens=limits.max_new_tokens,
        **(sampled if limits.temperature else {"do_sample": False}),
    ).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    whole.model.config.save_pretrained(folder)


def save_whole(whole: WholeModel, folder: Path, precision: str, limits: Limits) -> None:
    """Write a model in a precision, with its tokenizer, chat template and generation limits, and check it."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = whole.model
    model.to(dtype(precision))
    model.save_pretrained(folder)
    save_beside(whole, folder, limits)
    again: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype(precision), trust_remote_code=False)
    read = again.state_dict()
    changed = (name for name, own in model.state_dict().items() if not torch.equal(own, read[name]))
    if name := next(changed, ""):
        found = f"a written model whose {name} is not the one in memory, as where tied weights differ"
        raise CandidateFailed(found, "an adapter that leaves embeddings and output layer alone")
