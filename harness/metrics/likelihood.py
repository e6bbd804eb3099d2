"""Metrics of the model's likelihood of the text; lower is better.

Invariant: the aggregate is a ratio of sums, so long texts count by their bytes or tokens.
"""

import math
from functools import partial

import numpy as np

from harness.metrics import Array, Metric, Parts, ratio
from harness.records import Example, Output

_RAW_BITS = 8.0
_N_BYTES = 256
_LARGEST = 700.0  # nats a token, above which a float64 has no exponential


def _divide(parts: Array, weights: Array) -> Array:
    sums = weights @ parts  # (…, 2)
    return ratio(sums[..., 0], sums[..., 1])


def _count_bytes(per_byte: float, example: Example) -> Parts:
    """Return the worst parts of a text: `per_byte` for each byte, and the number of bytes."""
    n_bytes = float(len(example.references[0].encode()))
    return (per_byte * n_bytes, n_bytes)


class BitsPerByte:
    """Bits that the model needs for one byte of the text: lower is better.

    The number does not depend on the tokenizer. The worst is the text uncompressed, 8 bits a byte of UTF-8.
    Source: Gao et al. 2020, arXiv:2101.00027, section 3.1.
    """

    SHORT = "bits/byte"

    @staticmethod
    def _score(output: Output, example: Example) -> Parts | None:
        if output.gold_logprob is None or not output.gold_bytes:
            return None
        return (-output.gold_logprob / math.log(2), float(output.gold_bytes))

    metric = Metric(
        *("bits_per_byte", False, (0.0, math.inf), ("bits", "bytes"), _score, _divide),
        partial(_count_bytes, _RAW_BITS),
    )


class Perplexity:
    """Perplexity of the text: the exponential of its tokens' mean negative log-likelihood; lower is better.

    Only models of one tokenizer can be compared by it; `bits_per_byte` compares any. The worst is a guess
    among all bytes, each byte being a token.
    Source: Jelinek et al. 1977, J. Acoust. Soc. Am. 62, S63; as in transformers' documentation, whole texts.
    """

    @staticmethod
    def _score(output: Output, example: Example) -> Parts | None:
        n_tokens = output.n_prompt_tokens - 1  # the first precedes the text and is not predicted
        if output.gold_logprob is None or not output.gold_bytes or n_tokens < 1:
            return None
        return (-output.gold_logprob, float(n_tokens))

    @staticmethod
    def _aggregate(parts: Array, weights: Array) -> Array:
        return np.asarray(np.exp(np.minimum(_divide(parts, weights), _LARGEST)))

    metric = Metric(
        *("perplexity", False, (1.0, math.inf), ("nats", "tokens"), _score, _aggregate),
        partial(_count_bytes, math.log(_N_BYTES)),
    )


PLUGINS = {"bits_per_byte": BitsPerByte, "perplexity": Perplexity}
