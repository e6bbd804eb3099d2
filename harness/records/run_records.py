"""Record of one run: a candidate and a seed, where its rows are, and what its metrics mean.

Invariant: a run names its rows by digest, so that runs share them.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from math import inf
from typing import Any, Literal

from harness.records.serialization import StoredName, reader
from harness.records.training_records import TrainingRecord, read_training_record

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

    @property
    def worst(self) -> float | None:
        """The worst value, which a failed answer gets; None if a bound is missing."""
        if self.low is None or self.high is None:
            return None
        return self.low if self.higher_is_better else self.high


@dataclass(frozen=True, slots=True)
class Run:
    """One candidate and one seed, trained and evaluated: the content of `runs/<run_id>/run.json`.

    `rows` maps "task/split" to the digest of the row folder. `latency` holds measured figures with units in
    their names. `state` is "done" or "failed". `base_digest` names the published base, `served_digest` the
    served one where it differs (quantised). `metrics` maps task and metric to the meaning of the scores.
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
        return asdict(replace(self, training=TrainingRecord())) | {"training": self.training.to_plain()}

    def may_be_drawn(self, task: str) -> bool:
        """Tell whether a task's items may have been sampled, with weights that only the report knows.

        In a run with fewer items the suites may be; the target, the only task with validation rows, is not.
        """
        return self.experiment.endswith(FEWER) and f"{task}/validation" not in self.rows


@dataclass(frozen=True, slots=True)
class SamplingRecord:
    """Sampled items of a run of `--sequential`, and the interim analysis that judged it.

    `analysis` is for example `interim analysis 1 of 3`; `alpha` is its one-sided level, a share of the gate's
    level `of_alpha`. By sampled task, `weights` holds the inclusion weight of each sampled item by its id,
    `versions` the version of the whole task's rows.
    """

    analysis: str
    alpha: float
    of_alpha: float
    weights: dict[str, dict[str, float]]
    versions: dict[str, str]


def run_record(stored: Mapping[str, Any]) -> Run:
    """Read a run from its plain form.

    Raises:
        ValueError: the plain form is not a run's.
    """
    plain = {**stored, "training": read_training_record(stored.get("training", {}))}
    run: Run = reader(Run).validate_python(plain)
    return run
