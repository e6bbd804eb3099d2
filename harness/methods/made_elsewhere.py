"""Weights that exist already: the base's own, a model at an endpoint, and files that others made.

Invariant: only configurations and headers are read before a run. An adapter is copied unchanged and judged
like one trained here; models and artefacts are read where they are, and an artefact's digest has the files'
checksums. Of an endpoint's key only the name of its variable is stored.
"""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from harness.errors import CandidateFailed, Problem
from harness.models import artefacts
from harness.models.against_base import PICKLED, adapter_problems, model_problems, read_adapter_config
from harness.models.hub import ModelSource, has_tokenizer, is_packed
from harness.models.later import safetensors, torch
from harness.models.openai_api import FILE, Settings
from harness.models.weight_files import CONFIG, WEIGHTS
from harness.plugins import Method
from harness.records import TrainingRecord
from harness.spec import Recipe, Spec
from harness.training import FitContext, Weights, made_weights


class Base:
    """The base model unchanged, for candidates that only change the prompt."""

    Params = Spec  # no parameters
    METHOD = Method(
        params=Spec, fit=lambda context, _: Weights("base", context.source.weights_digest, None), makes="base"
    )


class Endpoint:
    """Model that is served elsewhere and asked over HTTP by OpenAI's protocol."""

    class Params(Settings):
        """The server, the model there, and how it is asked."""

    @staticmethod
    def _fit(context: FitContext, params: Params) -> Weights:
        (context.folder / FILE).write_text(params.model_dump_json(), "utf-8")
        return Weights(params.protocol, params.weights_digest, context.folder)

    METHOD = Method(params=Params, fit=_fit, makes="endpoint")


class Adapter:
    """Adapter that was trained elsewhere, by any tool that writes PEFT's format."""

    class Params(Spec):
        """`allow_pickle` allows reading `adapter_model.bin`, as tensors only, if there are no safetensors."""

        allow_pickle: bool = False

    @staticmethod
    def _problems(recipe: Recipe, source: ModelSource, where: str) -> Iterator[Problem]:
        folder = Path(recipe.path or "")
        if not (folder / CONFIG).exists():
            is_model = (folder / "config.json").exists()
            step = f"method: model, with path: {recipe.path}" if is_model else "check the path"
            found = f"{folder} without {CONFIG}" + (", but with a whole model" if is_model else "")
            yield Problem(where, found, "the folder that PEFT's save_pretrained wrote", step)
            return
        if (folder / WEIGHTS).exists():
            yield from adapter_problems(folder, source, where)
        elif not (folder / PICKLED).exists():
            yield Problem(where, f"{folder} without {WEIGHTS}", "the adapter's weights", "export it again")
        elif not recipe.params.get("allow_pickle"):
            found = f"{PICKLED}, a pickle, which can run code when it is opened"
            step = "save it again with safe_serialization=True, or set params: {allow_pickle: true}"
            yield Problem(where, found, WEIGHTS, step)

    @staticmethod
    def _fit(context: FitContext, params: Params) -> Weights:
        assert context.path is not None
        start, folder = time.perf_counter(), context.folder / "adapter"
        folder.mkdir()
        shutil.copy(context.path / CONFIG, folder / CONFIG)
        if (context.path / WEIGHTS).exists():
            shutil.copy(context.path / WEIGHTS, folder / WEIGHTS)
        else:
            import pickle

            pickle_path = context.path / PICKLED
            try:
                tensors = torch.load(pickle_path, map_location="cpu", weights_only=True)
                contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
                safetensors.save_file(contiguous, folder / WEIGHTS, {"format": "pt"})
            except (pickle.UnpicklingError, AttributeError, ValueError) as error:
                reason = f"{pickle_path} holds something other than tensors"
                raise CandidateFailed(reason, "saving it again with safe_serialization=True") from error
        copying_s = round(time.perf_counter() - start, 3)
        base_name = read_adapter_config(folder).get("base_model_name_or_path")
        return made_weights(context, "adapter", TrainingRecord(named_base=base_name).add(copying_s=copying_s))

    METHOD = Method(
        params=Params,
        fit=_fit,
        makes="adapter",
        made_elsewhere=True,
        problems=_problems,
    )


def _whole_model_problems(recipe: Recipe, source: ModelSource, where: str) -> Iterator[Problem]:
    folder = Path(recipe.path or "")
    if not has_tokenizer(folder):
        step = f"AutoTokenizer.from_pretrained({str(source.path)!r}).save_pretrained({str(folder)!r})"
        yield Problem(where, f"{folder} without a tokenizer", "the tokenizer next to the weights", step)
    if not is_packed(source):
        yield from model_problems(folder, source, where)


class Model:
    """Whole model that was made elsewhere, judged with its own tokenizer; its files stay where they are."""

    Params = Spec
    METHOD = Method(
        params=Spec,
        fit=lambda context, _: Weights("base", context.source.weights_digest, None, source=context.source),
        makes="model",
        made_elsewhere=True,
        problems=_whole_model_problems,
    )


class Artefact:
    """Artefact as it is served: made by `harness export`, or any other GGUF, ONNX or whole model."""

    @staticmethod
    def _problems(recipe: Recipe, source: ModelSource, where: str) -> Iterator[Problem]:
        path = Path(recipe.path or "")
        kind = artefacts.format_of(path)
        if kind is None:
            expected = "one .gguf or .onnx file, or a whole model with config.json and safetensors"
            yield Problem(where, f"{path} without one of these", expected, "correct path, or harness export")
            return
        # An export gets the prompts of the run that it was made from.
        export = artefacts.read_export(path)
        exported_prompt = export.get("prompt") or {}
        for name in ("template", "prompting", "answer", *(["system"] if recipe.system is not None else [])):
            value = getattr(recipe, name)
            if name in exported_prompt and exported_prompt[name] != value:
                run, exported_value = export.get("run_id"), json.dumps(exported_prompt[name])
                found = f"{name}: {json.dumps(value)}, and {exported_value} in its run {run}"
                step = f"{name}: {exported_value} in this candidate"
                yield Problem(where, found, "the prompts of the run that it was exported from", step)
        for file, damage in artefacts.find_damage(path) if kind != "model" else ():
            step = "copy, download or export it again"
            yield Problem(where, f"{file}, damaged: {damage}", f"a whole {kind.upper()} file", step)
        if kind == "model":
            yield from _whole_model_problems(recipe, source, where)
        elif kind == "onnx" and not has_tokenizer(artefacts.find_tokenizer_folder(path)):
            file = artefacts.main_file(path)
            step = (
                f"AutoTokenizer.from_pretrained({str(source.path)!r}).save_pretrained({str(file.parent)!r})"
            )
            yield Problem(where, f"{file} without a tokenizer", "the tokenizer next to the file", step)

    @staticmethod
    def _fit(context: FitContext, params: Spec) -> Weights:
        assert context.path is not None
        record = context.folder / artefacts.FILE
        record.write_text(json.dumps({"path": str(context.path.absolute())}), "utf-8")
        artefact_digest = artefacts.artefact_digest(record, context.source.weights_digest)
        training = TrainingRecord().add(size_bytes=artefacts.count_bytes(context.path))
        return Weights("artefact", artefact_digest, context.folder, training, source=context.source)

    Params = Spec
    METHOD = Method(params=Spec, fit=_fit, makes="artefact", made_elsewhere=True, problems=_problems)


PLUGINS = {"base": Base, "endpoint": Endpoint, "adapter": Adapter, "model": Model, "artefact": Artefact}
