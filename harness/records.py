"""Records that runs write: examples, outputs and the rows of samples.

Invariant: identity is content. The digest of a record is the sha256 of its canonical JSON,
so two equal things have one digest on every machine.
"""

import gc
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from math import inf
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic import TypeAdapter, ValidationError

BLOCK = 160  # items that are answered together, and whose rows are written together
_DEEPEST = 100  # lists and objects in one another: more is no data, and no recursion ends it
FEWER = "-fewer"  # ends the name of an experiment whose items were drawn

Message = dict[str, str]
_Record = TypeVar("_Record")
Curve = tuple[tuple[float, float | None], ...]  # (step, value); None where it was no number
Status = Literal["ok", "unparsable", "truncated", "refused", "error"]


def canonical_json(value: Any) -> str:
    """Serialise with sorted keys and no spaces; NaN and inf are refused.

    Raises:
        ValueError: the value holds NaN or inf.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """Return the first 16 hex digits of the sha256 of the value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


def without_defaults(record: Any) -> dict[str, Any]:
    """Return the fields of a dataclass that differ from their defaults, of which identities are made.

    A field that comes later moves no digest while it has its default. Far faster than `asdict`, which copies.
    """
    values = ((f, getattr(record, f.name)) for f in fields(record))
    return {f.name: value for f, value in values if value != f.default}


def load(record: type[_Record], text: str | bytes) -> _Record:
    """Read the JSON of a record, with the tuples and records inside it.

    Raises:
        ValueError: the text is no JSON, or not that of such a record.
    """
    loaded: _Record = _reader(record).validate_json(text)
    return loaded


_READERS: dict[Any, TypeAdapter[Any]] = {}  # by type: making one takes milliseconds


def _reader(record: Any) -> TypeAdapter[Any]:
    if record not in _READERS:
        _READERS[record] = TypeAdapter(record)
    return _READERS[record]


def parse_json(text: str | bytes, **options: Any) -> Any:
    """Parse JSON that somebody else wrote, with the options of `json.loads`.

    Raises:
        json.JSONDecodeError: it is no JSON, or brackets stand in one another more than 100 deep.
    """
    plain = text if isinstance(text, str) else text.decode("utf-8", "replace")
    try:
        value = json.loads(text, **options)
    except RecursionError:
        pass
    else:
        if plain.count("[") + plain.count("{") <= _DEEPEST or _depth(value) <= _DEEPEST:
            return value
    raise json.JSONDecodeError(f"brackets in one another more than {_DEEPEST} deep", plain, 0)


def _depth(value: Any) -> int:
    """Count how many lists and objects of a value stand in one another."""
    depth, level = 0, [value]
    while level := [one for one in level if isinstance(one, list | dict)]:
        depth += 1
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]
    return depth


def load_files(record: type[_Record], files: Iterable[Path]) -> list[_Record]:
    """Read a record of each file; files that cannot be read are left out."""
    found = []
    for file in files:
        with suppress(OSError, ValueError):
            found.append(load(record, file.read_bytes()))
    return found


@contextmanager
def many_rows() -> Iterator[None]:
    """Pause the search for cycles while many rows are made: they form none, and it visits each one made."""
    paused = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if paused:
            gc.enable()


def checksum(file: Path) -> str:
    """Return the sha256 of a file's content, in hex."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


@dataclass(frozen=True, slots=True)
class Example:
    """One item: what is asked, what is accepted, and to which family and slice it belongs.

    `documents` names the documents that hold the answer (for recall@k); `passages` names
    those that a prompting put into the messages, best first. `constraints` are the checks
    of a verifiable instruction (see `metrics/follows.py`).
    """

    id: str
    messages: tuple[Message, ...]
    references: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    cluster: str = ""
    slice: str = ""
    documents: tuple[str, ...] = ()
    passages: tuple[str, ...] = ()
    constraints: tuple[Mapping[str, Any], ...] = ()
    rejected: str = ""

    @property
    def prompt(self) -> str:
        """The last user message's text."""
        return next((m["content"] for m in reversed(self.messages) if m["role"] == "user"), "")


class Document(NamedTuple):
    """One text of a knowledge base."""

    id: str
    title: str
    text: str


class Limits(NamedTuple):
    """Limits of a generated answer; `max_new_tokens` in tokens, `stop` as strings."""

    max_new_tokens: int
    stop: tuple[str, ...] = ()


class Encoded(NamedTuple):
    """Token ids of a context and of what follows it; `merged` when a token spans the boundary."""

    context: tuple[int, ...]
    continuation: tuple[int, ...] = ()
    merged: bool = False


