"""Types of values in harness.yaml, and metrics as they are written.

Invariant: a model refuses unknown keys, numbers that are none or infinite, and `true` for a number.
"""

import re
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import PurePath
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

Role = Literal["target", "capability", "safety", "regression"]
Kind = Literal["generate", "choice", "bits_per_byte"]
Precision = Literal["auto", "bf16", "fp16", "fp32"]
Engine = Literal["transformers", "vllm"]
# These begin the metrics of a library, those that a judge grades, and those of an entailment model.
EVALUATE, JUDGE, ENTAILMENT = "evaluate:", "judge:", "entailment:"
BASE = "base"  # the method of a recipe that names none
HUB = "hub:"  # begins the name of a data set on the hub


def metric_parts(written: str) -> tuple[str, str, str]:
    """Split a metric as it is written: its prefix, its name or path, and the rest from a colon on."""
    prefix = next((one for one in (EVALUATE, JUDGE, ENTAILMENT) if written.startswith(one)), "")
    name, colon, key = written.removeprefix(prefix).partition(":")
    return prefix, name, f"{colon}{key}"


def metric_name(written: str) -> str:
    """Return the short name of a metric: of a file its stem, behind a prefix no folders; else itself."""
    prefix, name, key = metric_parts(written)
    if prefix != EVALUATE or is_path(name):
        name = re.sub(r"\.(py|ya?ml)$", "", PurePath(name).name)
    return f"{prefix}{name}{key}"


def is_path(metric: str) -> bool:
    """Tell whether a metric is written as a path and not as a name."""
    return metric.endswith(".py") or metric.startswith((".", "/", "~"))


Fraction = Annotated[float, Field(gt=0, lt=1)]
# Above 0 % and below 100 %: a margin of nothing cannot be shown by any number of items.
_SHARE = r"^([1-9]\d?(\.\d+)?|0?[1-9](\.\d+)?|0{1,2}\.\d*[1-9]\d*)\s*%$"
Share = Annotated[str, Field(pattern=_SHARE)]
NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.\-]{0,99}$"  # of what files and folders are named after
Name = Annotated[str, Field(pattern=NAME)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what every generator of random numbers takes
Margin = Fraction | Share
Need = Literal[
    "changing_facts",
    "private_knowledge",
    "new_domain",
    "style_or_format",
    "low_latency",
    "little_data",
    "knowledge_and_behaviour",
    "sensitive_data",
    "general_purpose",
    "rapid_iteration",
    "no_compute",
    "low_resource_language",
]


def _kinds(annotation: Any) -> set[Any]:
    """Return the types that an annotation is a union of."""
    inner = get_args(annotation)
    return set().union(*map(_kinds, inner)) if inner else {annotation}


class Spec(BaseModel):
    """Frozen and strict: an unknown key, NaN, infinity and `true` for a number are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_truth_values(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse `true` for a number: pydantic reads it as 1, and `replay: true` means no share of 1."""
        if isinstance(value, bool) and info.field_name in cls.model_fields:
            kinds = _kinds(cls.model_fields[info.field_name].annotation)
            if kinds & {int, float} and not kinds & {bool, Any}:
                raise PydanticCustomError("float_type", "Input should be a valid number")
        return value

    def identity(self) -> dict[str, Any]:
        """Return what digests hold of the values: those that are not at their default."""
        return self.model_dump(mode="json", exclude_defaults=True)


_Model = TypeVar("_Model", bound=BaseModel)


class Disagreements(ValueError):
    """All that the keys of one mapping disagree on."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def rule(disagreements: Callable[[_Model], Iterator[str]]) -> Any:
    """Make a rule between a model's keys of a method that yields what they disagree on."""

    @wraps(disagreements)
    def check(self: _Model) -> _Model:
        if problems := list(disagreements(self)):
            raise Disagreements(problems)
        return self

    return model_validator(mode="after")(check)
