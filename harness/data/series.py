"""Series of texts: several that differ in one word, such as questions for one month after the other.

Invariant: a frame is a text without one of its words; where at least `FILLED` different texts fill one, that
word is what tells them apart. Texts of more than `_LONGEST` words have no frames.
"""

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher

import numpy as np
from numpy.typing import NDArray

from harness.data.boilerplate import word_numbers

FILLED = 4  # texts
_LONGEST = 60  # words
_SLIP = 0.75  # likeness of two words of which one may be a slip of the pen
_RNG = np.random.default_rng(2)
_FACTORS = _RNG.integers(1, 2**63, _LONGEST, dtype=np.uint64) | np.uint64(1)
_PLACES = _RNG.integers(1, 2**63, _LONGEST, dtype=np.uint64)


def compute_frames(texts: Sequence[str]) -> NDArray[np.uint64]:
    """Return the frames that several texts of folded words fill, as numbers of 64 bits, sorted."""
    frames = [_frames(text) for text in dict.fromkeys(texts)]
    found, count = np.unique(np.concatenate([np.zeros(0, dtype=np.uint64), *frames]), return_counts=True)
    filled: NDArray[np.uint64] = found[count >= FILLED]
    return filled


def differ_in_a_frame(one: str, other: str, filled: NDArray[np.uint64]) -> bool:
    """Return whether two texts have different words in a place that several texts fill."""
    places = list(_find_other_words(one.split(), other.split()))
    frames = [of[places] for of in map(_frames, (one, other)) if len(of)] if places else []
    return bool(frames) and bool(np.isin(np.concatenate(frames), filled).any())


def _find_other_words(one: Sequence[str], other: Sequence[str]) -> Iterator[int]:
    """Yield the places of words that only one of two texts of one length has, but for slips of the pen."""
    if len(one) != len(other) or len(one) > _LONGEST:
        return
    for place, (a, b) in enumerate(zip(one, other, strict=True)):
        if a not in other and b not in one and SequenceMatcher(None, a, b, autojunk=False).ratio() < _SLIP:
            yield place


def _frames(text: str) -> NDArray[np.uint64]:
    """Number the frames of a text, one for each place of a word."""
    numbers = word_numbers(text)
    n = len(numbers)
    if n > _LONGEST:
        return np.zeros(0, dtype=np.uint64)
    weighed = numbers * _FACTORS[:n]
    frames: NDArray[np.uint64] = weighed.sum() - weighed + _PLACES[:n] * np.uint64(n)
    return frames
