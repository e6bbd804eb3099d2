"""Names that a new low-rank adapter is put on, held against the base's modules and parameters.

Invariant: the base is built without its weights, and only where names are written: `all-linear` fits any.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from harness.cache import memo
from harness.errors import Problem, did_you_mean
from harness.models.devices import build_without_weights
from harness.models.hub import ModelSource
from harness.provenance import package_versions
from harness.records import digest
from harness.spec import Spec
from harness.training.low_rank_adapters import LoraParams, lora_config
from harness.training.refused_families import ADAPTED_HEAD, adapts_head, exclude_unadapted

_EXPECTED = "names that are in the base"
_VERSION = 2  # of what is refused: what fitted before may not fit now


def unknown_names(params: Spec, base: ModelSource, where: str) -> list[Problem]:
    """Return that modules or parameters which a new adapter names are not there, or cannot be trained.

    Names that fit are remembered, so that who reads stored runs loads neither transformers nor PEFT for them.
    """
    tensors = params.model_dump().get("target_parameters") or ()
    modules = isinstance(params, LoraParams) and (
        params.target_modules != "all-linear" or bool(params.exclude_modules)
    )
    if not (tensors or modules):
        return []
    found: list[Problem] = []

    def check() -> bool | None:
        found.extend(_unknown(params, base, tensors, where))
        return None if found else True

    written = [type(params).__module__, params.model_dump(mode="json")]
    key = digest([base.weights_digest, written, package_versions(), _VERSION])
    memo("adapter_names", key, check)
    return found


def _unknown(params: Spec, base: ModelSource, tensors: Sequence[str], where: str) -> Iterator[Problem]:
    model = build_without_weights(base.path)
    if model is None:
        return
    parameters = [name for name, _ in model.named_parameters()]
    found = [*_absent("target_parameters", tensors, parameters, parameters, where)]
    yield from found
    if isinstance(params, LoraParams) and not found:
        yield from _unknown_modules(params, model, where)


def _unknown_modules(params: LoraParams, model: Any, where: str) -> Iterator[Problem]:
    """Yield names of modules that are not there, and an adapter of the head.

    Experts' modules which PEFT finds by other names are there.
    """
    from peft import get_peft_model

    modules = [name for name, _ in model.named_modules()]
    holders = {name.rpartition(".")[0] for name, _ in model.named_parameters()}
    config, refusal, adapted = lora_config(params), "", None
    exclude_unadapted(config, model.config.model_type)
    try:  # PEFT renames in the configuration what it knows by another name
        adapted = get_peft_model(model, config)
    except (TypeError, ValueError, AttributeError, re.error) as error:
        refusal = " ".join(str(error).split())
    left = _list_names(config.target_modules)
    found = [
        *_absent(
            "target_modules",
            [name for name in _list_names(params.target_modules) if name in left],
            modules,
            holders,
            where,
        )
    ]
    if set(config.target_parameters or ()) == set(params.target_parameters or ()):
        found += _absent("exclude_modules", _list_names(params.exclude_modules), modules, holders, where)
    yield from found
    if refusal and not found:
        yield Problem(where, refusal, _EXPECTED, "fix params")
    elif adapted and adapts_head(adapted):
        yield Problem(where, ADAPTED_HEAD, "modules before the head", "leave lm_head out of params")


def _list_names(names: str | Iterable[str] | None) -> list[str]:
    """Return the names of a list; none of a regular expression, which fits what it fits."""
    return [] if names is None or isinstance(names, str) else list(names)


def _absent(
    setting: str, names: Iterable[str], known: Sequence[str], offered: Iterable[str], where: str
) -> Iterator[Problem]:
    """Yield each name with which no known path ends; the nearest end of what is offered is the next step."""
    ends = {re.sub(r"^.*\.\d+\.", "", one) for one in offered}
    for name in names:
        if not any(one == name or one.endswith(f".{name}") for one in known):
            last = ends if "." in name else {one.rpartition(".")[2] for one in ends}
            yield Problem(where, f"{setting}: {name}", _EXPECTED, did_you_mean(name, last))
