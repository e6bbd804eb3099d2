"""Schema of harness.yaml: experiments, recipes, suites, tasks and policies.

Invariant: every model is frozen and refuses unknown keys; paths are kept as written, and
whoever reads a file resolves them against that file's folder (see `config`).
"""

import re
from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Role = Literal["target", "capability", "safety", "regression"]
Kind = Literal["generate", "choice", "bits_per_byte"]
Precision = Literal["auto", "bf16", "fp16", "fp32"]
Engine = Literal["transformers", "vllm"]
EVALUATE, JUDGE = "evaluate:", "judge:"  # begin the metrics of a library, and those that a judge grades
BASE = "base"  # the method of a recipe that names none
HUB = "hub:"  # begins the name of a data set on the hub


def metric_parts(written: str) -> tuple[str, str, str]:
    """Split a metric as it is written: its prefix, its name or path, and the rest from a colon on."""
    prefix = next((one for one in (EVALUATE, JUDGE) if written.startswith(one)), "")
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
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what every generator of random numbers takes
Margin = Fraction | Share
Need = Literal[
    "changing_facts",
    "private_knowledge",
    "style_or_format",
    "low_latency",
    "little_data",
    "knowledge_and_behaviour",
    "sensitive_data",
]


class Spec(BaseModel):
    """Frozen and strict: an unknown key is an error, and so is a number that is none or infinite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ItemLimits(Spec):
    """Numbers of items used of each split; sampled by seed, stratified by label where there are labels.

    Each of `train`, `validation` and `test` is a number of items; without one all are used.
    """

    train: int | None = Field(None, ge=1)
    validation: int | None = Field(None, ge=1)
    test: int | None = Field(None, ge=1)


class TaskData(Spec):
    """Files of a task, relative to the file that names them.

    Without `validation` a part of the training rows is set aside (grouped by cluster). `all` is one file for
    the three splits: the test part is set aside from it in the same way. `contamination` says what happens to
    rows of an evaluated split that also occur in training. `unknown_labels` says what happens to rows whose
    reference is outside `labels`, `invalid_rows` to rows that lack something.

    `turns: all` trains on every answer of the assistant in a conversation, each after the turns before it;
    `last` on the last one. Turns of one conversation are one cluster.

    `train` holds rows to train on and to take shots from, `test` those that are evaluated once. `pairs` are
    preference pairs, or answers with a thumb each, `documents` texts for retrieval.
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

    @model_validator(mode="after")
    def _one_source_of_splits(self) -> "TaskData":
        if self.all and (self.train or self.validation or self.test):
            raise ValueError("all is split into train, validation and test: leave these three out")
        return self

    def source(self, part: str) -> str | None:
        """Return the file that a split, the pairs or the documents come from."""
        own: str | None = getattr(self, part)
        return own or (self.all if part in ("train", "test") else None)


DATA_FILES = ("all", "train", "validation", "test", "pairs", "documents")  # of TaskData


class Fields(Spec):
    """Templates that make an item of a row, over the row's own fields, as in `{text}` or `{answers.text}`.

    `prompt` and `reference` make the item. `id` names it, `cluster` is the family of items that it belongs
    to, and `slice` a part of the items that is reported apart.
    """

    prompt: str = "{prompt}"
    reference: str = "{reference}"
    id: str | None = None
    cluster: str | None = None
    slice: str | None = None


_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.\-]")
# What may be written of a task of lm-eval; everything else lm-eval says itself.
_OF_LM_EVAL = {"name", "description", "lm_eval", "limit", "num_fewshot", "chance", "margin", "primary"}
_OF_LM_EVAL |= {"trust_remote_code"}


