"""Checks of whether an adapter fits a base, before anything is computed with it.

Invariant: only the adapter's configuration and the header of its weights are read, and the base is built
without weights. Adapters that compute with weights when they are applied are checked when they are opened.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, replace
from itertools import chain
from pathlib import Path
from typing import Any

from harness.cache import memo
from harness.errors import CandidateFailed, Problem, one_line
from harness.models.devices import build_without_weights
from harness.models.hub import ModelSource, chat_template, is_packed, load_tokenizer, tokenizer_files
from harness.models.weight_files import CONFIG, WEIGHTS, Tensor, content_digest, own_name, tensors_of
from harness.progress import quiet_libraries
from harness.provenance import package_versions
from harness.records import digest, parse_json

_VERSION = 1  # of the checks whose results are remembered
_TASKS = (None, "CAUSAL_LM")
# Families that need more than one row: a task number, other adapters, or the other rows of the batch.
_NOT_ALONE = ("LILY", "MULTITASK_PROMPT_TUNING", "POLY", "SHADOW", "XLORA")
_PROBE = " A first line, 12,345 words:\n\n\tna\u00efve \u6f22\u5b57\r\n  and  an end. "
# Fields of a soft prompt's configuration that give sizes of the base.
_SIZES = ("num_layers", "token_dim", "num_attention_heads")
# Embeddings that have rows for tokens added before the training.
_ADDED = re.compile(r"\b(?:embed_tokens|lm_head)\S*weight of size \((\d+), \d+\)")
_SIZE = re.compile(
    r"size mismatch for (\S+): copying a param with shape torch\.Size\(\[(.*?)\]\) from checkpoint, "
    r"the shape in current model is torch\.Size\(\[(.*?)\]\)"
)


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Read the configuration of an adapter; a ValueError if it is not a JSON object."""
    config = parse_json((folder / CONFIG).read_text("utf-8"))
    if not isinstance(config, dict):
        raise ValueError("no JSON object")
    return config


def adapter_problems(folder: Path, source: ModelSource, where: str) -> Iterator[Problem]:
    """Yield the first problem that keeps the adapter in a folder from being applied to a base."""
    for file, read in ((WEIGHTS, tensors_of), (CONFIG, lambda _: read_adapter_config(folder))):
        try:
            read(folder / file)
        except (ValueError, AttributeError, LookupError, TypeError) as error:
            found = f"a damaged {file} ({one_line(error)})"
            yield Problem(f"{folder / file}", found, "a whole adapter", "copy or export it again")
            return
    if is_packed(source):
        return
    tensors, config = tensors_of(folder / WEIGHTS), read_adapter_config(folder)
    misfit: list[str] = []

    def check() -> bool | None:
        misfit.extend(_misfit(folder, config, tensors, source) or _own_tokenizer(folder, source))
        return None if misfit else True

    known = [
        config,
        {n: (t.dtype, t.shape) for n, t in tensors.items()},
        content_digest(tokenizer_files(folder)),
    ]
    of_base = [source.weights_digest, source.template_digest]
    memo("adapters_against_bases", digest([*known, *of_base, package_versions(), _VERSION]), check)
    if misfit:
        yield Problem(where, *misfit)


def _own_tokenizer(folder: Path, source: ModelSource) -> list[str]:
    files = [file.name for file in tokenizer_files(folder)]
    theirs = source._replace(path=folder, template="", switches="")
    own_template = chat_template(theirs).strip()
    # As in the base's file, or as it is used, which is the form that a training here saves.
    is_known = (
        own_template in ("", chat_template(source).strip())
        or own_template == str(load_tokenizer(source).chat_template).strip()
    )
    difference = "" if is_known else "a chat template of its own"
    if not difference and {*files} - {"chat_template.jinja"}:
        difference = _tokenizer_difference(theirs, source)
    if not difference:
        return []
    step = (
        f"merge it into its base, save that with its tokenizer, and name it with method: model; or remove "
        f"{', '.join(files)} from {folder}, if the training did not use them"
    )
    expected = f"the tokenizer and the chat template of {source.name}, by which an adapter is asked"
    return [f"an adapter with {difference}", expected, step]


def _tokenizer_difference(theirs: ModelSource, source: ModelSource) -> str:
    """Describe a difference of two tokenizers that changes prompts or the end of answers; empty if none."""
    try:
        own, base = load_tokenizer(theirs), load_tokenizer(source)
    except Exception as error:  # noqa: BLE001 (a tokenizer fails to load in many ways)
        return f"a tokenizer that cannot be loaded ({one_line(error)})"
    vocabulary = base.get_vocab()
    # The padding token appears in no prompt.
    changed = {token for token, i in own.get_vocab().items() if vocabulary.get(token) != i} - {own.pad_token}
    is_same = own.eos_token == base.eos_token and own(_PROBE)["input_ids"] == base(_PROBE)["input_ids"]
    if is_same and not changed:
        return ""
    difference = f" ({_list_some(map(repr, changed))})" if changed else ""
    return f"a tokenizer of its own, which reads or ends texts otherwise than the base's{difference}"


def _misfit(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], source: ModelSource
) -> list[str]:
    """Return what was found, what was expected and the next step; nothing if the adapter fits."""
    quiet_libraries()
    if unserved := _find_unserved(config):
        return [*unserved]
    found = _try_on(folder, tensors, source)
    if not found:
        return []
    named = str(config.get("base_model_name_or_path") or source.name).rstrip("/")
    is_own = Path(named).name in (Path(source.name).name, source.path.name)
    what, step = "an adapter that does not fit", "save it again with PEFT's save_pretrained"
    if not is_own:
        what, step = f"an adapter for another base ({named})", "set base_model on this candidate to that base"
    if added := _ADDED.search(found):
        step = (
            f"resize_token_embeddings({added[1]}) on {named}, save_pretrained with the tokenizer of the "
            "training, and set base_model to that folder"
        )
    return [f"{what}: {found}", f"an adapter for {source.name}", step]


