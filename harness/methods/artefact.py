"""Artefact as it is served: made by `harness export`, or any other GGUF, ONNX or whole model.

Invariant: nothing is copied; the weights' digest has the files' checksums.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from harness.errors import Problem
from harness.methods._shared import whole_model_problems
from harness.models import artefacts
from harness.models.hub import ModelSource, has_tokenizer
from harness.plugins import Method, MethodChecks
from harness.records import TrainingRecord
from harness.spec import Recipe, Spec
from harness.training import FitContext, Weights

Params = Spec  # nothing to set


def problems(recipe: Recipe, source: ModelSource, where: str) -> Iterator[Problem]:
    """Yield the problems of the artefact at the recipe's path."""
    path = Path(recipe.path or "")
    kind = artefacts.format_of(path)
    if kind is None:
        expected = "one .gguf or .onnx file, or a whole model with config.json and safetensors"
        yield Problem(where, f"{path} without one of these", expected, "correct path, or harness export")
        return
    # An export gets the prompts of the run that it was made from.
    export = artefacts.read_export(path)
    asked = export.get("prompt") or {}
    for name in ("template", "prompting", "answer", *(["system"] if recipe.system is not None else [])):
        own = getattr(recipe, name)
        if name in asked and asked[name] != own:
            run, wanted = export.get("run_id"), json.dumps(asked[name])
            found = f"{name}: {json.dumps(own)}, and {wanted} in its run {run}"
            step = f"{name}: {wanted} in this candidate"
            yield Problem(where, found, "the prompts of the run that it was exported from", step)
    for file, damage in artefacts.find_damage(path) if kind != "model" else ():
        yield Problem(
            where,
            f"{file}, damaged: {damage}",
            f"a whole {kind.upper()} file",
            "copy, download or export it again",
        )
    if kind == "model":
        yield from whole_model_problems(recipe, source, where)
    elif kind == "onnx" and not has_tokenizer(artefacts.find_tokenizer_folder(path)):
        folder = str(artefacts.main_file(path).parent)
        step = f"AutoTokenizer.from_pretrained({str(source.path)!r}).save_pretrained({folder!r})"
        yield Problem(
            where, f"{artefacts.main_file(path)} without a tokenizer", "the tokenizer next to the file", step
        )


def fit(context: FitContext, params: Params) -> Weights:
    """Record the artefact's path and size."""
    assert context.path is not None
    record = context.folder / artefacts.FILE
    record.write_text(json.dumps({"path": str(context.path.absolute())}), "utf-8")
    own = artefacts.artefact_digest(record, context.source.weights_digest)
    made = TrainingRecord(size_bytes=artefacts.count_bytes(context.path))
    return Weights("artefact", own, context.folder, made, source=context.source)


METHOD = Method(params=Params, fit=fit, makes="artefact", made_elsewhere=True, checks=MethodChecks(problems))