class Likelihood(NamedTuple):
    """Log-probability in nats of a continuation given its context; `greedy` when it is the argmax."""

    logprob: float
    greedy: bool


@dataclass(frozen=True, slots=True)
class Output:
    """Answer of a candidate to one prompt.

    `choice_logprobs` (nats) and `choice_bytes` are set where choices were ranked, in the
    order of `Example.choices`; `gold_logprob` and `gold_bytes` where the reference was scored.
    `compute_s` is this item's share of its batch's wall time in seconds.
    """

    text: str
    finish_reason: Literal["stop", "length", "ranked", "error"] = "stop"
    n_prompt_tokens: int = 0
    n_output_tokens: int = 0
    compute_s: float = 0.0
    choice_logprobs: tuple[float, ...] = ()
    choice_bytes: tuple[int, ...] = ()
    gold_logprob: float | None = None
    gold_bytes: int | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class SampleResult:
    """One example answered by one candidate: everything a later comparison needs.

    `parts` maps a metric's name to its per-sample parts, or to None where it could not be
    scored. `margin` is log p(gold) − log p(best other choice) in nats.
    """

    task: str
    split: str
    example_id: str
    position: int
    status: Status
    text: str
    prompt: str
    references: tuple[str, ...]
    parts: dict[str, tuple[float, ...] | None]
    cluster: str = ""
    slice: str = ""
    gold_logprob: float | None = None
    gold_bytes: int | None = None
    margin: float | None = None
    n_prompt_tokens: int = 0
    n_output_tokens: int = 0
    compute_s: float = 0.0
    prompt_digest: str = ""
    output_digest: str = ""
    boundary_merged: bool = False
    finish_reason: str = ""
    passages: tuple[str, ...] = ()
    recall: float | None = None
    attempt: int = 1
    weight: float = 1.0
    error: str = ""


@dataclass(frozen=True, slots=True)
class RowsIdentity:
    """Identity of a set of rows, everything they depend on; its digest names the folder they lie in.

    All but `scoring_digest` says what was asked of whom; that one says how the answers are scored,
    and is empty where the task's own code does both at once.
    """

    weights_digest: str
    template_digest: str
    task: str
    task_version: str
    split: str
    prompting_digest: str
    answer: str
    precision: str
    engine: str
    layout_digest: str
    device_class: str
    scoring_digest: str = ""

    @property
    def digest(self) -> str:
        """The sixteen hex digits that name `runs/rows/<digest>/`."""
        return digest(without_defaults(self))

    @property
    def answers(self) -> "RowsIdentity":
        """The same without its scoring: rows of which this is equal hold the same answers."""
        return replace(self, scoring_digest="")


class Origin(NamedTuple):
    """Origin of a block of rows: the digest of its environment, and the control arm measured beside it.

    Either is empty where it is unknown, or where there was none. `contended` says that other work took the
    processors meanwhile, so that its times are not those of this machine.
    """

    environment: str = ""
    control: str = ""
    contended: bool = False