class Task(Spec):
    """Examples, metrics and generation limits; all of it enters the task's version digest.

    A task of lm-eval is written as its bare name, or as `lm_eval: NAME` with other keys beside it.

    `kind` is how it is answered: `generate`, `choice` (log-likelihood of each choice) or `bits_per_byte`.
    `chance` is the score of a guesser in [0, 1], `margin` the loss that counts as a regression on this task:
    in (0, 1), or `10%` of what the base has above chance. Each of `metrics` is the name of one of ours, a
    file of one's own (`./mine.py`), `evaluate:NAME` of the evaluate library, or `judge:./FILE.yaml`, a
    rubric. `num_fewshot` shots come from the `train` file and are given as turns, which
    `fewshot_as_multiturn` may say and not change. An answer cut at `max_new_tokens` scores worst unless
    `truncated_scores`, which suits questions whose answer comes first.

    `name` is what reports call the task, `description` says what it measures. `primary` is the metric that
    decides, the first of them if not written. `labels` closes the set of answers. `limit` caps its test
    items, sampled by seed. Without `chat_template` the prompt is plain text. `system` is the system
    message. `length_normalized` divides the log-likelihood of a choice by its bytes. `stop` holds texts
    that end an answer. `trust_remote_code` lets its data set run code.
    `bounds` declare the least and the most that a metric without known bounds can give.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9_.\-]+$")
    description: str = ""
    data: TaskData = TaskData()
    lm_eval: str = ""
    trust_remote_code: bool = False
    fields: Fields = Fields()
    kind: Kind = "generate"
    metrics: tuple[str, ...] = Field(("exact_match",), min_length=1)
    primary: str = ""
    labels: tuple[str, ...] = ()
    chance: float = Field(0.0, ge=0, lt=1)
    margin: Margin | None = None
    bounds: dict[str, tuple[float, float]] = {}
    limit: int | None = Field(None, ge=1)
    chat_template: bool = True
    system: str | None = None
    num_fewshot: int = Field(0, ge=0)
    fewshot_as_multiturn: Literal[True] = True
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

    @model_validator(mode="after")
    def _ours_or_of_lm_eval(self) -> "Task":
        if self.lm_eval and (other := sorted(self.model_fields_set - _OF_LM_EVAL)):
            raise ValueError(f"{', '.join(other)} at a task of lm-eval, which says that itself")
        if not self.lm_eval and "data" not in self.model_fields_set:
            raise ValueError(f"task {self.name!r} with neither data nor lm_eval")
        return self

    @model_validator(mode="after")
    def _primary_is_a_metric(self) -> "Task":
        known = [metric_name(self.primary), *map(metric_name, self.metrics)]
        if self.primary and not self.lm_eval and known[0] not in known[1:]:
            raise ValueError(f"primary {self.primary!r} is not among metrics {list(self.metrics)}")
        return self

    @model_validator(mode="after")
    def _bounds_of_its_metrics(self) -> "Task":
        for name, (low, high) in self.bounds.items():
            if metric_name(name) not in map(metric_name, self.metrics):
                raise ValueError(f"bounds of {name!r}, which is not among metrics {list(self.metrics)}")
            if low >= high:
                raise ValueError(f"bounds of {name!r}: found {low:g} and {high:g}, expected rising ones")
        return self

    @property
    def primary_metric(self) -> str:
        """The short name of the metric that decides: `primary`, else the first of `metrics`."""
        return metric_name(self.primary or self.metrics[0])


class Suite(Spec):
    """A named list of tasks with one role.

    `name` is what experiments call it, `role` says what its `tasks` are for.
    """

    name: str
    role: Role = "target"
    tasks: tuple[Task, ...] = Field(min_length=1)


PLUGINS = {"prompting": "prompting", "regularize": "regularizers"}  # keys of a recipe: plugins of this kind


def spell_out(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe without short forms: bare names of plugins, `replay: SHARE` for a regulariser."""
    spelt = dict(recipe)
    for key in PLUGINS:
        if isinstance(spelt.get(key), str):
            spelt[key] = {spelt[key]: {}}
        if isinstance(spelt.get(key), dict):
            spelt[key] = {name: {} if params is None else params for name, params in spelt[key].items()}
    replay = spelt.pop("replay", None)
    if replay is not None and isinstance(spelt.get("regularize", {}), dict):
        params = {"share": replay} if isinstance(replay, float | int) else replay
        spelt["regularize"] = {**spelt.get("regularize", {}), "replay": params}
    return spelt


