"""Models with a head in place of their vocabulary: one number for a reward, or one for each label.

Invariant: the head is drawn by the seed that was set before, and saved with the adapter that is trained
beside it; what is opened later is what was saved.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.models import oom
from harness.models.hardware import Machine, dtype
from harness.models.hub import ModelSource
from harness.progress import quiet_libraries

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_with_head(
    source: ModelSource, machine: Machine, n_outputs: int
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Load a base with a new head of so many outputs, in the machine's precision, and its tokenizer.

    Raises:
        CandidateFailed: the model does not fit the device's memory.
    """
    quiet_libraries()
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source.path)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    found = f"{source.name} does not fit the memory of {machine.name}"
    kind: Any = AutoModelForSequenceClassification
    with oom.enough_memory(found, "a smaller base_model or device: cpu"):
        model = kind.from_pretrained(source.path, num_labels=n_outputs, dtype=dtype(machine.precision)).to(
            machine.device
        )
    # The last token that is no padding is the one that the head reads.
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def open_reward_model(
    folder: Path, source: ModelSource, machine: Machine
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Open a trained reward model, to be asked and not trained."""
    from peft import PeftModel

    model, tokenizer = load_with_head(source, machine, 1)
    opened: Any = PeftModel.from_pretrained(model, str(folder))
    return opened.merge_and_unload().eval(), tokenizer