@dataclass(frozen=True, slots=True)
class ControlBlock:
    """One stored block of a base, asked again: which items came back otherwise, each as task/item.

    `environment` is the digest of the one that the stored rows come from. `reworded` names items
    whose prompts are other tokens now, `differing` those answered or scored otherwise, and
    `flipped` those of them whose score moved by more than a hundredth.
    """

    task: str
    rows: str
    index: int
    n: int
    environment: str
    reworded: tuple[str, ...]
    differing: tuple[str, ...]
    flipped: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Control:
    """One measurement of the control arm: blocks of a base's stored rows, computed anew."""

    id: str
    created: str
    base_digest: str
    precision: str
    environment: str
    blocks: tuple[ControlBlock, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One trial of a sweep: its parameters, its score on validation, and what was logged of its training.

    `validation` is None where training diverged; `chosen` marks the trial that is best on validation.
    """

    params: dict[str, Any]
    validation: float | None
    best_validation_loss: float | None = None
    wall_s: float = 0.0
    loss: Curve = ()
    validation_loss: Curve = ()
    chosen: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Scanned:
    """Matrices of one type by their ratio of signal to noise: how many there are, and are trained.

    `least_trained` and `most_frozen` are the ratios on both sides of the cut; the second is None where all
    are trained.
    """

    type: str
    n: int
    n_trained: int
    least_trained: float
    most_frozen: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRecord:
    """Measured figures of one training, in the order in which reports show them; None where not measured.

    `wall_s` is the time of all that was made here, a sweep's trials included, `init_wall_s` of what it starts
    from, `train_loop_s` of the optimiser steps alone. `n_tokens` leaves padding out. `peak_memory_gib` is the
    largest memory held: of the GPU by tensors, else of the process; `peak_includes` says what else that
    holds. `loss` and the other curves are by optimiser step; a token accuracy is the share of the answers'
    tokens that were the likeliest given those before. Where `label_smoothing` is known, `loss` is smoothed
    by it and `validation_loss` is not. `waited_share` is the share of the time for
    which its threads waited for a processor that other work had. `trainable_share` is `n_trainable` as a
    share of the base's parameters, `size_bytes` what the finished weights take on disk, and `base_size_bytes`
    the base's own. `scan` says by what ratios of signal to noise matrices were chosen to be trained.
    `batch_size` and `accumulated_batches` are those that memory was enough for, where they were searched.
    `not_packed` says why rows were not packed though asked to be. `heldout_accuracy` is the share of the
    `n_heldout` held-out pairs in which the chosen answer is preferred, `heldout_margin` their mean reward
    margin. `reward` is the mean reward of the answers that were drawn, `kl` their divergence from the
    reference in nats a token, `reward_model_accuracy` that of the reward model on its held-out pairs.
    `named_base` is the base that an adapter made elsewhere names. `fit_key` is the folder of the weights,
    `stands_on` maps those of other weights behind them to their digests. `others` are figures that a method
    of one's own logs.
    """

    wall_s: float | None = None
    train_loop_s: float | None = None
    copying_s: float | None = None
    mixing_s: float | None = None
    n_tokens: int | None = None
    tokens_per_s: float | None = None
    n_steps: int | None = None
    n_dropped_too_long: int | None = None
    n_trainable: int | None = None
    trainable_share: float | None = None
    size_bytes: int | None = None
    base_size_bytes: int | None = None
    peak_memory_gib: float | None = None
    peak_includes: str = ""
    waited_share: float | None = None
    loss: Curve = ()
    validation_loss: Curve = ()
    best_validation_loss: float | None = None
    label_smoothing: float | None = None
    learning_rate: Curve = ()
    token_accuracy: Curve = ()
    validation_token_accuracy: Curve = ()
    n_packs: int | None = None
    batch_size: int | None = None
    accumulated_batches: int | None = None
    not_packed: str = ""
    n_pairs: int | None = None
    reward_margin: Curve = ()
    reward_accuracy: Curve = ()
    reward: Curve = ()
    kl: Curve = ()
    reward_model_accuracy: float | None = None
    n_heldout: int | None = None
    heldout_accuracy: Curve = ()
    heldout_margin: Curve = ()
    n_examples: int | None = None
    n_replayed: int | None = None
    named_base: str | None = None
    fit_key: str = ""
    init_wall_s: float | None = None
    stands_on: dict[str, str] = field(default_factory=dict)
    scan: tuple[Scanned, ...] = ()
    sweep: tuple[Trial, ...] = ()
    others: dict[str, Any] = field(default_factory=dict)

    @property
    def total_s(self) -> float:
        """Seconds that the training and what it starts from took; 0 where nothing was trained."""
        return (self.wall_s or 0.0) + (self.init_wall_s or 0.0)

    def stored(self) -> dict[str, Any]:
        """Return the plain form: what is known, with figures of a method's own beside the others."""
        nested: dict[str, tuple[Any, ...]] = {"sweep": self.sweep, "scan": self.scan}
        known = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("others", *nested)}
        known |= {name: [asdict(one) for one in of] for name, of in nested.items() if of}
        return {name: v for name, v in known.items() if v is not None and v not in ("", (), {})} | self.others


def training_record(stored: Mapping[str, Any]) -> TrainingRecord:
    """Read the plain form of a training; figures of other names are kept as `others`.

    Raises:
        ValueError: a figure is of another kind than its name says.
    """
    names = {f.name for f in fields(TrainingRecord)} - {"others"}
    known = {name: value for name, value in stored.items() if name in names}
    others = {name: value for name, value in stored.items() if name not in names}
    try:
        record: TrainingRecord = _reader(TrainingRecord).validate_python({**known, "others": others})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, ("training", *first["loc"])))
        raise ValueError(f"{where}: found {first['input']!r}; expected {first['msg']}") from None
    return record


@dataclass(frozen=True, slots=True)
class MetricRange:
    """Direction and bounds of a metric, which say its unit; a bound is None where there is none."""

    higher_is_better: bool
    low: float | None
    high: float | None

    @property
    def is_rate(self) -> bool:
        """Whether its values are rates in [0, 1]."""
        return self.low is not None and self.high is not None and self.low >= 0 and self.high <= 1

    @property
    def span(self) -> float:
        """The difference that is all of the scale: 1 of rates, infinite where a bound is missing."""
        if self.low is None or self.high is None:
            return inf
        return 1.0 if self.is_rate else self.high - self.low

    @property
    def worst(self) -> float | None:
        """The worst value, as which a failed answer counts; None where a bound is missing."""
        if self.low is None or self.high is None:
            return None
        return self.low if self.higher_is_better else self.high


