"""Records of the grades that a judge gave, and of the anchors that detect its drift.

Invariant: `value` is set exactly where the grade could be read.
"""

from dataclasses import dataclass
from typing import Literal

from harness.records.sample_results import Example


@dataclass(frozen=True, slots=True)
class Grade:
    """Grade of one answer, with the judge's own words.

    `key` digests what was graded: question, answer, and the reference where the judge sees it. `task`,
    `example_id` and `output_digest` name the answer that was first graded under this key. `value` lies in [0,
    1]. In a pair, `order` says whether this answer was shown `first` or `second`. `said` is the judge's text,
    or for a scored model the probability of each grade. `error` is the reason why the judge gave no answer.
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
    """Answer to an item that a judge grades again before it grades others, to detect drift.

    `key` is that of its grade, `order` the place of the answer in a pair, `passages` the retrieved text where
    the judge sees it.
    """

    key: str
    task: str
    example: Example
    answer: str
    order: Literal["", "first", "second"] = ""
    passages: str = ""


@dataclass(frozen=True, slots=True)
class AnchorCheck:
    """Check of a judge by its anchors: the `grades` that it gives them now, `n_moved` of them different.

    `mean_before` and `mean_now` are the mean grades in [0, 1]. `drifted` says that more moved than this
    judge's own noise explains.
    """

    grades: tuple[Grade, ...]
    n_moved: int
    mean_before: float
    mean_now: float
    drifted: bool
