"""Near duplicates: texts that share most of their shingles, proposed by MinHash and verified exactly.

Invariant: every similarity is the exact Jaccard index of two texts' shingles. Texts are never alike if their
digits, signs or negations differ (10 and 20, `C` and `C++`, works and does not work), if they are in a
series (`_FILLED` texts that differ in one word, of at most `_LONGEST` words), or if they share only
boilerplate: 8-grams in more than `MOST` texts, or in more than half of fewer than twenty texts. The chance
that a pair at the threshold is not proposed is at most `OVERLOOKED`, and that it is not verified at most
`_UNVERIFIED`; up to 500 texts nothing is left out. The same texts in the same order give the same groups.

Source: Broder 1997, On the resemblance and containment of documents; bands as in Leskovec, Rajaraman and
Ullman 2020, Mining of Massive Datasets, section 3.4; Lee et al. 2022, Deduplicating Training Data Makes
Language Models Better, https://arxiv.org/abs/2107.06499; n-grams in more than ten places do not count, as for
GPT-3 (Brown et al. 2020, https://arxiv.org/abs/2005.14165, appendix C)
"""

import re
import unicodedata
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from difflib import SequenceMatcher
from functools import cached_property, lru_cache
from hashlib import blake2b
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.records import count_negations, fold_text

THRESHOLD = 0.7
PERMUTATIONS = 128
# Chances that a pair at the threshold is in no common bucket, and that its signatures differ too much.
OVERLOOKED, _UNVERIFIED = 0.005, 0.001
_SEED = 1
_BLOCK = 20_000  # texts whose shingles are in memory at once
_OWN = 0.5  # index of own words from which texts with boilerplate are verified
_PROPOSED, _VERIFIED, _LEAST_VERIFIED = 500, 2_000_000, 10  # candidates of a text; pairs; pairs of a text

# Words in a shingle, and letters in one if neither text has more than `_FEW` words.
_WORDS, _LETTERS, _FEW = 2, 4, 12

# Faces, `!=`, a star alone, and each other sign.
_SIGNS_ALONE = r"(?<!\w)[:;]-?[()]|!=|(?<!\*)\*(?!\*)|[^\w\s*]"
# Numbers with their sign, with a factorial or a unit such as 6' (that no quote opens), ratios and times,
# words with a digit; then signs.
_NUMBER_OR_SIGN = re.compile(
    r"(?<![\w.])-\d\w*|\b(?<!['\"])\d+(?:!(?!=)|['\"](?!\w))"
    rf"|\d+(?::\d+)+|\w*\d\w*|{_SIGNS_ALONE}"
)
# Without numbers, which are slow to find.
_SIGN, _DIGIT = re.compile(_SIGNS_ALONE), re.compile(r"\d")
_OPPOSITES = ("un", "in", "im", "ir", "il", "dis", "non")  # prefixes
_SIGNS, _SIGN_CATEGORIES = frozenset("#%&/@\\*"), frozenset({"Sm", "Sc", "So"})

_Unit = Literal["words", "letters"]
_WORD = re.compile(r"\w+")


class TextMatch(NamedTuple):
    """The index of a text and the Jaccard index of its shingles with another's, in [0, 1]."""

    row: int
    similarity: float


class DuplicateGroup(NamedTuple):
    """The first of several similar texts, and the later ones with their similarity to it."""

    kept: int
    others: tuple[TextMatch, ...]


class _NormalizedText(NamedTuple):
    """The words of a text in lower case, and its numbers and signs in order, negations last."""

    words: str
    signs: tuple[str, ...]


def near_duplicates(
    texts: Sequence[str], *, threshold: float = THRESHOLD, same: Callable[[int, int], bool] | None = None
) -> list[DuplicateGroup]:
    """Group texts around the first of their kind: the others are at least `threshold` similar to it.

    A text joins the group with the most similar first text, with `same` only if it holds for their
    indices. Letter case, punctuation, white space and the width of letters do not count; a text without a
    letter or digit is in no group.
    """
    folded = list(map(_fold, texts))
    index = _Index(folded, threshold, same=same)
    groups: dict[int, list[TextMatch]] = defaultdict(list)
    match_by_text: dict[_NormalizedText, TextMatch] = {}
    for i, text in enumerate(folded):
        if not text.words:
            continue
        match = match_by_text.get(text)
        if not match or (same and not same(i, match.row)):
            match = index.find(i)
        match_by_text.setdefault(text, match or TextMatch(i, 1.0))
        if match:
            groups[match.row].append(TextMatch(i, match.similarity))
        else:
            index.add(i)
    return [DuplicateGroup(first_row, tuple(matches)) for first_row, matches in sorted(groups.items())]


