"""Bits that the model needs for one byte of the text: lower is better.

Invariant: the aggregate is a ratio of sums, so long texts count by their bytes and the
number does not depend on the tokenizer.
Source: Gao et al. 2020, arXiv:2101.00027, section 3.1.
"""

import math

from harness.metrics import Array, Metric, Parts, ratio
from harness.records import Example, Output
from harness.spec import Task

_RAW_BITS = 8.0

SHORT = "bits/byte"


def metric(task: Task) -> Metric:
    """Build bits per byte of UTF-8; the worst is the text uncompressed, 8 bits a byte."""
    return Metric("bits_per_byte", False, (0.0, math.inf), ("bits", "bytes"), _score, _aggregate, _worst)


def _score(output: Output, example: Example) -> Parts | None:
    if output.gold_logprob is None or not output.gold_bytes:
        return None
    return (-output.gold_logprob / math.log(2), float(output.gold_bytes))


def _aggregate(parts: Array, weights: Array) -> Array:
    sums = weights @ parts  # (…, 2)
    return ratio(sums[..., 0], sums[..., 1])


def _worst(example: Example) -> Parts:
    n_bytes = float(len(example.references[0].encode()))
    return (_RAW_BITS * n_bytes, n_bytes)
