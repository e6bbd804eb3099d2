"""A Llama of 1, 3 or 8 billion random parameters: as fast and as large as a trained one, without a download.

Invariant: the same size and seed give the same weights on the same device; the tokenizer is another model's.
`HARNESS_GPU_MODEL` names the size (`1b`, `3b`, `8b`); the default is the largest that fits.
"""

import gc
import os
import shutil
from pathlib import Path
from typing import NamedTuple

from harness.models import memory as footprint
from harness.models.hardware import Machine, dtype, memory
from harness.models.hub import ModelSource
from harness.models.shapes import Shape
from harness.records import BLOCK


class Size(NamedTuple):
    """Dimensions of the architecture; the vocabulary is the tokenizer's."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int

    def shape(self, vocabulary: int) -> Shape:
        """Return the shape with the number of its parameters; embeddings are tied, biases absent."""
        width = self.hidden // self.heads
        attention = 2 * self.hidden * (self.heads + self.kv_heads) * width
        layer = attention + 3 * self.hidden * self.intermediate + 2 * self.hidden
        n = self.layers * layer + vocabulary * self.hidden + self.hidden
        return Shape(
            n, self.layers, self.hidden, self.intermediate, self.heads, self.kv_heads, width, vocabulary,
            tied=True,
        )  # fmt: skip


SIZES = {
    "tiny": Size(2, 32, 64, 4, 2),  # to test the benchmark itself
    "1b": Size(16, 2048, 8192, 32, 8),
    "3b": Size(28, 3072, 8192, 24, 8),
    "8b": Size(32, 4096, 14336, 32, 8),
}
MAX_POSITIONS = 8192


class RandomModel(NamedTuple):
    """A base with random weights on disk, its shape, and the machine for the measurement."""

    size: str
    source: ModelSource
    shape: Shape
    machine: Machine


def choose_size(tokenizer_of: Path, folder: Path) -> str:
    """Return the size that `HARNESS_GPU_MODEL` names, else the largest that fits the GPU and the disk."""
    from transformers import AutoTokenizer

    if chosen := os.environ.get("HARNESS_GPU_MODEL"):
        return chosen
    vocabulary = len(AutoTokenizer.from_pretrained(tokenizer_of))
    free_gb, disk_gb = memory("cuda").free_gib * 2**30 / 1e9, shutil.disk_usage(folder).free / 1e9
    fits = [
        name
        for name in ("1b", "3b", "8b")
        for shape in [SIZES[name].shape(vocabulary)]
        if estimate_gb(shape) <= free_gb and 1.2 * footprint.weights_gb(shape, "bf16") <= disk_gb
    ]
    return (fits or ["1b"])[-1]


def estimate_gb(shape: Shape) -> float:
    """Estimate the memory to answer a block of 1,024 tokens each, and to train a LoRA on eight such rows."""
    adapter = footprint.lora_parameters(shape, r=16)
    return max(
        footprint.inference_peak(shape, BLOCK * 1024).total,
        footprint.training_peak(shape, adapter, 8 * 1024).total,
    )


def build(folder: Path, size: str, tokenizer_of: Path, machine: Machine, spread: float = 0.02) -> RandomModel:
    """Save a model of a size with a folder's tokenizer; `spread` is the standard deviation of weights."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)
    shape = SIZES[size].shape(len(tokenizer))
    config = LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
        num_hidden_layers=shape.n_layers, num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_kv_heads, head_dim=shape.head_dim, max_position_embeddings=MAX_POSITIONS,
        initializer_range=spread, tie_word_embeddings=True, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        dtype=dtype(machine.precision),
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(machine.device):
        model = LlamaForCausalLM._from_config(config)
    assert sum(p.numel() for p in model.parameters()) == shape.n_parameters
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    del model
    gc.collect()
    # Digests would require reading all weights, and nothing is stored under them.
    source = ModelSource(f"random Llama {size}", folder, f"random-{size}", "random", shape.n_parameters)
    return RandomModel(size, source, shape, machine)