class Tracking(Spec):
    """Points along a training: its weights at some checkpoints, with what they score.

    The weights of `points` checkpoints are kept, evenly over the steps as far as there are so many. Each
    answers the validation rows of the target and `items` general items, of the half that the search of a
    rescue sees.
    """

    points: int = Field(ge=1, le=20)
    items: int = Field(200, ge=1)


class Recipe(Spec):
    """Recipe of a candidate: weights × prompting × answer.

    `prompting` maps the names of promptings to their parameters, applied in order; a bare name is the
    prompting with its defaults. `weights_of` takes the weights of another candidate instead of making its
    own; `init_from` trains the adapter of another candidate further. `merges` names several whose adapters
    are merged into one. `reward` says what a method that trains on rewards is rewarded by: the name of a
    candidate that makes a reward model, of one of our metrics, or a Python file with a function `reward`.
    `path` is where weights made elsewhere lie. `base_model` is this candidate's own, where it is not the
    experiment's. `quantization` is what the base is quantised to on which an adapter is trained: NF4, or
    `int8` (LLM.int8). `serve_on` puts an adapter on the base quantised to one of them, or on
    the base as it is (`bf16`, whatever the machine's precision). `sweep` tries each value of the
    parameters it names and keeps the best on validation. `regularize` maps the names of regularisers of its
    training to their parameters, `replay: SHARE` being short for that of replay. `track` measures target and
    forgetting along the training. `template` wraps the user message, `{prompt}`.

    `method` makes the weights, by its own `params`. `role: baseline` says that a model made elsewhere is to
    be beaten: measured on the target alone, and counted as untrained. `answer` is generated,
    or the label ranked first by log-likelihood. `system` stands in place of the task's system message.
    """

    method: str = BASE
    params: dict[str, Any] = {}
    weights_of: str | None = None
    init_from: str | None = None
    reward: str | None = None
    merges: tuple[str, ...] = ()
    path: str | None = None
    base_model: str | None = None
    role: Literal["candidate", "baseline"] = "candidate"
    quantization: Literal["nf4", "int8"] | None = None
    serve_on: Literal["nf4", "int8", "bf16"] | None = None
    sweep: dict[str, list[Any]] = {}
    regularize: dict[str, dict[str, Any]] = {}
    track: Tracking | None = None
    prompting: dict[str, dict[str, Any]] = {"zero_shot": {}}
    answer: Literal["generate", "rank"] = "generate"
    system: str | None = None
    template: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_short_forms(cls, data: Any) -> Any:
        return spell_out(data) if isinstance(data, dict) else data

    @model_validator(mode="after")
    def _one_source_of_weights(self) -> "Recipe":
        own = (
            self.params,
            self.init_from,
            self.merges,
            self.reward,
            self.path,
            self.base_model,
            self.quantization,
            self.sweep,
            self.regularize,
            self.track,
        )
        if self.weights_of and (self.method != BASE or any(own)):
            raise ValueError(
                "weights_of takes another candidate's weights: leave out method, params, init_from, merges, "
                "reward, path, base_model, quantization, sweep, regularize and track"
            )
        if (self.init_from or self.merges) and (self.base_model or self.quantization):
            key = "init_from takes" if self.init_from else "merges takes"
            raise ValueError(f"{key} another candidate's base: leave out base_model and quantization")
        return self


class TargetPolicy(Spec):
    """Goal on the target: a level, a gain over the best untrained candidate.

    `min` is the highest score allowed where lower is better; the gain is then a fall. `gain` is asked of
    fine-tunes alone.
    """

    min: float | None = Field(None, ge=0, le=1)
    gain: float | None = Field(None, ge=0, le=1)


