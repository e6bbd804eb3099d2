"""Records of one run and of its training: where its rows are, its metrics, its measured figures.

Invariant: what was not measured is None or empty, and is not stored. Runs name rows by digest and share them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import chain
from math import inf
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import ValidationError

from harness.records.serialization import NameOrNone, StoredName, reader


class TokenCounts(NamedTuple):
    """Mean tokens of one request: of its prompt, of the beginning shared by all prompts, of its answer."""

    prompt: float
    cached: float
    output: float


class Figure(NamedTuple):
    """A figure: the name of its field, its heading in tables, its unit, its meaning, and its type in SQL.

    Without a type it has no column in SQL.
    """

    name: str
    heading: str
    unit: str
    meaning: str
    type: str = "DOUBLE"


# Figures of a candidate's run while it answers.
SERVING = (
    Figure("cost_per_1k_usd", "$/1k", "USD", "USD for 1,000 requests"),
    Figure("latency_p50_s", "p50", "s", "median time of a request that is sent alone"),
    Figure("latency_p95_s", "p95", "s", "time that 95 % of the requests that are sent alone keep"),
    Figure("requests_per_s", "requests a second", "1/s", "throughput when answered in batches"),
)
# Figures of an artefact, compared with the run that it was exported from.
PARITY = (
    Figure("own_run", "exported from", "", "the run that it was exported from", "VARCHAR"),
    Figure("logit_gap", "largest logit gap", "", "largest difference of a logit to the run's in fp32"),
    Figure("mean_kl", "mean KL, nats", "nats", "mean KL divergence of the next token from the run in fp32"),
    Figure("top1_agreement", "same likeliest token", "share", "positions with the run's likeliest token"),
    Figure("n_positions", "positions", "", "positions whose next token was compared", "BIGINT"),
    Figure("n_answers", "answers", "", "answers to test items of the target", "BIGINT"),
    Figure("flipped", "answers flipped", "", "answers with another text than the run's", "BIGINT"),
    Figure("floor", "floor of flips", "", "answers of the run with another text in fp32", "BIGINT"),
    Figure("lost", "lost", "", "items that score less than the run's answer", "BIGINT"),
    Figure("won", "won", "", "items that score more than the run's answer", "BIGINT"),
    Figure("bits_per_byte", "bits per byte", "bits", "on the texts of the suites"),
    Figure("size_bytes", "size", "bytes", "what its files take on disk", "BIGINT"),
    Figure("tokens_per_s", "tokens a second", "tokens/s", "tokens generated one after the other"),
    Figure("peak_memory_gib", "peak memory, GiB", "GiB", "the largest memory of its worker"),
)


Curve = tuple[tuple[float, float | None], ...]  # (step, value); None where the value was not finite


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One trial of a sweep: its parameters, its score on validation, and the logs of its training.

    `validation` is None after an error, and the last score of a pruned trial. `points` are scores by step.
    `forgetting` is the mean loss of capability on validation items, at most `most_forgetting` in a chosen
    trial. `asked` digests which prompts were sent to which weights. `alike` are other settings with the same
    prompts.
    """

    params: dict[str, Any]
    validation: float | None
    best_validation_loss: float | None = None
    wall_s: float = 0.0
    loss: Curve = ()
    validation_loss: Curve = ()
    chosen: bool = False
    points: Curve = ()
    pruned_at: int | None = None
    forgetting: float | None = None
    most_forgetting: float | None = None
    fit_key: NameOrNone = ""
    asked: str = ""
    alike: tuple[dict[str, Any], ...] = ()
    error: str = ""

    @property
    def is_pruned(self) -> bool:
        """Whether a pruner stopped its training."""
        return self.pruned_at is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixScan:
    """Matrices of one type by signal-to-noise ratio: all, the trained ones, and the ratios at the cut."""

    type: str
    n: int
    n_trained: int
    least_trained: float
    most_frozen: float | None = None


