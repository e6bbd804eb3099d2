"""Parts of texts that tell them apart: the word in which a series of them differs, and ids in front of them.

Invariant: a frame is a text without one of its words; where at least `FILLED` different texts fill one, that
word is what tells them apart. Texts of more than `_LONGEST` words have no frames. A number is an id where
more than `MOST` different texts begin with the same words up to it and more than half of their numbers
differ, as in `Ticket 4821: ...` or a time stamp. A text of which more than `MOST` others differ in numbers
alone, such as a sum, has none: there the numbers are the question.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from harness.data.boilerplate import MOST, word_numbers

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


_FRONT = 8  # words in which an id stands
_WORD, _NUMBER = re.compile(r"\w+"), re.compile(r"\w*\d\w*")
_BEGINNING = 200  # characters in which those words are looked for

_Front = tuple[str, ...]


def drop_ids(texts: Sequence[str]) -> list[str]:
    """Return the texts, each without the id in front of it and the words before that."""
    fronts = {text: of for text in dict.fromkeys(texts) if (of := _fronts(text))}
    forms = Counter(_form(text) for text in fronts)
    numbers: dict[_Front, list[_Front]] = defaultdict(list)
    for of in fronts.values():
        for front, (given, _) in of.items():
            numbers[front].append(given)
    ids = {front for front, given in numbers.items() if MOST < len(given) < 2 * len(set(given))}
    ends = {
        text: max((end for front, (_, end) in of.items() if front in ids), default=0)
        for text, of in fronts.items()
        if forms[_form(text)] <= MOST
    }
    return [text[ends.get(text, 0) :] for text in texts]


def _fronts(text: str) -> dict[_Front, tuple[_Front, int]]:
    """Map each beginning that ends with a number, its numbers as `#`, to those numbers and where it ends."""
    beginning = text[:_BEGINNING]
    if not any(map(str.isdigit, beginning)):
        return {}
    words = list(islice(_WORD.finditer(beginning), _FRONT + 1))
    shown = ["#" if _is_number(word[0]) else word[0].casefold() for word in words]
    found = {}
    for n, word in enumerate(words[:-1], start=1):  # a word at least is left
        if shown[n - 1] == "#":
            given = tuple(w[0] for w in words[:n] if _is_number(w[0]))
            found[tuple(shown[:n])] = given, word.end()
    return found


def _is_number(word: str) -> bool:
    return any(map(str.isdigit, word))


def _form(text: str) -> str:
    return _NUMBER.sub("#", text.casefold())
