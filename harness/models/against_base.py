"""Adapters on a base: checks that one fits before anything is computed, and merging both into one model.

Invariant: the checks read only the adapter's configuration and the header of its weights, and build the base
without weights; adapters that compute with weights when they are applied are checked when they are opened. A
merged model's logits are compared with the unmerged one's, and written tensors are read again.
Source: PEFT's `merge_and_unload(safe_merge=True)`
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import fields, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from harness.cache import memo
from harness.errors import CandidateFailed, Problem, UserError, one_line
from harness.models import hub, weight_files
from harness.models.deltas import CONFIG as DELTA_CONFIG
from harness.models.deltas import MATRICES, apply_delta
from harness.models.devices import build_without_weights, load_base
from harness.models.hardware import Machine, dtype
from harness.models.later import Model, Tokenizer, peft, safetensors, torch, transformers
from harness.models.tokenization import end_ids
from harness.progress import quiet_libraries
from harness.provenance import package_versions
from harness.records import Limits, digest, parse_json

PICKLED = "adapter_model.bin"

_VERSION = 1  # of the checks, whose results are cached
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
    config = parse_json((folder / weight_files.CONFIG).read_text("utf-8"))
    if not isinstance(config, dict):
        raise ValueError("no JSON object")
    return config


def adapter_problems(folder: Path, source: hub.ModelSource, where: str) -> Iterator[Problem]:
    """Yield the first problem that keeps the adapter in a folder from being applied to a base."""
    for file, read_file in (
        (weight_files.WEIGHTS, weight_files.tensors_of),
        (weight_files.CONFIG, lambda _: read_adapter_config(folder)),
    ):
        try:
            read_file(folder / file)
        except (ValueError, AttributeError, LookupError, TypeError) as error:
            found = f"a damaged {file} ({one_line(error)})"
            yield Problem(f"{folder / file}", found, "a whole adapter", "copy or export it again")
            return
    if hub.is_packed(source):
        return
    tensors, config = weight_files.tensors_of(folder / weight_files.WEIGHTS), read_adapter_config(folder)
    misfit: list[str] = []

    def check() -> bool | None:
        misfit.extend(_misfit(folder, config, tensors, source) or _own_tokenizer(folder, source))
        return None if misfit else True

    tokenizer_digest = weight_files.content_digest(hub.tokenizer_files(folder))
    key_parts = [config, {n: (t.dtype, t.shape) for n, t in tensors.items()}, tokenizer_digest]
    base_digests = [source.weights_digest, source.template_digest]
    memo("adapters_against_bases", digest([*key_parts, *base_digests, package_versions(), _VERSION]), check)
    if misfit:
        yield Problem(where, *misfit)


def model_problems(folder: Path, source: hub.ModelSource, where: str) -> Iterator[Problem]:
    """Yield the problems of a whole model: damaged files, or layers that differ from the base's."""
    try:
        weight_files.read_config(folder)
        weight_files.refuse_damaged(folder)
    except UserError as damaged:
        yield from damaged.problems
        return
    if found := hub.architecture_difference(folder, source.path):
        step = f"name it as base_model: {folder} of an experiment of its own"
        yield Problem(where, found, f"the architecture of {source.name}", step)


def _own_tokenizer(folder: Path, source: hub.ModelSource) -> list[str]:
    if not (files := [file.name for file in hub.tokenizer_files(folder)]):
        return []
    theirs, base = source._replace(path=folder, template="", switches=""), hub.load_tokenizer(source)
    difference = ""
    # The template in the base's file, or the one in use, which a training here saves.
    accepted_templates = ("", hub.chat_template(source).strip(), str(base.chat_template).strip())
    if hub.chat_template(theirs).strip() not in accepted_templates:
        difference = "a chat template of its own"
    elif {*files} - {"chat_template.jinja"}:
        try:
            tokenizer = hub.load_tokenizer(theirs)
        except Exception as error:  # noqa: BLE001 (a tokenizer fails to load in many ways)
            difference = f"a tokenizer that cannot be loaded ({one_line(error)})"
        else:
            vocabulary, tokens = base.get_vocab(), tokenizer.get_vocab().items()
            # The padding token appears in no prompt.
            changed = {token for token, i in tokens if vocabulary.get(token) != i} - {tokenizer.pad_token}
            reads_alike = tokenizer(_PROBE)["input_ids"] == base(_PROBE)["input_ids"]
            if changed or tokenizer.eos_token != base.eos_token or not reads_alike:
                examples = f" ({_list_some(map(repr, changed))})" if changed else ""
                reads = "which reads or ends texts otherwise than the base's"
                difference = f"a tokenizer of its own, {reads}{examples}"
    if not difference:
        return []
    step = (
        f"merge it into its base, save that with its tokenizer, and name it with method: model; or remove "
        f"{', '.join(files)} from {folder}, if the training did not use them"
    )
    expected = f"the tokenizer and the chat template of {source.name}, by which an adapter is asked"
    return [f"an adapter with {difference}", expected, step]


