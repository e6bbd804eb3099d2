"""Schema of tasks and suites, types of values in harness.yaml, and how metrics are written.

Invariant: a model refuses unknown keys, NaN and infinite numbers, and `true` for a number. All that is
written about a task enters its version digest; paths are kept as written, and the reader of a file resolves
them against that file's folder (see `config`).
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
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from harness.records import match_label

Role = Literal["target", "capability", "safety", "regression"]
Kind = Literal["generate", "choice", "bits_per_byte"]
Precision = Literal["auto", "bf16", "fp16", "fp32"]
Engine = Literal["transformers", "vllm"]
# Prefixes of metrics of a library, of a judge, and of an entailment model.
EVALUATE, JUDGE, ENTAILMENT = "evaluate:", "judge:", "entailment:"
BASE = "base"  # default method of a recipe
HUB = "hub:"  # prefix of a data set on the hub
_WITH_PARAMS = re.compile(r"(.+?)(\(\w+=[^(),=]*(?:, \w+=[^(),=]*)*\))")  # rouge(kind=rougeL)
Fraction = Annotated[float, Field(gt=0, lt=1)]
NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.\-]{0,99}$"  # becomes the name of files and folders
Name = Annotated[str, Field(pattern=NAME)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # accepted by every random number generator
Need = Literal[
    "changing_facts", "private_knowledge", "new_domain", "style_or_format", "low_latency", "little_data",
    "knowledge_and_behaviour", "sensitive_data", "general_purpose", "rapid_iteration", "no_compute",
    "low_resource_language", "answers_with_sources", "missing_capability", "cheaper_than_a_larger_model",
]  # fmt: skip


def _read_margin(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    try:
        return handler(value)
    except ValidationError:
        raise PydanticCustomError("margin", "a number between 0 and 1 or a share such as 10%") from None


# How margins are written; analysis/margins.py says what loss each allows. Above 0 % and below 100 %: no
# number of items can show a margin of 0.
_SHARE = r"^([1-9]\d?(\.\d+)?|0?[1-9](\.\d+)?|0{1,2}\.\d*[1-9]\d*)\s*%$"
Margin = Annotated[Fraction | Annotated[str, Field(pattern=_SHARE)], WrapValidator(_read_margin)]
_Model = TypeVar("_Model", bound=BaseModel)
DATA_FILES = ("all", "train", "validation", "test", "pairs", "documents")  # of TaskData
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.\-]")
# Keys allowed for a task of lm-eval, which defines everything else itself.
_OF_LM_EVAL = {"name", "description", "lm_eval", "limit", "num_fewshot", "chance", "margin", "primary"}


def metric_parts(written: str) -> tuple[str, str, str]:
    """Split a metric as written into prefix, name or path, and the rest: from a colon on, or parameters."""
    prefix = next((p for p in (EVALUATE, JUDGE, ENTAILMENT) if written.startswith(p)), "")
    if not prefix and (call := _WITH_PARAMS.fullmatch(written)):
        return "", call[1], call[2]
    name, colon, key = written.removeprefix(prefix).partition(":")
    return prefix, name, f"{colon}{key}"


def metric_plugin(written: str) -> str:
    """Return a metric's name or the path of its file; empty if a library or a model scores."""
    prefix, name, _ = metric_parts(written)
    return "" if prefix else name


def metric_params(written: str) -> dict[str, str]:
    """Return the parameters that a metric is written with, as text."""
    call = _WITH_PARAMS.fullmatch(written)
    return dict(assignment.split("=") for assignment in call[2][1:-1].split(", ")) if call else {}


def write_metric(value: Any) -> Any:
    """Write a metric with parameters, `{rouge: {kind: rougeL}}`, as text: `rouge(kind=rougeL)`."""
    if not isinstance(value, dict):
        return value
    ((name, params),) = value.items() if len(value) == 1 else (("", None),)
    texts = [str(v) for v in params.values()] if isinstance(params, dict) else [""]
    if metric_parts(str(name))[0] or not all(re.fullmatch(r"[^(),=]+", text) for text in texts):
        raise ValueError("a metric with parameters is one name with values, as {rouge: {kind: rougeL}}")
    return f"{name}({', '.join(f'{key}={v}' for key, v in params.items())})" if params else str(name)


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


class ItemLimits(Spec):
    """Numbers of items used from each split; sampled by seed, stratified by label if there are labels.

    Each of `train`, `validation` and `test` is a number of items; by default all are used.
    """

    train: int | None = Field(None, ge=1)
    validation: int | None = Field(None, ge=1)
    test: int | None = Field(None, ge=1)


class TaskData(Spec):
    """Files of a task, relative to the file that names them.

    Without `validation` a part of the training rows is set aside (grouped by cluster). `all` is one file for
    the three splits: the test part is set aside from it in the same way. `contamination` says what happens to
    rows of an evaluated split that also occur in training. `unknown_labels` says what happens to rows whose
    reference is not among `labels`, `invalid_rows` to rows with missing parts.

    `turns: all` trains on every answer of the assistant in a conversation, each after the turns before it;
    `last` on the last one. Turns of one conversation form one cluster.

    `train` holds rows to train on and to take shots from, `test` those that are evaluated once. `pairs` are
    preference pairs, or answers with a thumb each, `documents` texts for retrieval.

    `folds: 5`, for little data, tests on every training row: for each of five folds, training and shots
    exclude the fold's rows, which are then answered. The released weights are trained on all rows.
    """

    all: str | None = None
    train: str | None = None
    validation: str | None = None
    test: str | None = None
    pairs: str | None = None
    documents: str | None = None
    limits: ItemLimits = ItemLimits()
    contamination: Literal["error", "drop"] = "error"
    unknown_labels: Literal["error", "drop"] = "error"
    invalid_rows: Literal["error", "drop"] = "error"
    turns: Literal["last", "all"] = "last"
    folds: int | None = Field(None, ge=3, le=20)

    @rule
    def _check_files(self) -> Iterator[str]:
        if self.all and (self.train or self.validation or self.test):
            yield "all is split into train, validation and test: leave these three out"
        if self.folds and self.test:
            yield f"folds: {self.folds}, and a test file; leave one out: in folds training rows are tested on"
        if self.folds and not (self.all or self.train):
            yield f"folds: {self.folds}, and no rows to deal: name a file as all or train"

    def source(self, split: str) -> str | None:
        """Return the file of a split, of the pairs or of the documents."""
        path: str | None = getattr(self, split)
        return path or (self.all if split in ("train", "test") else None)


