"""Share of answers that keep the instructions of IFEval which the beginning of an answer can show.

Invariant: a check reads the answer alone; an empty answer keeps nothing.
Source: the kinds of instruction are those of Zhou et al. 2023, arXiv:2311.07911; these checks are our own,
and judge an answer that is cut off by what there is of it.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from harness.metrics import Metric, mean_metric
from harness.records import Example, Output
from harness.spec import Task


def metric(task: Task) -> Metric:
    """Build the share of answers in [0, 1] that keep all their instructions."""
    return mean_metric("ifeval_like", _score)


def _score(output: Output, example: Example) -> float | None:
    text = output.text.strip()
    return float(bool(text) and all(CHECKS[c["kind"]](text, c) for c in example.constraints))


def _holds(text: str, word: str) -> bool:
    return re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) is not None


CHECKS: dict[str, Callable[[str, Mapping[str, Any]], bool]] = {
    "punctuation:no_comma": lambda text, c: "," not in text,
    "change_case:english_lowercase": lambda text, c: text == text.lower() != text.upper(),
    "change_case:english_capital": lambda text, c: text == text.upper() != text.lower(),
    "keywords:forbidden_words": lambda text, c: not any(_holds(text, word) for word in c["forbidden_words"]),
    "startend:quotation": lambda text, c: text.startswith('"'),
    "detectable_format:title": lambda text, c: re.search(r"<<[^\n<>]+>>", text) is not None,
    "detectable_format:constrained_response": lambda text, c: (
        sum(_holds(text, f"my answer is {said}") for said in ("yes", "no", "maybe")) == 1
    ),
}
