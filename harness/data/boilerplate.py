"""Boilerplate: words that many texts share in one order, and the parts of texts that tell them apart.

Invariant: 8-grams that more than `MOST` different texts have are boilerplate, wherever texts are compared by
their words; of fewer than twenty texts those that more than half have. What is left of a text is what tells
it from the others. A frame is a text without one of its words; where at least `FILLED` different texts fill
one, that word is what tells them apart. Texts of more than `_LONGEST` words have no frames. A number is an id
where more than `MOST` different texts begin with the same words up to it and more than half of their numbers
differ, as in `Ticket 4821: ...` or a time stamp. A text of which more than `MOST` others differ in numbers
alone, such as a sum, has none: there the numbers are the question.
Source: n-grams that stand in more than ten places do not count, as for GPT-3 (Brown et al. 2020,
https://arxiv.org/abs/2005.14165, appendix C).
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from difflib import SequenceMatcher
from functools import lru_cache
from hashlib import blake2b
from itertools import islice, pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

N = 8  # words
MOST = 10  # texts
_FEWEST = 5  # texts, where there are few

_FACTORS = np.random.default_rng(1).integers(1, 2**63, N, dtype=np.uint64) | np.uint64(1)


def word_numbers(words: str) -> NDArray[np.uint64]:
    """Return the words of a folded text as numbers of 64 bits."""
    return np.array([_number(word) for word in words.split()], dtype=np.uint64)


def n_grams(words: str) -> NDArray[np.uint64]:
    """Return the 8-grams of folded words in their order, as numbers of 64 bits."""
    numbers = word_numbers(words)
    if len(numbers) < N:
        return np.zeros(0, dtype=np.uint64)
    runs: NDArray[np.uint64] = np.lib.stride_tricks.sliding_window_view(numbers, N) @ _FACTORS
    return runs


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
            words = text.split()
            covered = np.zeros(len(words), dtype=bool)
            for i in range(N):
                covered[i : i + len(is_shared)] |= is_shared
            left[text] = " ".join(word for word, out in zip(words, ~covered, strict=True) if out)
    return left


@lru_cache(maxsize=1 << 18)
def _number(word: str) -> int:
    return int.from_bytes(blake2b(word.encode(), digest_size=8).digest(), "little")


_BLOCK = 2_000  # rows


class Share(NamedTuple):
    """The places of a row and of an item, and the share of the item's n-grams that the row has, in [0, 1]."""

    row: int
    item: int
    share: float


def largest_shares(
    rows: Sequence[str], items: Sequence[str], *, n: int, least: float, rare_in_rows: bool = False
) -> list[Share]:
    """Find for each row the item of whose n-grams it has the largest share, where that is `least` or more.

    Both are folded words, single spaces between them. N-grams of more than `MOST` items do not count; with
    `rare_in_rows` nor do those of more than `MOST` different rows, as few items need not tell boilerplate.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    grams = CountVectorizer(ngram_range=(n, n), token_pattern=r"\S+", lowercase=False, binary=True)
    try:
        of_items = grams.fit_transform(items)  # (items, n-grams)
    except ValueError:  # no item has so many words
        return []
    telling = of_items.sum(axis=0).A1 <= MOST
    if rare_in_rows:
        telling &= grams.transform(dict.fromkeys(rows)).sum(axis=0).A1 <= MOST
    of_items = of_items[:, telling]
    sizes = of_items.sum(axis=1).A1
    found: list[Share] = []
    for start in range(0, len(rows), _BLOCK):
        shared = (grams.transform(rows[start : start + _BLOCK])[:, telling] @ of_items.T).tocsr()
        shared.sort_indices()  # of equal shares the first item
        for row, (first, last) in enumerate(pairwise(shared.indptr), start=start):
            shares = shared.data[first:last] / sizes[shared.indices[first:last]]
            if len(shares) and shares.max() >= least:
                best = int(shares.argmax())
                found.append(Share(row, int(shared.indices[first + best]), float(shares[best])))
    return found


FILLED = 4  # texts
_LONGEST = 60  # words
_SLIP = 0.75  # likeness of two words of which one may be a slip of the pen
_RNG = np.random.default_rng(2)
_FRAME_FACTORS = _RNG.integers(1, 2**63, _LONGEST, dtype=np.uint64) | np.uint64(1)
_PLACES = _RNG.integers(1, 2**63, _LONGEST, dtype=np.uint64)


def compute_frames(texts: Sequence[str]) -> NDArray[np.uint64]:
    """Return the frames that several texts of folded words fill, as numbers of 64 bits, sorted."""
    frames = [_frames(text) for text in dict.fromkeys(texts)]
    found, count = np.unique(np.concatenate([np.zeros(0, dtype=np.uint64), *frames]), return_counts=True)
    filled: NDArray[np.uint64] = found[count >= FILLED]
    return filled


def differ_in_a_frame(one: str, other: str, filled: NDArray[np.uint64]) -> bool:
    """Return whether two texts have different words in a place that several texts fill."""
    words = list(zip(one.split(), other.split(), strict=False))
    if one.count(" ") != other.count(" ") or len(words) > _LONGEST:
        return False
    # Words that only one of the two has, but for slips of the pen.
    in_one, in_other = ({pair[side] for pair in words} for side in (0, 1))
    places = [
        place
        for place, (a, b) in enumerate(words)
        if a not in in_other
        and b not in in_one
        and SequenceMatcher(None, a, b, autojunk=False).ratio() < _SLIP
    ]
    frames = [of[places] for of in map(_frames, (one, other)) if len(of)] if places else []
    return bool(frames) and bool(np.isin(np.concatenate(frames), filled).any())


def _frames(text: str) -> NDArray[np.uint64]:
    numbers = word_numbers(text)
    n = len(numbers)
    if n > _LONGEST:
        return np.zeros(0, dtype=np.uint64)
    weighed = numbers * _FRAME_FACTORS[:n]
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
