"""ONNX for onnxruntime: one graph that reads a prompt or a token with the cached keys, and its weights.

Only the `decode` graph of transformers' export is kept: with an empty cache it reads a whole prompt. The
tokenizer with the chat template is stored with it.
Source: transformers' `OnnxExporter`, and its `decompose_for_generation` with `multi_token_decode`
"""

import importlib.util
from collections import Counter
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from harness.errors import CandidateFailed, Problem, one_line
from harness.evaluation import limits_of
from harness.exports import PRECISIONS, ExportJob, Format, Written
from harness.models.against_base import open_whole, save_beside
from harness.models.later import torch
from harness.spec import ExportPolicy

_FILE = "model.onnx"
_PACKAGES = ("onnx", "onnxscript")


def problems(policy: ExportPolicy, quantization: str) -> Iterator[Problem]:
    """Yield a problem if a package of the extra is missing."""
    if missing := [name for name in (*_PACKAGES, "onnxruntime") if not importlib.util.find_spec(name)]:
        found, expected = f"no package {', '.join(missing)}", "the packages of the extra onnx"
        yield Problem("--to onnx", found, expected, "pip install 'harness-evals[onnx]'")


def write(job: ExportJob, folder: Path) -> Written:
    """Write the graph with its weights, and the tokenizer."""
    from importlib.metadata import version

    from transformers.exporters import OnnxConfig, OnnxExporter
    from transformers.exporters.utils import decompose_for_generation

    plan = job.plan
    with open_whole(plan.source, plan.weights.kind, plan.weights.folder) as whole:
        model: Any = whole.model
        ids = torch.arange(1, 9)[None].repeat(2, 1)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        try:
            with redirect_stdout(StringIO()):  # torch prints its progress there
                decode: Any = decompose_for_generation(model, inputs, multi_token_decode=True)["decode"]
                exported = OnnxExporter().export(decode[0], decode[1], OnnxConfig(dynamic=True))
        except (RuntimeError, ValueError, KeyError, NotImplementedError, TypeError) as error:
            found = f"an architecture that transformers does not export to ONNX ({one_line(error)})"
            raise CandidateFailed(found, "--to merged or gguf") from error
        OnnxExporter.save_program(exported.program, folder / _FILE)
        save_beside(whole, folder, limits_of(job.session.target.task, plan.candidate.recipe.sampling))
        types = Counter(str(t.dtype) for t in exported.program.graph.initializers.values() if t.dtype)
        return Written(types, {name: version(name) for name in _PACKAGES}, whole.gap)


FORMAT = Format(
    bits={"fp32": PRECISIONS["fp32"]}, write=write, seconds=(60.0, 300.0), default="fp32", problems=problems
)
