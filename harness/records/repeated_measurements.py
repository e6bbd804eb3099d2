"""Records of repeated measurements: a judge's grades, control arm, noise, people's ratings and labels."""

from dataclasses import dataclass
from typing import Literal

from harness.records.sample_results import Example
from harness.records.serialization import StoredName


@dataclass(frozen=True, slots=True)
class Grade:
    """Grade of one answer; `value` in [0, 1] is None if it could not be read.

    `key` digests what was graded, `said` is the judge's text or the probability of each grade. `task`,
    `example_id` and `output_digest` name the first answer with this key. `order` is the answer's place in a
    pair.
    """

    key: str
    task: str
    example_id: str
    output_digest: str
    status: Literal["ok", "unparsable", "error"]
    value: float | None
    said: str
    n_prompt_tokens: int = 0
    n_output_tokens: int = 0
    compute_s: float = 0.0
    error: str = ""
    order: Literal["", "first", "second"] = ""


@dataclass(frozen=True, slots=True)
class Anchor:
    """Answer to an item that a judge grades again before it grades others, to detect drift."""

    key: str
    task: str
    example: Example
    answer: str
    order: Literal["", "first", "second"] = ""
    passages: str = ""


@dataclass(frozen=True, slots=True)
class AnchorCheck:
    """Check of a judge by its anchors: grades now, `n_moved` different, means in [0, 1], more than noise."""

    grades: tuple[Grade, ...]
    n_moved: int
    mean_before: float
    mean_now: float
    drifted: bool


@dataclass(frozen=True, slots=True)
class ControlBlock:
    """One stored block of a base, evaluated again, and which of its items changed, each as task/item.

    `environment` is that of the stored rows. `reworded` items have other prompt tokens now, `differing` ones
    another answer or score; the score of `flipped` ones moved by more than a hundredth of the range.
    """

    task: str
    rows: StoredName
    index: int
    n: int
    environment: str
    reworded: tuple[str, ...]
    differing: tuple[str, ...]
    flipped: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Control:
    """One measurement of the control arm: blocks of a base's stored rows, computed again."""

    id: StoredName
    created: str
    base_digest: str
    precision: str
    environment: str
    blocks: tuple[ControlBlock, ...]


@dataclass(frozen=True, slots=True)
class Rating:
    """Blind preference of a person between two runs' answers to one item.

    `choice` is "a" or "b" for the answers of `run_a` and `run_b`; `left` says whose answer was on the left.
    `rows_a` and `rows_b` name the row sets that hold the answers. `seconds` is how long the rater looked.
    """

    rating_id: StoredName
    rater: str
    created: str
    task: str
    split: str
    example_id: str
    run_a: str
    run_b: str
    rows_a: StoredName
    rows_b: StoredName
    left: Literal["a", "b"]
    choice: Literal["a", "b", "tie", "skip"]
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class AnswerLabel:
    """Label of one answer by a person, in the metric's unit; `answer` digests the answer and its item."""

    answer: str
    example_id: str
    label: float


@dataclass(frozen=True, slots=True)
class LabelSet:
    """Labels that a person gave in one session to answers of a task, for one metric, blind to the model.

    `rubric` is the digest of the requirements in the judge's rubric at that time, empty for other metrics.
    """

    id: StoredName
    created: str
    task: str
    split: str
    metric: str
    rater: str
    labels: tuple[AnswerLabel, ...]
    rubric: str = ""


@dataclass(frozen=True, slots=True)
class TaskNoise:
    """A/A noise of one task: one model's answers in runs that differ only in the layout of batches.

    `flips` counts by arm the items whose primary score moved; `largest_nats` is the largest difference of the
    right answer's log-likelihood.
    """

    task: str
    n: int
    flips: dict[str, int]
    largest_nats: float | None

    @property
    def rate(self) -> float:
        """The share of items that flipped, over all arms."""
        repeated = self.n * len(self.flips)
        return sum(self.flips.values()) / repeated if repeated else 0.0


@dataclass(frozen=True, slots=True)
class Noise:
    """One measurement of A/A noise: a base evaluated on the same items in several correct layouts."""

    id: StoredName
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
        """The number of items whose score moved, over all tasks and arms."""
        return sum(sum(task.flips.values()) for task in self.tasks)

    @property
    def n(self) -> int:
        """The number of items that were evaluated again, over all tasks and arms."""
        return sum(task.n * len(task.flips) for task in self.tasks)