class Fields(Spec):
    """Templates that build an item from the fields of a row, such as `{text}` or `{answers.text}`.

    `prompt` and `reference` make the item. `id` names it, `cluster` is the family of items that it belongs
    to, and `slice` a part of the items that is reported separately. `answers_are` is not a template: it says
    what answers next to choices mean if the rows leave that open.
    """

    prompt: str = "{prompt}"
    reference: str = "{reference}"
    id: str | None = None
    cluster: str | None = None
    slice: str | None = None
    answers_are: Literal["choices", "labels", "places from 0", "places from 1"] | None = None


_OF_LM_EVAL |= {"trust_remote_code"}


class Task(Spec):
    """Examples, metrics and generation limits; all of it enters the task's version digest.

    A task of lm-eval is written as its bare name, or as `lm_eval: NAME` with further keys.

    `kind` is how it is answered: `generate`, `choice` (log-likelihood of each choice) or `bits_per_byte`.
    `chance` is a guesser's score, `margin` the loss that counts as a regression on this task: in (0, 1), or
    `10%`, a share of what the base scores above chance. Each of `metrics` is the name of one of ours, a file
    of one's own (`./mine.py`), `evaluate:NAME` of the evaluate library, `judge:./FILE.yaml`, a rubric, or
    `entailment:MODEL`. `num_fewshot` shots come from the `train` file and are given as turns. An answer cut
    at `max_new_tokens` scores worst unless `truncated_scores`: for questions whose answer comes first.

    `name` is the task's name in reports, `description` says what it measures. `primary` is the deciding
    metric, by default the first. `labels` is the closed set of answers. `limit` caps its test items, sampled
    by seed. Without `chat_template` the prompt is plain text. `system` is the system message.
    `length_normalized` divides the log-likelihood of a choice by its bytes. `stop` holds texts that end an
    answer. `trust_remote_code` lets its data set run code. `bounds` declare the smallest and largest value of
    a metric without known bounds.
    """

    name: Name
    description: str = ""
    data: TaskData = TaskData()
    lm_eval: str = ""
    trust_remote_code: bool = False
    fields: Fields = Fields()
    kind: Kind = "generate"
    metrics: tuple[Written, ...] = Field(("exact_match",), min_length=1)
    primary: Written = ""
    labels: tuple[str, ...] = ()
    chance: float = 0.0
    margin: Margin | None = None
    bounds: dict[str, tuple[float, float]] = {}
    limit: int | None = Field(None, ge=1)
    chat_template: bool = True
    system: str | None = None
    num_fewshot: int = Field(0, ge=0)
    length_normalized: bool = False
    max_new_tokens: int = Field(32, ge=1)
    truncated_scores: bool = False
    stop: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _take_lm_eval_name(cls, data: Any) -> Any:
        if isinstance(data, str):
            data = {"lm_eval": data}
        if isinstance(data, dict) and isinstance(data.get("lm_eval"), str):
            return {"name": _NOT_IN_NAMES.sub("-", data["lm_eval"]), **data}
        return data

    @rule
    def _check_keys(self) -> Iterator[str]:
        if self.lm_eval and (extra_keys := sorted(self.model_fields_set - _OF_LM_EVAL)):
            yield f"{', '.join(extra_keys)} at a task of lm-eval, which says that itself"
        if not self.lm_eval and "data" not in self.model_fields_set:
            yield f"task {self.name!r} with neither data nor lm_eval"
        for index, label in enumerate(self.labels):
            if (same := match_label(label, self.labels[:index])) is not None:
                step = "keep one of them, as which rows of both are read"
                yield f"labels {same!r} and {label!r} are one to metrics: {step}"
        metric_names = [metric_name(self.primary), *map(metric_name, self.metrics)]
        if self.primary and not self.lm_eval and metric_names[0] not in metric_names[1:]:
            yield f"primary {self.primary!r} is not among metrics {list(self.metrics)}"
        for name, (low, high) in self.bounds.items():
            if metric_name(name) not in map(metric_name, self.metrics):
                yield f"bounds of {name!r}, which is not among metrics {list(self.metrics)}"
            if low >= high:
                yield f"bounds of {name!r}: found {low:g} and {high:g}, expected rising ones"

    @property
    def primary_metric(self) -> str:
        """The short name of the deciding metric: `primary`, else the first of `metrics`."""
        return metric_name(self.primary or self.metrics[0])

    @property
    def is_judged(self) -> bool:
        """Whether another model computes the deciding metric."""
        judged = (written for written in self.metrics if written.startswith((JUDGE, ENTAILMENT)))
        return self.primary_metric in map(metric_name, judged)


class Suite(Spec):
    """A named list of tasks with one role.

    `name` is its name in experiments, `role` the purpose of its `tasks`.
    """

    name: str
    role: Role = "target"
    tasks: tuple[Task, ...] = Field(min_length=1)
