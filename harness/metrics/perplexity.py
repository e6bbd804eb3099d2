"""Perplexity of the text: the exponential of the mean negative log-likelihood of its tokens; lower is better.

Invariant: the aggregate is that of all tokens together, so long texts count by their tokens. Only models of
one tokenizer can be compared by it; `bits_per_byte` compares any.
Source: Jelinek et al. 1977, J. Acoust. Soc. Am. 62, S63; as in transformers' documentation, whole texts.
"""

import math

import numpy as np

from harness.metrics import Array, Metric, Parts, ratio
from harness.records import Example, Output
from harness.spec import Task

_N_BYTES = 256
_LARGEST = 700.0  # nats a token, above which a float64 has no exponential


def metric(task: Task) -> Metric:
    """Build the perplexity of whole texts; the worst is a guess among all bytes, each byte being a token."""
    return Metric("perplexity", False, (1.0, math.inf), ("nats", "tokens"), _score, _aggregate, _worst)


def _score(output: Output, example: Example) -> Parts | None:
    n_tokens = output.n_prompt_tokens - 1  # the first precedes the text and is not predicted
    if output.gold_logprob is None or not output.gold_bytes or n_tokens < 1:
        return None
    return (-output.gold_logprob, float(n_tokens))


def _aggregate(parts: Array, weights: Array) -> Array:
    sums = weights @ parts  # (…, 2)
    return np.asarray(np.exp(np.minimum(ratio(sums[..., 0], sums[..., 1]), _LARGEST)))


def _worst(example: Example) -> Parts:
    n_bytes = float(len(example.references[0].encode()))
    return (n_bytes * math.log(_N_BYTES), n_bytes)
