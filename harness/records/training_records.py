"""Record of one training: measured figures, curves by step, and the trials of its sweep.

Invariant: what was not measured is None or empty, and is not stored.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from pydantic import ValidationError

from harness.records.serialization import NameOrNone, StoredName, reader

Curve = tuple[tuple[float, float | None], ...]  # (step, value); None where the value was not finite


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One trial of a sweep: its parameters, its score on validation, and the logs of its training.

    `validation` is None if training diverged or failed otherwise (see `error`); for a pruned trial it is
    the last score. `chosen` marks the trial that is best on validation. `points` are the scores by step at
    the tracked points that a pruner saw, and `pruned_at` is the step at which it stopped the training.
    `forgetting` is the mean loss of capability on validation items, at most `most_forgetting` in a chosen
    trial. `fit_key` names the folder of the weights. `asked` digests which prompts were sent to which
    weights, and how; empty for a trial that failed or was pruned. `alike` are the parameters of other
    settings with the same prompts, which are not trials of their own.
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
    """Matrices of one type by their signal-to-noise ratio: how many there are, and how many are trained.

    `least_trained` and `most_frozen` are the ratios on both sides of the cut; the second is None if all
    are trained.
    """

    type: str
    n: int
    n_trained: int
    least_trained: float
    most_frozen: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedPoint:
    """Weights at one step of a training: their score on the target's validation rows, and their forgetting.

    `capability` is the mean change against the base over the tasks that count, with its 95 % interval, on
    `n_general` items; None without such tasks.
    """

    step: int
    target: float | None
    capability: float | None = None
    low: float | None = None
    high: float | None = None
    n_general: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRecord:
    """Measured figures of one training, in the order in which reports show them; None if not measured.

    `wall_s` is the time of everything computed here, including a sweep's trials, `init_wall_s` that of the
    training it continues, `train_loop_s` that of the optimiser steps alone. `n_tokens` excludes padding.
    `peak_memory_gib` is the largest memory held: on a GPU by tensors, else by the process; `peak_includes`
    says what else it contains. `loss` and the other curves are by optimiser step; a token accuracy is the
    share of the answers' tokens that were the likeliest given those before. Where `label_smoothing` is known,
    `loss` is smoothed by it and `validation_loss` is not. `waited_share` is the share of the time in which
    its threads waited for a processor that other work used. `trainable_share` is `n_trainable` as a share of
    the base's parameters, `size_bytes` the size of the finished weights on disk, and `base_size_bytes` that
    of the base. `tracked` are the measured points along the training. `scan` says which signal-to-noise
    ratios decided which matrices are trained. In fp16 the gradients of `n_skipped_steps` overflowed; each
    halved `loss_scale` and changed no weight. `n_processes` is the number of processes that shared its steps,
    if more than one. `batch_size` and `accumulated_batches` are per process, as searched for the available
    memory where requested. `not_packed` says why rows were not packed though requested. `heldout_accuracy` is
    the share of the `n_heldout` held-out pairs in which the chosen answer is preferred, `heldout_margin`
    their mean reward margin. `reward` is the mean reward of the sampled answers, None if none had one;
    `equal_rewards` is the share of the prompts whose answers all got the same one, `kl` their divergence from
    the reference in nats per token, `reward_model_accuracy` that of the reward model on its held-out pairs.
    `teacher` is the digest of the weights whose probabilities were learned. `searched_by` names the search
    that proposed the trials in `sweep`. `named_base` is the base named by an adapter made elsewhere.
    `command` made the weights, `command_version` is the version that it reports, `exit_code` its exit code.
    `fit_key` is the folder of the weights; `stands_on` maps the keys of other weights that they depend on to
    their digests. `others` are figures that a user's own method logs.
    """

    wall_s: float | None = None
    train_loop_s: float | None = None
    copying_s: float | None = None
    mixing_s: float | None = None
    n_tokens: int | None = None
    tokens_per_s: float | None = None
    n_steps: int | None = None
    n_skipped_steps: int | None = None
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
    loss_scale: Curve = ()
    token_accuracy: Curve = ()
    validation_token_accuracy: Curve = ()
    n_packs: int | None = None
    n_processes: int | None = None
    batch_size: int | None = None
    accumulated_batches: int | None = None
    not_packed: str = ""
    n_pairs: int | None = None
    reward_margin: Curve = ()
    reward_accuracy: Curve = ()
    reward: Curve = ()
    equal_rewards: Curve = ()
    kl: Curve = ()
    reward_model_accuracy: float | None = None
    teacher: str = ""
    n_heldout: int | None = None
    heldout_accuracy: Curve = ()
    heldout_margin: Curve = ()
    n_examples: int | None = None
    n_replayed: int | None = None
    named_base: str | None = None
    command: str = ""
    command_version: str = ""
    exit_code: int | None = None
    fit_key: NameOrNone = ""
    init_wall_s: float | None = None
    stands_on: dict[StoredName, str] = field(default_factory=dict)
    scan: tuple[MatrixScan, ...] = ()
    sweep: tuple[Trial, ...] = ()
    searched_by: str = ""
    tracked: tuple[TrackedPoint, ...] = ()
    others: dict[str, Any] = field(default_factory=dict)

    @property
    def total_s(self) -> float:
        """Seconds of the training and of the one it continues; 0 if nothing was trained."""
        return (self.wall_s or 0.0) + (self.init_wall_s or 0.0)

    def to_plain(self) -> dict[str, Any]:
        """Return the known figures as stored, with those of a user's own method on the same level."""
        nested: dict[str, tuple[Any, ...]] = {"sweep": self.sweep, "scan": self.scan, "tracked": self.tracked}
        known = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("others", *nested)}
        known |= {name: [asdict(record) for record in records] for name, records in nested.items() if records}
        return {name: v for name, v in known.items() if v is not None and v not in ("", (), {})} | self.others


def read_training_record(stored: Mapping[str, Any]) -> TrainingRecord:
    """Read a training from its plain form; figures with unknown names are kept as `others`.

    Raises:
        ValueError: a figure has the wrong type.
    """
    names = {f.name for f in fields(TrainingRecord)} - {"others"}
    known = {name: value for name, value in stored.items() if name in names}
    others = {name: value for name, value in stored.items() if name not in names}
    try:
        record: TrainingRecord = reader(TrainingRecord).validate_python({**known, "others": others})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, ("training", *first["loc"])))
        raise ValueError(
            f"{where}: found {first['input']!r}; expected {first['msg'].removeprefix('Value error, ')}"
        ) from None
    return record
