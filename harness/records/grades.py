"""Records of grades that a judge gave, and of the anchors by which its drift is found.

Invariant: `value` is there where the grade could be read, and only there.
"""

from dataclasses import dataclass
from typing import Literal

from harness.records.sample_results import Example


@dataclass(frozen=True, slots=True)
class Grade:
    """Grade of one answer, with what the judge said in its own words.

    `key` digests what was graded: question, answer, and the reference where the judge sees it. `task`,
    `example_id` and `output_digest` name the answer that it was first asked for. `value` lies in [0, 1].
    Of a pair `order` says whether this answer was shown `first` or `second`.
    `said` is the judge's text, or of a model that was scored the probability of each grade. `error` is the
    reason where it could not be asked.
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
    """Answer to an item of a task that a judge is asked about again before it grades others.

    `key` is that of its grade, `order` the place of the answer in a pair, `passages` what was retrieved for
    it where the judge is shown that.
    """

    key: str
    task: str
    example: Example
    answer: str
    order: Literal["", "first", "second"] = ""
    passages: str = ""


@dataclass(frozen=True, slots=True)
class AnchorCheck:
    """Check of a judge by its anchors: the `grades` that it gives them now, `n_moved` of them otherwise.

    `mean_before` and `mean_now` are the mean grades in [0, 1]. `drifted` says that more moved than this judge
    moves by itself.
    """

    grades: tuple[Grade, ...]
    n_moved: int
    mean_before: float
    mean_now: float
    drifted: bool
