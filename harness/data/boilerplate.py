"""Boilerplate: words that many texts share in one order, such as an instruction in front of every row.

Invariant: 8-grams that more than `MOST` different texts have are boilerplate, wherever texts are compared by
their words; of fewer than twenty texts those that more than half have. What is left of a text is what tells
it from the others.
Source: n-grams that stand in more than ten places do not count, as for GPT-3 (Brown et al. 2020,
https://arxiv.org/abs/2005.14165, appendix C).
"""

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

N = 8  # words
MOST = 10  # texts
_FEWEST = 5  # texts, where there are few

_FACTORS = np.random.default_rng(1).integers(1, 2**63, N, dtype=np.uint64) | np.uint64(1)


def word_numbers(words: str) -> NDArray[np.uint64]:
    """Return the words of a folded text as numbers of 64 bits."""
    return np.array([_number(word) for word in words.split()], dtype=np.uint64)


def n_grams(words: str, n: int = N) -> NDArray[np.uint64]:
    """Return the n-grams of folded words in their order, as numbers of 64 bits; `n` is at most 8."""
    numbers = word_numbers(words)
    if len(numbers) < n:
        return np.zeros(0, dtype=np.uint64)
    size = len(numbers) - n + 1
    grams: NDArray[np.uint64] = numbers[:size] * _FACTORS[0]
    for i in range(1, n):
        grams += numbers[i : i + size] * _FACTORS[i]
    return grams


def find_telling_words(texts: Sequence[str]) -> dict[str, str]:
    """Return for each text that holds boilerplate its other words; `texts` are folded words."""
    grams = {text: n_grams(text) for text in dict.fromkeys(texts)}
    of_all = np.concatenate([np.zeros(0, dtype=np.uint64), *map(np.unique, grams.values())])
    found, count = np.unique(of_all, return_counts=True)
    shared = found[count > min(MOST, max(_FEWEST, len(grams) // 2))]
    if not len(shared):
        return {}
    left = {}
    for text, own in grams.items():
        at = np.minimum(np.searchsorted(shared, own), len(shared) - 1)
        if (is_shared := shared[at] == own).any():
            left[text] = _outside(text.split(), is_shared)
    return left


def _outside(words: list[str], is_shared: NDArray[np.bool_]) -> str:
    """Join the words that no shared 8-gram covers."""
    covered = np.zeros(len(words), dtype=bool)
    for i in range(N):
        covered[i : i + len(is_shared)] |= is_shared
    return " ".join(word for word, out in zip(words, ~covered, strict=True) if out)


@lru_cache(maxsize=1 << 18)
def _number(word: str) -> int:
    return int.from_bytes(blake2b(word.encode(), digest_size=8).digest(), "little")