def nearest(
    texts: Sequence[str], reference: Sequence[str], *, threshold: float = THRESHOLD, among: Sequence[str] = ()
) -> list[TextMatch | None]:
    """Return for each text the most similar of `reference` (the first) or None below `threshold`."""
    if not texts:
        return []
    folded = list(map(_fold, [*reference, *texts, *among]))
    by_text: dict[_NormalizedText, int] = {}
    for i, text in enumerate(folded[: len(reference)]):
        by_text.setdefault(text, i)
    queries, other_texts = folded[len(reference) :][: len(texts)], folded[len(reference) + len(texts) :]
    distinct_texts = list(dict.fromkeys(text for text in queries if text.words and text not in by_text))
    index, indices = _Index([*by_text, *distinct_texts], threshold, other_texts), list(by_text.values())
    for j in range(len(by_text)):
        index.add(j)
    equal_texts = ((text, i) for text, i in by_text.items() if text.words)
    matches: dict[_NormalizedText, TextMatch | None] = {text: TextMatch(i, 1.0) for text, i in equal_texts}
    for i, text in enumerate(distinct_texts, start=len(by_text)):
        match = index.find(i)
        matches[text] = TextMatch(indices[match.row], match.similarity) if match else None
    return [matches.get(text) for text in queries]


def are_alike(a: str, b: str, threshold: float = THRESHOLD) -> bool:
    """Return whether two texts are equal or near duplicates; boilerplate is not considered."""
    left, right = _fold(a), _fold(b)
    if left.signs != right.signs or _are_opposites(left.words, right.words):
        return a == b
    return a == b or similarity(a, b) >= threshold


def similarity(a: str, b: str) -> float:
    """Return the Jaccard index of two texts' shingles: pairs of words, or four letters if both are short."""
    return _similarity(fold_words(a), fold_words(b))


def _similarity(left: str, right: str) -> float:
    unit: _Unit = "letters" if max(_n_words(left), _n_words(right)) <= _FEW else "words"
    left_shingles, right_shingles = _shingles(left, unit), _shingles(right, unit)
    n_shared = len(left_shingles & right_shingles)
    return n_shared / (len(left_shingles) + len(right_shingles) - n_shared) if n_shared else 0.0


def fold_words(text: str) -> str:
    """Return a text's words in lower case, with single spaces."""
    return _fold(text).words


@lru_cache(maxsize=1024)
def _fold(text: str) -> _NormalizedText:
    plain = fold_text(text)
    signs = (_NUMBER_OR_SIGN if _DIGIT.search(plain) else _SIGN).findall(plain)
    # Punctuation does not count, nor does a dash without a number after it.
    marks = [
        mark
        for mark in signs
        if len(mark) > 1 or mark.isalnum() or mark in _SIGNS or unicodedata.category(mark) in _SIGN_CATEGORIES
    ]
    marks += ["not"] * count_negations(plain)
    return _NormalizedText(" ".join(_WORD.findall(plain)), tuple(marks))