class GatePolicy(Spec):
    """Margins of the gate in (0, 1); docs/statistics.md has the rules.

    `macro` and `each` may be a share of the base's skill above chance, written `10%`. A critical task passes
    below twice `critical_margin`, which is therefore below one half. `drift` is a rise in bits per byte that
    fails; without it the rise is reported only. `control_blocks` of the base's stored rows are asked again
    whenever a candidate is asked; 0 asks none.

    `macro` is the margin of the mean over the capability tasks, `each` that of a single one. `critical` names
    tasks or suites of which hardly an item may be lost. `validity` is the rise of invalid answers that fails.
    `on_inconclusive` says how such a verdict counts. `alpha` is the chance to pass a loss beyond the margin.
    `tasks` names those to judge; without it all are, and a task that was not answered by both leaves the
    verdict open. `max_errors` is the share of a task's answers that may fail: those of the candidate count as
    lost, and beyond it the verdict is inconclusive: invalid. `cumulative` is the margin of the mean against
    the first base, once gates compare with a champion; twice that of `macro`, at most 0.99, if not
    written. `uncalibrated_judge` says whether a judge's metric decides without people's labels.
    """

    macro: Margin = 0.02
    each: Margin = 0.05
    critical: tuple[str, ...] = ()
    critical_margin: float = Field(0.05, gt=0, lt=0.5)
    validity: float = Field(0.02, gt=0, lt=1)
    target: TargetPolicy = TargetPolicy()
    drift: float | None = Field(None, gt=0)
    on_inconclusive: Literal["fail", "pass", "warn"] = "fail"
    alpha: float = Field(0.05, gt=0, lt=0.5)
    control_blocks: int = Field(2, ge=0)
    tasks: tuple[str, ...] = ()
    cumulative: Margin | None = None
    max_errors: float = Field(0.01, ge=0, lt=1)
    uncalibrated_judge: Literal["refuse", "allow"] = "refuse"


class TokenPrices(Spec):
    """Prices of a provider in USD for a million tokens: read, read again from its cache, and written.

    Cached are those that all prompts begin with; without a price of their own they cost as much as others.
    `input` is the price of a token read, `cached` of one read again, `output` of one written.
    """

    input: float = Field(ge=0)
    cached: float | None = Field(None, ge=0)
    output: float = Field(ge=0)


class DecidePolicy(Spec):
    """Prices, volumes and needs; `tau` in points of the target metric per USD of training cost.

    A request costs its device time, or its tokens where `usd_per_million_tokens` is set. `evaluation_usd` and
    `hosting_usd_per_month` are what a fine-tune costs beside training and labels, `index_usd_per_month` what
    retrieval does. `max_latency_s` is the longest median time of a request sent alone, `min_requests_per_s`
    how many are to be answered in batches: slower candidates are not chosen from. `point_usd` is what one
    point of the target metric is worth over the horizon, by default the answers that it makes right, each
    `right_answer_usd`. `needs` is what is known of the problem. `requests_per_month` over `horizon_months`
    is the forecast. `device_hour_usd` is by default a list's price, `label_cost_usd` that of a training row.
    """

    requests_per_month: float = Field(100_000, gt=0)
    horizon_months: float = Field(6, gt=0)
    device_hour_usd: float | None = Field(None, ge=0)
    usd_per_million_tokens: TokenPrices | None = None
    label_cost_usd: float = Field(0.0, ge=0)
    evaluation_usd: float = Field(0.0, ge=0)
    hosting_usd_per_month: float = Field(0.0, ge=0)
    index_usd_per_month: float = Field(0.0, ge=0)
    max_latency_s: float | None = Field(None, gt=0)
    min_requests_per_s: float | None = Field(None, gt=0)
    point_usd: float | None = Field(None, ge=0)
    right_answer_usd: float | None = Field(None, ge=0)
    tau: float = Field(0.0, ge=0)
    needs: tuple[Need, ...] = ()


