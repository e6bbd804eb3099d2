"""Share of answers whose last line is one of the references: what stands behind a chain of thought.

Invariant: an answer of one plain line scores as by exact match, so one that reasons and one that does not are
scored alike; equal last lines are one answer to a majority.
Source: Wei et al. 2022, arXiv:2201.11903; Wang et al. 2023, arXiv:2203.11171, for the majority.
"""

import re
from dataclasses import replace

from harness.metrics import Metric, mean_metric, normalize
from harness.records import Example, Output
from harness.spec import Task

_LABEL = re.compile(r"^(?:(?:so|thus|therefore),? )?(?:the )?(?:final )?answer(?: is:?|:)\s*", re.IGNORECASE)
_EMPHASIS = "*_` \t"


def metric(task: Task) -> Metric:
    """Build exact match of last lines in [0, 1]."""
    return replace(mean_metric("final_answer", _matches), same=final_answer)


def _matches(output: Output, example: Example) -> float:
    answer = final_answer(output.text)
    return float(any(answer == final_answer(reference) for reference in example.references))


def final_answer(text: str) -> str:
    """Return the last line that holds anything, without marks of emphasis and words such as `Answer:`."""
    lines = [line.strip().lstrip("#").strip(_EMPHASIS) for line in text.splitlines()]
    last = next((line for line in reversed(lines) if line), "")
    return normalize(_LABEL.sub("", last).strip(_EMPHASIS) or last)