def _misfit(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, weight_files.Tensor],
    source: hub.ModelSource,
) -> list[str]:
    """Return found, expected and next step of a problem; an empty list if the adapter fits."""
    quiet_libraries()
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    kind, installed = config.get("peft_type"), f"PEFT {peft.__version__}"
    families = {str(getattr(name, "value", name)): c for name, c in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if kind not in families:
        found = f"peft_type: {kind} in {weight_files.CONFIG}"
        return [found, f"a family that {installed} knows", f"an adapter that {installed} can open"]
    if kind in _NOT_ALONE or config.get("alora_invocation_tokens"):
        found = f"peft_type: {kind}, which needs more than a row, or changes only a part of it"
        return [found, "an adapter that answers each row by itself", "another adapter"]
    if (task := config.get("task_type")) not in _TASKS:
        found, step = f"task_type: {task}, an adapter with another head", "train it with CAUSAL_LM"
        return [found, "an adapter of a causal language model", step]
    names = {field.name for field in fields(families[kind])} | {"runtime_config"}
    if unknown := {name: value for name, value in config.items() if name not in names and value}:
        found = ", ".join(f"{name}: {value}" for name, value in unknown.items())
        step = f"export it by {installed}, or remove {', '.join(unknown)} if nothing was trained so"
        expected = f"keys that {installed} knows, as it ignores others"
        return [f"{found} in {weight_files.CONFIG}", expected, step]
    if not (misfit := _try_on(folder, tensors, source)):
        return []
    base = str(config.get("base_model_name_or_path") or source.name).rstrip("/")
    is_own = Path(base).name in (Path(source.name).name, source.path.name)
    fault, step = "an adapter that does not fit", "save it again with PEFT's save_pretrained"
    if not is_own:
        fault, step = f"an adapter for another base ({base})", "set base_model on this candidate to that base"
    if added := _ADDED.search(misfit):
        step = (
            f"resize_token_embeddings({added[1]}) on {base}, save_pretrained with the tokenizer of the "
            "training, and set base_model to that folder"
        )
    return [f"{fault}: {misfit}", f"an adapter for {source.name}", step]


def open_adapter(model: Any, folder: Path, **options: Any) -> Any:
    """Apply the adapter in a folder to a base; CandidateFailed if a tensor is missing or unused."""
    base_names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    peft_model: Any = peft.PeftModel.from_pretrained(model, str(folder), **options)
    config: Any = peft_model.active_peft_config
    ranks = vars(config).get("rank_pattern")
    if config.peft_type == "ADALORA":
        config.rank_pattern = None  # PEFT has applied it already and would apply it again
    misfit = _hold(peft_model, config, safetensors.load_file(folder / weight_files.WEIGHTS), base_names)
    if config.peft_type == "ADALORA":
        config.rank_pattern = ranks
    if misfit:
        found = f"an adapter that does not fit: {misfit}"
        raise CandidateFailed(found, "save it again with PEFT's save_pretrained, where it was trained")
    return peft_model


def _try_on(folder: Path, tensors: Mapping[str, weight_files.Tensor], source: hub.ModelSource) -> str:
    """Apply an adapter to the base without weights; describe a misfit, empty if none can be detected."""
    from peft.utils.other import _prepare_prompt_learning_config

    model = build_without_weights(source.path)
    if model is None:
        return ""
    base_names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    n_tokens = model.get_input_embeddings().weight.shape[0]
    try:
        config: Any = peft.PeftConfig.from_pretrained(str(folder))
        config.inference_mode = True
        if hasattr(config, "init_lora_weights"):
            config.init_lora_weights = True  # other initialisations compute with weights
        token_rows = vars(config).get("token_indices") or vars(config).get("trainable_token_indices") or []
        token_ids = [*chain(*token_rows.values())] if isinstance(token_rows, dict) else token_rows
        if unknown_ids := [index for index in token_ids if index >= n_tokens]:
            return f"trained rows of the tokens {_list_some(unknown_ids)}, and the base has {n_tokens}"
        if config.is_prompt_learning:
            blank = replace(config, **dict.fromkeys(_SIZES))
            sizes = vars(_prepare_prompt_learning_config(blank, model.config))
            if wrong := [name for name in _SIZES if vars(config)[name] not in (None, sizes[name])]:
                texts = (f"{name} {vars(config)[name]}, which is {sizes[name]} on the base" for name in wrong)
                return ", ".join(texts)
        with torch.device("meta"):
            adapted = peft.get_peft_model(model, config)
            empty_tensors = {name: torch.empty(tensor.shape) for name, tensor in tensors.items()}
        return _hold(adapted, config, empty_tensors, base_names)
    except NotImplementedError:
        return ""
    except KeyError as error:
        return f"no {error.args[0]}, which its configuration asks for"
    except Exception as error:  # noqa: BLE001 (PEFT refuses a configuration in many ways)
        if "meta tensor" in str(error):
            return ""
        if not (size := _SIZE.search(str(error))):
            return one_line(error)
        tensor = weight_files.own_name(size[1]).replace(".default", "")
        return f"{tensor} of size ({size[2]}), where the base and {weight_files.CONFIG} make ({size[3]})"


def _hold(adapted: Any, config: Any, tensors: Mapping[str, Any], base_names: set[str]) -> str:
    """Compare the tensors that PEFT creates for an adapter on a base with those in its file."""
    load_result: Any = peft.set_peft_model_state_dict(adapted, dict(tensors))
    if config.is_prompt_learning:
        unused, lacking = tensors.keys() - {"prompt_embeddings"}, set[str]()
    else:
        names = peft.get_peft_model_state_dict(adapted, save_embedding_layers=False).keys()
        unused, lacking = set(load_result.unexpected_keys), names - tensors.keys()
        if tensors.keys() - names - {name for name in tensors if weight_files.own_name(name) in base_names}:
            # Names of an older PEFT version, which PEFT maps to its current ones.
            lacking = {name for name in load_result.missing_keys if "default" in name.split(".")}
    if unused:
        return f"{_list_some(unused)}, which would be ignored as the base does not have it"
    return f"no {_list_some(lacking)}, which its configuration asks for" if lacking else ""


def _list_some(names: Iterable[Any]) -> str:
    first, *other_names = sorted(names)
    return f"{first} and {len(other_names)} more" if other_names else f"{first}"


MERGE_GAP = 0.02  # largest difference of a logit that merging in fp32 may make, in shares of their spread
_TYPES = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}
_N_TOKENS = 48  # tokens of the text on which the two models are compared


