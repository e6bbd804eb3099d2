"""Record of a grade that a judge gave to one answer.

Invariant: `value` is there where the grade could be read, and only there.
"""

from dataclasses import dataclass
from typing import Literal


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
