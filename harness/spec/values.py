"""Types of values in harness.yaml, and how metrics are written.

Invariant: a model refuses unknown keys, NaN and infinite numbers, and `true` for a number.
"""

import re
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import PurePath
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

Role = Literal["target", "capability", "safety", "regression"]
Kind = Literal["generate", "choice", "bits_per_byte"]
Precision = Literal["auto", "bf16", "fp16", "fp32"]
Engine = Literal["transformers", "vllm"]
# Prefixes of metrics of a library, of a judge, and of an entailment model.
EVALUATE, JUDGE, ENTAILMENT = "evaluate:", "judge:", "entailment:"
BASE = "base"  # default method of a recipe
HUB = "hub:"  # prefix of a data set on the hub


def metric_parts(written: str) -> tuple[str, str, str]:
    """Split a metric as written into prefix, name or path, and the rest: from a colon on, or parameters."""
    prefix = next((p for p in (EVALUATE, JUDGE, ENTAILMENT) if written.startswith(p)), "")
    if not prefix and (call := _WITH_PARAMS.fullmatch(written)):
        return "", call[1], call[2]
    name, colon, key = written.removeprefix(prefix).partition(":")
    return prefix, name, f"{colon}{key}"


_WITH_PARAMS = re.compile(r"(.+?)(\(\w+=[^(),=]*(?:, \w+=[^(),=]*)*\))")  # rouge(kind=rougeL)


def metric_plugin(written: str) -> str:
    """Return the name or the path of a metric's own file; empty for what a library or a model scores."""
    prefix, name, _ = metric_parts(written)
    return "" if prefix else name


def metric_params(written: str) -> dict[str, str]:
    """Return the parameters that a metric is written with, as text."""
    call = _WITH_PARAMS.fullmatch(written)
    return dict(one.split("=") for one in call[2][1:-1].split(", ")) if call else {}


def write_metric(value: Any) -> Any:
    """Write a metric with parameters, `{rouge: {kind: rougeL}}`, as text: `rouge(kind=rougeL)`."""
    if not isinstance(value, dict):
        return value
    ((name, params),) = value.items() if len(value) == 1 else (("", None),)
    texts = [str(one) for one in params.values()] if isinstance(params, dict) else [""]
    if metric_parts(str(name))[0] or not all(re.fullmatch(r"[^(),=]+", text) for text in texts):
        raise ValueError("a metric with parameters is one name with values, as {rouge: {kind: rougeL}}")
    return f"{name}({', '.join(f'{key}={one}' for key, one in params.items())})" if params else str(name)


Written = Annotated[
    str,
    BeforeValidator(write_metric),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object", "maxProperties": 1}]}),
]


def metric_name(written: str) -> str:
    """Display name of a metric: the file stem for a path, otherwise the name as written."""
    prefix, name, key = metric_parts(written)
    if prefix != EVALUATE or is_path(name):
        name = re.sub(r"\.(py|ya?ml)$", "", PurePath(name).name)
    return f"{prefix}{name}{key}"


def is_path(metric: str) -> bool:
    """Tell whether a metric is written as a path rather than a name."""
    return metric.endswith(".py") or metric.startswith((".", "/", "~"))


Fraction = Annotated[float, Field(gt=0, lt=1)]
# Above 0 % and below 100 %: no number of items can show a margin of 0.
_SHARE = r"^([1-9]\d?(\.\d+)?|0?[1-9](\.\d+)?|0{1,2}\.\d*[1-9]\d*)\s*%$"
Share = Annotated[str, Field(pattern=_SHARE)]
NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.\-]{0,99}$"  # becomes the name of files and folders
Name = Annotated[str, Field(pattern=NAME)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # accepted by every random number generator
Margin = Fraction | Share
Need = Literal[
    "changing_facts", "private_knowledge", "new_domain", "style_or_format", "low_latency", "little_data",
    "knowledge_and_behaviour", "sensitive_data", "general_purpose", "rapid_iteration", "no_compute",
    "low_resource_language", "answers_with_sources", "missing_capability", "cheaper_than_a_larger_model",
]  # fmt: skip


def _kinds(annotation: Any) -> set[Any]:
    inner = get_args(annotation)
    return set().union(*map(_kinds, inner)) if inner else {annotation}


class Spec(BaseModel):
    """Base of all sections: unknown keys, NaN, infinity and `true` for a number are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_truth_values(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse `true` for a number: pydantic reads it as 1, but `replay: true` is not a share of 1."""
        if isinstance(value, bool) and info.field_name in cls.model_fields:
            kinds = _kinds(cls.model_fields[info.field_name].annotation)
            if kinds & {int, float} and not kinds & {bool, Any}:
                raise PydanticCustomError("float_type", "Input should be a valid number")
        return value

    def identity(self) -> dict[str, Any]:
        """Return the values that differ from their defaults, for digests."""
        return self.model_dump(mode="json", exclude_defaults=True)


_Model = TypeVar("_Model", bound=BaseModel)


class Disagreements(ValueError):
    """All contradictions between the keys of one mapping."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def rule(disagreements: Callable[[_Model], Iterator[str]]) -> Any:
    """Turn a method that yields contradictions between a model's keys into a validator."""

    @wraps(disagreements)
    def check(self: _Model) -> _Model:
        if problems := list(disagreements(self)):
            raise Disagreements(problems)
        return self

    return model_validator(mode="after")(check)
