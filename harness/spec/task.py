"""Schema of tasks and suites.

Invariant: everything written about a task enters its version digest; paths are kept as written, and the
reader of a file resolves them against that file's folder (see `config`).
"""

import re
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, model_validator

from harness.records import match_label
from harness.spec.values import ENTAILMENT, JUDGE, Kind, Margin, Name, Role, Spec, Written, metric_name, rule


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
            yield (
                f"folds: {self.folds}, and a test file: in folds every training row is tested on once; leave "
                "folds out, or test, whose rows may stand among those of train"
            )
        if self.folds and not (self.all or self.train):
            yield f"folds: {self.folds}, and no rows to deal: name a file as all or train"

    def source(self, part: str) -> str | None:
        """Return the file of a split, of the pairs or of the documents."""
        own: str | None = getattr(self, part)
        return own or (self.all if part in ("train", "test") else None)


DATA_FILES = ("all", "train", "validation", "test", "pairs", "documents")  # of TaskData


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


_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.\-]")
# Keys allowed for a task of lm-eval, which defines everything else itself.
_OF_LM_EVAL = {"name", "description", "lm_eval", "limit", "num_fewshot", "chance", "margin", "primary"}
_OF_LM_EVAL |= {"trust_remote_code"}


class Task(Spec):
    """Examples, metrics and generation limits; all of it enters the task's version digest.

    A task of lm-eval is written as its bare name, or as `lm_eval: NAME` with further keys.

    `kind` is how it is answered: `generate`, `choice` (log-likelihood of each choice) or `bits_per_byte`.
    `chance` is the score of a guesser in [0, 1], `margin` the loss that counts as a regression on this task:
    in (0, 1), or `10%` of what the base has above chance. Each of `metrics` is the name of one of ours, a
    file of one's own (`./mine.py`), `evaluate:NAME` of the evaluate library, `judge:./FILE.yaml`, a rubric,
    or `entailment:MODEL`. `num_fewshot` shots come from the `train` file and are given as turns. An answer
    cut at `max_new_tokens` scores worst unless `truncated_scores`: for questions whose answer comes first.

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
    chance: float = Field(0.0, ge=0, lt=1)
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
        if self.lm_eval and (other := sorted(self.model_fields_set - _OF_LM_EVAL)):
            yield f"{', '.join(other)} at a task of lm-eval, which says that itself"
        if not self.lm_eval and "data" not in self.model_fields_set:
            yield f"task {self.name!r} with neither data nor lm_eval"
        for place, label in enumerate(self.labels):
            if (same := match_label(label, self.labels[:place])) is not None:
                step = "keep one of them, as which rows of both are read"
                yield f"labels {same!r} and {label!r} are one to metrics: {step}"
        known = [metric_name(self.primary), *map(metric_name, self.metrics)]
        if self.primary and not self.lm_eval and known[0] not in known[1:]:
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
        return any(
            metric_name(written) == self.primary_metric and written.startswith((JUDGE, ENTAILMENT))
            for written in self.metrics
        )


class Suite(Spec):
    """A named list of tasks with one role.

    `name` is its name in experiments, `role` the purpose of its `tasks`.
    """

    name: str
    role: Role = "target"
    tasks: tuple[Task, ...] = Field(min_length=1)