class ValidationReward(NamedTuple):
    """Reward of the likeliest answer to a validation prompt, before a training on rewards and after it."""

    cluster: str
    before: float | None
    after: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedPoint:
    """Weights at one step of a training: score on the target's validation rows, and forgetting.

    `capability` is the mean change against the base, with its 95 % interval, on `n_general` items.
    """

    step: int
    target: float | None
    capability: float | None = None
    low: float | None = None
    high: float | None = None
    n_general: int = 0


_Float = float | None
_Int = int | None
_SQL_TYPES: dict[Any, str] = {_Float: "DOUBLE", _Int: "BIGINT", Curve: ""}
_READ_AS: dict[str, Any] = {"DOUBLE": _Float, "BIGINT": _Int, "VARCHAR": str}


# Figures that no code reads by name, by the field of `TrainingRecord` that they follow.
_FURTHER = {
    "train_loop_s": (
        Figure("copying_s", "copying", "s", "", ""),
        Figure("mixing_s", "mixing", "s", "", ""),
    ),
    "n_steps": (
        Figure("n_skipped_steps", "steps whose gradients overflowed", "", "steps without a change", "BIGINT"),
    ),
    "n_trainable": (
        Figure("trainable_share", "share of the base's parameters", "share", "those trained"),
        Figure("size_bytes", "size on disk", "bytes", "what the finished weights take on disk", "BIGINT"),
        Figure("base_size_bytes", "size of the base on disk", "bytes", "size of the base", "BIGINT"),
    ),
    "peak_memory_gib": (
        Figure("peak_includes", "peak memory includes", "", "what else the peak holds", "VARCHAR"),
    ),
    "validation_token_accuracy": (
        Figure("n_packs", "packs of rows", "", "packs of rows", "BIGINT"),
        Figure("n_processes", "processes", "", "processes that shared its steps", "BIGINT"),
        Figure("batch_size", "rows at once", "rows", "rows of a process in memory at once", "BIGINT"),
        Figure("accumulated_batches", "batches a step", "", "batches of a process in a step", "BIGINT"),
    ),
    "reward_model_accuracy": (Figure("teacher", "teacher", "", "", ""),),
    "heldout_margin": (Figure("n_examples", "texts", "", "texts that were trained on", "BIGINT"),),
    "named_base": (
        Figure("command", "command", "", "", ""),
        Figure("command_version", "command version", "", "", ""),
        Figure("exit_code", "exit code", "", "", ""),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRecord:
    """Measured figures of one training, in the order of reports; None if not measured.

    `wall_s` includes a sweep's trials; `init_wall_s` is that of the training it continues. Curves are by
    optimiser step. `loss` is smoothed by `label_smoothing`, `validation_loss` is not. `reward` is the mean
    over answers. `searched_by` is the search that proposed the `sweep`, `named_base` the base that an adapter
    made elsewhere names. `stands_on` maps the keys of other weights that it depends on to digests. `others`
    are figures that no code reads by name (`_FURTHER`), and those of a user's own method.
    """

    wall_s: Annotated[_Float, "time", "s", "time of the training, a sweep's trials included"] = None
    train_loop_s: Annotated[_Float, "time of the steps", "s", "time of the optimiser steps alone"] = None
    n_tokens: Annotated[_Int, "tokens", "tokens", "tokens that were trained on, padding left out"] = None
    tokens_per_s: Annotated[_Float, "tokens a second", "tokens/s", "speed of the training loop"] = None
    n_steps: Annotated[_Int, "steps", "", "optimiser steps"] = None
    n_dropped_too_long: Annotated[_Int, "rows too long, left out", "rows", "rows that were too long"] = None
    n_trainable: Annotated[_Int, "parameters trained", "", "parameters that were trained"] = None
    peak_memory_gib: Annotated[_Float, "peak memory, GiB", "GiB", "the largest memory that it held"] = None
    waited_share: Annotated[
        _Float, "share of the time that it waited for a processor", "share", "waited for a processor"
    ] = None
    loss: Curve = ()
    validation_loss: Curve = ()
    best_validation_loss: _Float = None
    label_smoothing: _Float = None
    learning_rate: Curve = ()
    loss_scale: Curve = ()
    token_accuracy: Curve = ()
    validation_token_accuracy: Curve = ()
    not_packed: Annotated[str, "not packed, because it", "", "why requested rows were not packed"] = ""
    n_pairs: Annotated[_Int, "pairs", "", "preference pairs that were trained on"] = None
    reward_margin: Curve = ()
    reward_accuracy: Curve = ()
    reward: Curve = ()
    equal_rewards: Annotated[Curve, "prompts with one reward for all answers", "share", ""] = ()
    kl: Annotated[Curve, "KL to the reference, nats a token", "nats", ""] = ()
    validation_rewards: tuple[ValidationReward, ...] = ()
    reward_model_accuracy: Annotated[
        _Float, "held-out accuracy of the reward model", "share", "on held-out pairs"
    ] = None
    n_heldout: Annotated[_Int, "rows held out", "rows", "pairs that were held out"] = None
    heldout_accuracy: Annotated[Curve, "held-out accuracy", "share", ""] = ()
    heldout_margin: Annotated[Curve, "held-out margin", "", ""] = ()
    n_replayed: _Int = None
    named_base: str | None = None
    fit_key: Annotated[NameOrNone, "key of the weights", "", "the folder runs/weights/<fit_key>"] = ""
    init_wall_s: Annotated[_Float, "time of what it starts from", "s", "of the training before it"] = None
    stands_on: dict[StoredName, str] = field(default_factory=dict)
    scan: tuple[MatrixScan, ...] = ()
    sweep: tuple[Trial, ...] = ()
    searched_by: str = ""
    tracked: tuple[TrackedPoint, ...] = ()
    others: dict[str, Any] = field(default_factory=dict)

    def add(self, **others: Any) -> "TrainingRecord":
        """Return the record with further figures; those that are None are left out."""
        known_figures = {name: value for name, value in others.items() if value is not None}
        return replace(self, others=self.others | known_figures)

    @property
    def total_s(self) -> float:
        """Seconds of the training and of the one it continues; 0 if nothing was trained."""
        return (self.wall_s or 0.0) + (self.init_wall_s or 0.0)

    def to_plain(self) -> dict[str, Any]:
        """Return the known figures as stored, with the further ones on the same level."""
        plain: dict[str, Any] = {}
        for f in (f for f in fields(self) if f.name != "others"):
            value = getattr(self, f.name)
            if value is not None and value not in ("", (), {}):
                nested = f.name in ("sweep", "scan", "tracked")
                plain[f.name] = [asdict(record) for record in value] if nested else value
            names = (figure.name for figure in _FURTHER.get(f.name, ()))
            plain |= {name: self.others[name] for name in names if name in self.others}
        return plain | self.others


def _list_figures() -> Iterator[Figure]:
    for f in fields(TrainingRecord):
        if metadata := getattr(f.type, "__metadata__", None):
            heading, unit, meaning = metadata[-3:]
            kind = _SQL_TYPES.get(get_args(f.type)[0], "VARCHAR")
            yield Figure(f.name, heading, unit, meaning, kind)
        yield from _FURTHER.get(f.name, ())


TRAINING = tuple(_list_figures())


def read_training_record(stored: Mapping[str, Any]) -> TrainingRecord:
    """Read a training; figures with unknown names are kept as `others`. ValueError: a wrong type."""
    names = {f.name for f in fields(TrainingRecord)} - {"others"}
    known_fields = {name: value for name, value in stored.items() if name in names}
    others = {name: value for name, value in stored.items() if name not in names}
    path = ["training"]
    try:
        record: TrainingRecord = reader(TrainingRecord).validate_python({**known_fields, "others": others})
        for figure in chain.from_iterable(_FURTHER.values()):
            if figure.name in others and figure.type in _READ_AS:
                path[1:] = [figure.name]
                reader(_READ_AS[figure.type]).validate_python(others[figure.name])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, (*path, *first["loc"])))
        expected = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{where}: found {first['input']!r}; expected {expected}") from None
    return record