@dataclass(frozen=True, slots=True)
class Run:
    """One candidate and one seed, trained and evaluated; what `runs/<run_id>/run.json` holds.

    `rows` maps "task/split" to the digest of the row folder. `latency` holds measured figures with
    units in their names. `state` is "done" or "failed". `base_digest` names
    the base as it was published, `served_digest` the one that was served where that is another
    (quantised). `metrics` holds by task and metric what its scores mean, nothing in runs of before 0.1.
    """

    run_id: str
    experiment: str
    candidate: str
    method: str
    prompting: str
    answer: str
    seed: int
    base_model: str
    weights_digest: str
    base_digest: str
    state: Literal["done", "failed"]
    created: str
    rows: dict[str, str]
    recipe: dict[str, Any]
    training: TrainingRecord = field(default_factory=TrainingRecord)
    latency: dict[str, float] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    served_digest: str = ""
    metrics: dict[str, dict[str, MetricRange]] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The candidate, with the seed where it is not 0: `lora (seed 1)`."""
        return f"{self.candidate} (seed {self.seed})" if self.seed else self.candidate

    def stored(self) -> dict[str, Any]:
        """Return the plain form, as `run.json` holds it."""
        return asdict(replace(self, training=TrainingRecord())) | {"training": self.training.stored()}

    def may_be_drawn(self, task: str) -> bool:
        """Tell whether a task's items may have been drawn, by weights that only the report knows.

        Of a run with fewer items the suites may be; the target, which alone is validated on, is not.
        """
        return self.experiment.endswith(FEWER) and f"{task}/validation" not in self.rows


@dataclass(frozen=True, slots=True)
class SamplingRecord:
    """Sampled items of a run of `--sequential`, and the interim analysis at which it was judged.

    `analysis` is `interim analysis 1 of 3`, `alpha` its one-sided level, a share of `of_alpha`, that of the
    gate. By task that was drawn from,
    `weights` holds the inclusion weight of each sampled item by its id, `versions` the version of the whole
    task's rows.
    """

    analysis: str
    alpha: float
    of_alpha: float
    weights: dict[str, dict[str, float]]
    versions: dict[str, str]


def run_record(stored: Mapping[str, Any]) -> Run:
    """Read the plain form of a run.

    Raises:
        ValueError: it is not that of a run.
    """
    plain = {**stored, "training": training_record(stored.get("training", {}))}
    run: Run = _reader(Run).validate_python(plain)
    return run


@dataclass(frozen=True, slots=True)
class Rating:
    """Blind preference of a person between two runs' answers to one item.

    `choice` is "a" or "b" for the answers of `run_a` and `run_b`, "tie" or "skip"; `left` says whose
    answer stood on the left. `rows_a` and `rows_b` name the row sets that hold the answers. `created`
    is a time with its zone, `seconds` how long the item was looked at.
    """

    rating_id: str
    rater: str
    created: str
    task: str
    split: str
    example_id: str
    run_a: str
    run_b: str
    rows_a: str
    rows_b: str
    left: Literal["a", "b"]
    choice: Literal["a", "b", "tie", "skip"]
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class TaskNoise:
    """A/A noise of one task: one model's answers where only the layout of batches differed.

    `flips` counts by arm the items whose primary score moved; `largest_nats` is the largest difference
    of the right answer's log-likelihood, None where none was scored.
    """

    task: str
    n: int
    flips: dict[str, int]
    largest_nats: float | None

    @property
    def rate(self) -> float:
        """The share of items that flipped, over all arms."""
        asked = self.n * len(self.flips)
        return sum(self.flips.values()) / asked if asked else 0.0


@dataclass(frozen=True, slots=True)
class Noise:
    """One measurement of A/A noise: a base asked the same items in several correct layouts."""

    id: str
    created: str
    base_model: str
    base_digest: str
    precision: str
    device: str
    engine: str
    layout_digest: str
    tasks: tuple[TaskNoise, ...]

    @property
    def flips(self) -> int:
        """Items whose score moved, over all tasks and arms."""
        return sum(sum(task.flips.values()) for task in self.tasks)

    @property
    def n(self) -> int:
        """Items that were asked again, over all tasks and arms."""
        return sum(task.n * len(task.flips) for task in self.tasks)
