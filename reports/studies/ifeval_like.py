"""Share of answers that follow those instructions of IFEval that can be checked on an answer's beginning.

Invariant: a check reads only the answer; an empty answer follows nothing.
Source: the kinds of instruction are those of Zhou et al. 2023, arXiv:2311.07911; the checks are our own, and
judge a truncated answer by its text so far.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from harness.metrics import Metric, mean_metric
from harness.records import Example, Output
from harness.spec import Task


def metric(task: Task) -> Metric:
    """Return the metric: the share of answers in [0, 1] that follow all their instructions."""
    return mean_metric("ifeval_like", _score)


def _score(output: Output, example: Example) -> float | None:
    text = output.text.strip()
    return float(bool(text) and all(CHECKS[c["kind"]](text, c) for c in example.constraints))


def _contains(text: str, word: str) -> bool:
    return re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) is not None


CHECKS: dict[str, Callable[[str, Mapping[str, Any]], bool]] = {
    "punctuation:no_comma": lambda text, c: "," not in text,
    "change_case:english_lowercase": lambda text, c: text == text.lower() != text.upper(),
    "change_case:english_capital": lambda text, c: text == text.upper() != text.lower(),
    "keywords:forbidden_words": lambda text, c: not any(_contains(text, word) for word in c["forbidden_words"]),
    "startend:quotation": lambda text, c: text.startswith('"'),
    "detectable_format:title": lambda text, c: re.search(r"<<[^\n<>]+>>", text) is not None,
    "detectable_format:constrained_response": lambda text, c: (
        sum(_contains(text, f"my answer is {reply}") for reply in ("yes", "no", "maybe")) == 1
    ),
}