def open_adapter(model: Any, folder: Path, **options: Any) -> Any:
    """Apply the adapter in a folder to a base.

    Raises:
        CandidateFailed: a tensor is missing or unused, which PEFT ignores or only warns about.
    """
    from peft import PeftModel
    from safetensors.torch import load_file

    own = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    opened: Any = PeftModel.from_pretrained(model, str(folder), **options)
    config: Any = opened.active_peft_config
    ranks = vars(config).get("rank_pattern")
    if config.peft_type == "ADALORA":
        config.rank_pattern = None  # PEFT has applied it already and would apply it again
    misfit = _hold(opened, config, load_file(folder / WEIGHTS), own)
    if config.peft_type == "ADALORA":
        config.rank_pattern = ranks
    if misfit:
        found = f"an adapter that does not fit: {misfit}"
        raise CandidateFailed(found, "save it again with PEFT's save_pretrained, where it was trained")
    return opened


def _find_unserved(config: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """Find a setting of an adapter that cannot be served here: found, expected and next step."""
    import peft
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    kind, installed = config.get("peft_type"), f"PEFT {peft.__version__}"
    known = {str(getattr(name, "value", name)): made for name, made in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if kind not in known:
        found = f"peft_type: {kind} in {CONFIG}"
        return found, f"a family that {installed} knows", f"an adapter that {installed} can open"
    if kind in _NOT_ALONE or config.get("alora_invocation_tokens"):
        found = f"peft_type: {kind}, which needs more than a row, or changes only a part of it"
        return found, "an adapter that answers each row by itself", "another adapter"
    if (task := config.get("task_type")) not in _TASKS:
        found, step = f"task_type: {task}, an adapter with another head", "train it with CAUSAL_LM"
        return found, "an adapter of a causal language model", step
    names = {field.name for field in fields(known[kind])} | {"runtime_config"}
    if unknown := {name: value for name, value in config.items() if name not in names and value}:
        found = ", ".join(f"{name}: {value}" for name, value in unknown.items())
        step = f"export it by {installed}, or remove {', '.join(unknown)} if nothing was trained so"
        return f"{found} in {CONFIG}", f"keys that {installed} knows, as it ignores others", step
    return None


def _try_on(folder: Path, tensors: Mapping[str, Tensor], source: ModelSource) -> str:
    """Apply an adapter to the base without weights; return what does not fit, where that can be told."""
    import torch
    from peft import PeftConfig, get_peft_model
    from peft.utils.other import _prepare_prompt_learning_config

    model = build_without_weights(source.path)
    if model is None:
        return ""
    own = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    n_tokens = model.get_input_embeddings().weight.shape[0]
    try:
        config: Any = PeftConfig.from_pretrained(str(folder))
        config.inference_mode = True
        if hasattr(config, "init_lora_weights"):
            config.init_lora_weights = True  # other initialisations compute with weights
        written = vars(config).get("token_indices") or vars(config).get("trainable_token_indices") or []
        trained = [*chain(*written.values())] if isinstance(written, dict) else written
        if beyond := [index for index in trained if index >= n_tokens]:
            return f"trained rows of the tokens {_list_some(beyond)}, and the base has {n_tokens}"
        if config.is_prompt_learning:
            blank = replace(config, **dict.fromkeys(_SIZES))
            here = vars(_prepare_prompt_learning_config(blank, model.config))
            if other := [name for name in _SIZES if vars(config)[name] not in (None, here[name])]:
                said = (f"{name} {vars(config)[name]}, which is {here[name]} on the base" for name in other)
                return ", ".join(said)
        with torch.device("meta"):
            made = get_peft_model(model, config)
            given = {name: torch.empty(tensor.shape) for name, tensor in tensors.items()}
        return _hold(made, config, given, own)
    except NotImplementedError:
        return ""
    except KeyError as error:
        return f"no {error.args[0]}, which its configuration asks for"
    except Exception as error:  # noqa: BLE001 (PEFT refuses a configuration in many ways)
        if "meta tensor" in str(error):
            return ""
        if not (size := _SIZE.search(str(error))):
            return one_line(error)
        tensor = own_name(size[1]).replace(".default", "")
        return f"{tensor} of size ({size[2]}), where the base and {CONFIG} make ({size[3]})"


def _hold(made: Any, config: Any, tensors: Mapping[str, Any], own: set[str]) -> str:
    """Compare the tensors that PEFT creates for an adapter on a base with those in its file."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    loaded: Any = set_peft_model_state_dict(made, dict(tensors))
    if config.is_prompt_learning:
        unused, lacking = tensors.keys() - {"prompt_embeddings"}, set[str]()
    else:
        wanted = get_peft_model_state_dict(made, save_embedding_layers=False).keys()
        unused, lacking = set(loaded.unexpected_keys), wanted - tensors.keys()
        if tensors.keys() - wanted - {name for name in tensors if own_name(name) in own}:
            # Names of an older PEFT version, which PEFT maps to its current ones.
            lacking = {name for name in loaded.missing_keys if "default" in name.split(".")}
    if unused:
        return f"{_list_some(unused)}, which would be ignored as the base does not have it"
    return f"no {_list_some(lacking)}, which its configuration asks for" if lacking else ""


def _list_some(names: Iterable[Any]) -> str:
    first, *others = sorted(names)
    return f"{first} and {len(others)} more" if others else f"{first}"