class WholeModel(NamedTuple):
    """A model in fp32 with its tokenizer; `gap` is the largest change of a logit by merging."""

    model: Model
    tokenizer: Tokenizer
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
def open_whole(source: hub.ModelSource, kind: str, folder: Path | None) -> Iterator[WholeModel]:
    """Open the base, a whole model in its place, or the base with an adapter or delta merged into it.

    A quantised base is opened with its rounded weights, in fp32. CandidateFailed is raised if the weights
    cannot be merged, or the merged model gives other answers.
    """
    if kind == "model" and folder:
        source = source._replace(path=folder / "model")
    model, tokenizer = load_base(source, Machine("cpu", "the processor", "fp32", 1.0))
    model.eval()
    if source.quantization == "int8":
        model = model.dequantize(torch.float32)
    if kind == "adapter" and folder:
        adapter_folder = folder / "adapter"
        weight_files.refuse_infinite(adapter_folder)
        weight_files.refuse_moved_base(read_adapter_config(adapter_folder))
        for problem in adapter_problems(adapter_folder, source, ""):
            raise CandidateFailed(f"{problem.found}; expected {problem.expected}", problem.next_step)
        adapted = open_adapter(model, adapter_folder, torch_device="cpu").eval()
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
        yield WholeModel(merged, tokenizer, gap)
    else:
        with apply_delta(model, folder / "delta") if kind == "delta" and folder else nullcontext():
            yield WholeModel(model, tokenizer, 0.0)


def _logits(model: Any) -> "torch.Tensor":
    """Return the logits of one text of the lower token ids, (t, v)."""
    ids = torch.arange(1, _N_TOKENS + 1) * 37 % int(model.get_input_embeddings().weight.shape[0])
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=ids[None]).logits[0].float()
    return logits


def stored_precision(path: Path) -> str:
    """Return the precision of most stored bytes of a model: fp32, fp16 or bf16; bf16 for any other type."""
    sizes = Counter[str]()
    for tensor in weight_files.map_stored_tensors(path).values():
        sizes[tensor.dtype] += tensor.end - tensor.begin
    return _TYPES.get(max(sizes, key=lambda name: sizes[name], default=""), "bf16")


def save_beside(whole: WholeModel, folder: Path, limits: Limits) -> None:
    """Write the tokenizer with the chat template, and the generation limits."""
    tokenizer = whole.tokenizer
    ends = end_ids(tokenizer, whole.model.generation_config)
    sampled = {"do_sample": True, "temperature": limits.temperature, "top_p": limits.top_p}
    transformers.GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=ends,
        pad_token_id=ends[0],
        max_new_tokens=limits.max_new_tokens,
        **(sampled if limits.temperature else {"do_sample": False}),
    ).save_pretrained(folder)
    hub.save_tokenizer(tokenizer, folder)
    whole.model.config.save_pretrained(folder)


def save_whole(whole: WholeModel, folder: Path, precision: str, limits: Limits) -> None:
    """Write a model in a precision, with its tokenizer, chat template and generation limits, and check it."""
    model: Any = whole.model
    model.to(dtype(precision))
    model.save_pretrained(folder)
    save_beside(whole, folder, limits)
    reopened: Any = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype(precision), trust_remote_code=False
    )
    stored = reopened.state_dict()
    names = (name for name, value in model.state_dict().items() if not torch.equal(value, stored[name]))
    if name := next(names, ""):
        found = f"a written model whose {name} is not the one in memory, as where tied weights differ"
        raise CandidateFailed(found, "an adapter that leaves embeddings and output layer alone")