class _Index:
    """Signed texts in buckets, with a search for the most similar earlier one.

    `buckets` (bands, texts) holds -1 for a text alone in its bucket. `signs` numbers each text's numbers and
    signs. `own_words` holds the words besides boilerplate of texts with both; `whole` tells which texts are
    signed by all their words.
    """

    def __init__(
        self,
        texts: list[_NormalizedText],
        threshold: float,
        among: Sequence[_NormalizedText] = (),
        same: Callable[[int, int], bool] | None = None,
    ) -> None:
        from scipy import stats

        if not 0 < threshold <= 1:
            raise ValueError(f"a threshold of {threshold}; expected more than 0, at most 1")
        self.texts, self.threshold, self.same = texts, threshold, same
        self.most = max(_LEAST_VERIFIED, _VERIFIED // max(1, len(texts)))
        self.members: dict[int, list[int]] = defaultdict(list)
        # Texts with boilerplate are signed by their own words, or all of them would be candidates.
        self.own_words = _find_own_words([text.words for text in (*texts, *among)])
        words = [text.words for text in texts]
        for i, text in enumerate(words):
            if rest := self.own_words.get(text):  # without words that are in the boilerplate as well
                boilerplate = Counter(text.split()) - Counter(rest.split())
                words[i] = " ".join(word for word in rest.split() if word not in boilerplate) or rest
        chosen_by_unit: dict[_Unit, list[int]] = {
            "words": [i for i, text in enumerate(words) if _n_words(text) >= _WORDS],
            "letters": [i for i, text in enumerate(words) if text and _n_words(text) <= _FEW],
        }
        self.signatures = {unit: _signatures(words, chosen, unit) for unit, chosen in chosen_by_unit.items()}
        low_threshold = min(threshold, _OWN) if self.own_words else threshold
        bands = [
            band
            for unit, chosen in chosen_by_unit.items()
            for band in _bands(self.signatures[unit], np.array(chosen, dtype=np.intp), low_threshold)
        ]
        # Bucket numbers are unique among all bands.
        buckets = [np.where(band >= 0, band + i * len(words), -1) for i, band in enumerate(bands)]
        self.buckets = np.array(buckets, dtype=np.int64).reshape(len(bands), len(words))
        self.whole = np.array([w == text.words for w, text in zip(words, texts, strict=True)], dtype=bool)
        numbers = {signs: i for i, signs in enumerate(dict.fromkeys(text.signs for text in texts))}
        self.signs = np.array([numbers[text.signs] for text in texts], dtype=np.intp)
        # Share of permutations that a pair at each threshold rarely falls below.
        shares = stats.binom.ppf(_UNVERIFIED, PERMUTATIONS, (low_threshold, threshold)) / PERMUTATIONS
        self.agreeing, self.agreeing_whole = map(float, shares)

    def add(self, i: int) -> None:
        for bucket in self.buckets[:, i].tolist():
            if bucket >= 0:
                self.members[bucket].append(i)

    def find(self, i: int) -> TextMatch | None:
        buckets = (self.members[b] for b in self.buckets[:, i].tolist() if b >= 0 and b in self.members)
        candidates: set[int] = set()
        for bucket in sorted(buckets, key=len):
            candidates.update(bucket[: _PROPOSED - len(candidates)])
        # Only candidates with equal signs and similar signatures, the most similar first.
        earlier_texts = np.array(sorted(candidates), dtype=np.intp)
        chosen = earlier_texts[self.signs[earlier_texts] == self.signs[i]]
        agreement = np.zeros(len(chosen))
        for signatures in self.signatures.values() if len(chosen) else ():
            if signatures[i].any():
                agreement = np.maximum(agreement, (signatures[chosen] == signatures[i]).mean(axis=1))
        both_whole = self.whole[chosen] & self.whole[i]
        is_likely = agreement >= np.where(both_whole, self.agreeing_whole, self.agreeing)
        order = np.argsort(-agreement[is_likely], kind="stable")[: self.most]
        best = None
        for j in chosen[is_likely][order].tolist():
            score = _similarity(self.texts[i].words, self.texts[j].words)
            is_best = score >= self.threshold and (best is None or (score, -j) > (best.similarity, -best.row))
            if is_best and self._have_same_words(i, j) and (self.same is None or self.same(i, j)):
                best = TextMatch(j, score)
        return best

    @cached_property
    def _filled_frames(self) -> NDArray[np.uint64]:
        """The frames that several texts fill, sorted."""
        frames = [_frames(words) for words in dict.fromkeys(text.words for text in self.texts)]
        codes, counts = np.unique(np.concatenate([np.zeros(0, dtype=np.uint64), *frames]), return_counts=True)
        filled: NDArray[np.uint64] = codes[counts >= _FILLED]
        return filled

    def _have_same_words(self, i: int, j: int) -> bool:
        """Compare two texts without their boilerplate."""
        texts = self.texts[i].words, self.texts[j].words
        if texts[0] == texts[1]:
            return True
        if _are_opposites(*texts) or _differ_in_a_frame(*texts, self._filled_frames):
            return False
        if not any(text in self.own_words for text in texts):
            return True
        left, right = (self.own_words.get(text, text) for text in texts)
        return left == right or _similarity(left, right) >= self.threshold


def _are_opposites(left: str, right: str) -> bool:
    words, other_words = set(left.split()), set(right.split())
    sides = ((words - other_words, other_words - words), (other_words - words, words - other_words))
    return any(f"{prefix}{word}" in more for less, more in sides for word in less for prefix in _OPPOSITES)


def _n_words(words: str) -> int:
    return words.count(" ") + 1


@lru_cache(maxsize=1024)
def _shingles(words: str, unit: _Unit) -> frozenset[tuple[str, ...]]:
    if not words:
        return frozenset()
    parts = list(f" {words} ") if unit == "letters" else words.split(" ")
    size = _LETTERS if unit == "letters" else _WORDS
    shingles = frozenset(zip(*(parts[i:] for i in range(size)), strict=False))
    # A word of one letter has three signs with the blanks around it.
    return shingles or frozenset([tuple(parts)] if unit == "letters" else [])


def _signatures(words: list[str], chosen: list[int], unit: _Unit) -> NDArray[np.uint32]:
    """Return the MinHash of the chosen texts, (texts, permutations); the other rows are zero."""
    from datasketch import MinHash

    signatures = np.zeros((len(words), PERMUTATIONS), dtype=np.uint32)
    for start in range(0, len(chosen), _BLOCK):
        block = chosen[start : start + _BLOCK]
        separator = "" if unit == "letters" else " "
        sets = ([separator.join(s).encode() for s in _shingles(words[i], unit)] for i in block)
        hashes = MinHash.generator(sets, num_perm=PERMUTATIONS, seed=_SEED, hashfunc=zlib.crc32)
        signatures[block] = [minhash.hashvalues for minhash in hashes]
    return signatures


def _bands(
    signatures: NDArray[np.uint32], chosen: NDArray[np.intp], threshold: float
) -> Iterator[NDArray[np.int64]]:
    """Yield for every band the bucket of each text, -1 for a text that is alone in it or is not chosen."""
    # The largest number of rows in a band at which a pair at the threshold is rarely overlooked.
    sizes = (n for n in range(1, 9) if (1 - threshold**n) ** (PERMUTATIONS // n) <= OVERLOOKED)
    n_rows = max(sizes, default=1)
    factors = np.random.default_rng(_SEED).integers(1, 2**63, n_rows, dtype=np.uint64) | np.uint64(1)
    for start in range(0, PERMUTATIONS - n_rows + 1, n_rows):
        keys = (signatures[chosen, start : start + n_rows].astype(np.uint64) * factors).sum(axis=1)
        _, bucket, counts = np.unique(keys, return_inverse=True, return_counts=True)
        band = np.full(len(signatures), -1, dtype=np.int64)
        band[chosen] = np.where(counts[bucket] > 1, bucket, -1)
        yield band


N = 8  # words
MOST = 10  # texts
_FEWEST = 5  # texts, where there are few

_FACTORS = np.random.default_rng(1).integers(1, 2**63, N, dtype=np.uint64) | np.uint64(1)


def _word_numbers(words: str) -> NDArray[np.uint64]:
    return np.array([_number(word) for word in words.split()], dtype=np.uint64)


def _find_own_words(texts: Sequence[str]) -> dict[str, str]:
    """Return for each text with boilerplate its other words; `texts` are folded words."""
    grams: dict[str, NDArray[np.uint64]] = {}  # 8-grams of each text in order, as numbers
    for text in dict.fromkeys(texts):
        numbers = _word_numbers(text)
        is_long = len(numbers) >= N
        windows = np.lib.stride_tricks.sliding_window_view(numbers, N) if is_long else None
        grams[text] = numbers[:0] if windows is None else windows @ _FACTORS
    all_grams = np.concatenate([np.zeros(0, dtype=np.uint64), *map(np.unique, grams.values())])
    distinct_grams, counts = np.unique(all_grams, return_counts=True)
    shared_grams = distinct_grams[counts > min(MOST, max(_FEWEST, len(grams) // 2))]
    if not len(shared_grams):
        return {}
    own_words = {}
    for text, text_grams in grams.items():
        positions = np.minimum(np.searchsorted(shared_grams, text_grams), len(shared_grams) - 1)
        if (is_shared := shared_grams[positions] == text_grams).any():
            words = text.split()
            covered = np.zeros(len(words), dtype=bool)
            for i in range(N):
                covered[i : i + len(is_shared)] |= is_shared
            own_words[text] = " ".join(word for word, is_own in zip(words, ~covered, strict=True) if is_own)
    return own_words


@lru_cache(maxsize=1 << 18)
def _number(word: str) -> int:
    return int.from_bytes(blake2b(word.encode(), digest_size=8).digest(), "little")


_FILLED = 4  # texts
_LONGEST = 60  # words
_TYPO = 0.75  # similarity of two words from which one may be a typo of the other
_RNG = np.random.default_rng(2)
_FRAME_FACTORS = _RNG.integers(1, 2**63, _LONGEST, dtype=np.uint64) | np.uint64(1)
_PLACES = _RNG.integers(1, 2**63, _LONGEST, dtype=np.uint64)


def _differ_in_a_frame(text: str, other: str, filled: NDArray[np.uint64]) -> bool:
    """Return whether two texts have different words in a place that several texts fill."""
    words = list(zip(text.split(), other.split(), strict=False))
    if text.count(" ") != other.count(" ") or len(words) > _LONGEST:
        return False
    # Words that only one of the two has, without typos.
    left, right = ({pair[side] for pair in words} for side in (0, 1))
    places = [
        place
        for place, (a, b) in enumerate(words)
        if a not in right and b not in left and SequenceMatcher(None, a, b, autojunk=False).ratio() < _TYPO
    ]
    frames = [keys[places] for keys in map(_frames, (text, other)) if len(keys)] if places else []
    return bool(frames) and bool(np.isin(np.concatenate(frames), filled).any())


def _frames(text: str) -> NDArray[np.uint64]:
    numbers = _word_numbers(text)
    n = len(numbers)
    if n > _LONGEST:
        return np.zeros(0, dtype=np.uint64)
    weighed = numbers * _FRAME_FACTORS[:n]
    frames: NDArray[np.uint64] = weighed.sum() - weighed + _PLACES[:n] * np.uint64(n)
    return frames