FEWER = "-fewer"  # suffix of the name of an experiment whose items were sampled


@dataclass(frozen=True, slots=True)
class MetricRange:
    """Direction and bounds of a metric, which determine its unit; a missing bound is None."""

    higher_is_better: bool
    low: float | None
    high: float | None

    @property
    def is_rate(self) -> bool:
        """Whether its values are rates in [0, 1]."""
        return self.low is not None and self.high is not None and self.low >= 0 and self.high <= 1

    @property
    def span(self) -> float:
        """The length of the scale: 1 for rates, infinite if a bound is missing."""
        if self.low is None or self.high is None:
            return inf
        return 1.0 if self.is_rate else self.high - self.low

    def floor(self, chance: float) -> float:
        """Return the score that shows no skill: chance, or the lowest score if chance is out of range."""
        lowest = self.low or 0.0
        return chance if lowest < chance < (inf if self.high is None else self.high) else lowest

    @property
    def worst(self) -> float | None:
        """The worst value, which a failed answer gets; None if a bound is missing."""
        if self.low is None or self.high is None:
            return None
        return self.low if self.higher_is_better else self.high


@dataclass(frozen=True, slots=True)
class Run:
    """One candidate and one seed, trained and evaluated: the content of `runs/<run_id>/run.json`.

    `rows` maps "task/split" to the digest of the row folder. `served_digest` is set if another base than the
    published one answered (quantised). `metrics` maps task and metric to the meaning of the scores. `parity`
    holds the figures of an artefact (see `PARITY`).
    """

    run_id: StoredName
    experiment: StoredName
    candidate: StoredName
    method: str
    prompting: str
    answer: str
    seed: int
    base_model: str
    weights_digest: str
    base_digest: str
    state: Literal["done", "failed"]
    created: str
    rows: dict[str, StoredName]
    recipe: dict[str, Any]
    training: TrainingRecord = field(default_factory=TrainingRecord)
    latency: dict[str, float] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    served_digest: str = ""
    metrics: dict[str, dict[str, MetricRange]] = field(default_factory=dict)
    parity: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The candidate, followed by the seed if it is not 0: `lora (seed 1)`."""
        return f"{self.candidate} (seed {self.seed})" if self.seed else self.candidate

    @property
    def decoding(self) -> dict[str, Any] | None:
        """Sampling settings of the answers to the target; None if they are greedy."""
        decoding: dict[str, Any] | None = self.recipe.get("decoding")
        return decoding

    def to_plain(self) -> dict[str, Any]:
        """Return the content of `run.json`."""
        plain = asdict(replace(self, training=TrainingRecord())) | {"training": self.training.to_plain()}
        return plain if self.parity else {name: value for name, value in plain.items() if name != "parity"}

    def may_be_drawn(self, task: str) -> bool:
        """Tell whether a task's items may have been sampled, with weights that only the report knows."""
        return self.experiment.endswith(FEWER) and f"{task}/validation" not in self.rows


@dataclass(frozen=True, slots=True)
class SamplingRecord:
    """Sampled items of a run of `--sequential`, and the interim analysis that judged it.

    `alpha` is its one-sided level, a share of the gate's level `of_alpha`. By sampled task, `weights` holds
    the inclusion weight of each sampled item, `versions` the version of the whole task's rows.
    """

    analysis: str
    alpha: float
    of_alpha: float
    weights: dict[str, dict[str, float]]
    versions: dict[str, str]


def run_record(stored: Mapping[str, Any]) -> Run:
    """Read a run from its plain form; ValueError if it is not a run's."""
    plain = {**stored, "training": read_training_record(stored.get("training", {}))}
    run: Run = reader(Run).validate_python(plain)
    return run