class NightlyPolicy(Spec):
    """Nightly evaluation: `candidates` beside the champion, `items` of target and capability suites.

    `anchors` of each are asked every night, the others rotate. `alpha` is the chance of a false alarm
    on a candidate, however many nights there are. `seed_sd` is the standard deviation of the mean score
    between trainings of one recipe, which no alarm is about where weights are made anew.
    """

    candidates: tuple[str, ...] = ()
    items: int = Field(60, ge=1)
    anchors: int = Field(20, ge=0)
    alpha: float = Field(0.05, gt=0, lt=0.5)
    seed_sd: float = Field(0.01, ge=0, lt=0.5)


class TrainingPolicy(Spec):
    """Process that candidates are trained in; neither the weights nor their folder depend on it.

    `process` is the `same` as the command's, or each training's `own`: its peak memory is then measured
    alone, all that it held is given back, and one that the system kills ends that candidate alone.
    """

    process: Literal["same", "own"] = "same"


TRAINING_STEPS = ("learning_rate", "rank", "half")  # of a rescue, with what every training has
_WITHOUT_TRAINING = ("earlier", "scale", "intruders", "merge")
_STEPS = (*_WITHOUT_TRAINING, "learning_rate", "replay", "l2_sp", "ewc", "kl", "rank", "half")


class RescuePolicy(Spec):
    """Trials for a candidate that gains and forgets too much, in the order of `steps`.

    A step is a change of a training's own parameters, or declared by a method or a regulariser.
    `scales` are shares of the adapter's own scale, `shares` those of replayed rows; `replay` is a
    file of rows for them instead of the base's own answers. At most `max_trained` trials train.
    """

    steps: tuple[str, ...] = Field(_STEPS, min_length=1)
    scales: tuple[Fraction, ...] = Field((0.75, 0.5, 0.25), min_length=1)
    shares: tuple[Fraction, ...] = Field((0.01, 0.05, 0.1), min_length=1)
    replay: str | None = None
    max_trained: int = Field(4, ge=0)


class Experiment(Spec):
    """Content of harness.yaml, with suites read and grids expanded.

    `engine` reads and answers; transformers trains in any case. `name` names its reports. `base_model` is
    the embedded one, a hub id or a folder. `suites` are names of those that ship with the package, or files.
    Each recipe that trains does so once for each of `seeds`. `precision` is that of the weights, measured by
    `auto`. `device: auto` takes a GPU where torch sees one. `chat_template_kwargs` are variables of the chat
    template, as `enable_thinking`. `report_to` logs trainings. `datasets_dir` has local copies of hub data.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9_.\-]+$")
    base_model: str = "smollm2-135m"
    target: Task
    suites: tuple[Suite, ...] = ()
    seeds: tuple[Seed, ...] = Field((0,), min_length=1)
    candidates: dict[str, Recipe] = Field(min_length=1)
    gate: GatePolicy = GatePolicy()
    decide: DecidePolicy = DecidePolicy()
    nightly: NightlyPolicy = NightlyPolicy()
    rescue: RescuePolicy = RescuePolicy()
    training: TrainingPolicy = TrainingPolicy()
    chat_template_kwargs: dict[Annotated[str, Field(pattern=r"^[a-z_]\w*$")], bool | int | float | str] = {}
    engine: Engine = "transformers"
    precision: Precision = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    report_to: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    datasets_dir: str | None = None

    @field_validator("seeds")
    @classmethod
    def _each_seed_once(cls, seeds: tuple[Seed, ...]) -> tuple[Seed, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"seeds {list(seeds)}, one of them twice")
        return seeds

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The target, then the tasks of the suites."""
        return (self.target, *(task for suite in self.suites for task in suite.tasks))
