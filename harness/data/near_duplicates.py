"""Near duplicates: texts that share most of their shingles, proposed by MinHash and verified exactly.

Invariant: every similarity that comes back is the exact Jaccard index of two texts' shingles, without the ids
in front of many texts; texts whose digits, signs or English negations differ (10 and 20, `C` and `C++`, two
emoji, possible and impossible) are never alike, nor are those of a series, in which several differ in one
word, nor those that share the boilerplate of many texts and little else. MinHash only proposes pairs: one
just as alike as the threshold is in no common bucket with a chance of at most `OVERLOOKED`, and not verified
with one of at most `_UNVERIFIED`; one more alike with smaller ones. The same texts in the same order give the
same groups.

Time is bounded also where all texts are of one pattern: each is held against `_PROPOSED` candidates, those of
its smallest buckets, and of all texts some `_VERIFIED` pairs are verified, those with the most alike
signatures. Up to 500 texts this leaves out none.
Source: Broder 1997, On the resemblance and containment of documents; bands as in Leskovec, Rajaraman
and Ullman 2020, Mining of Massive Datasets, section 3.4; its use on training rows in Lee et al. 2022,
Deduplicating Training Data Makes Language Models Better, https://arxiv.org/abs/2107.06499
"""

import re
import unicodedata
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, lru_cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.data.boilerplate import compute_frames, differ_in_a_frame, drop_ids, find_telling_words
from harness.records import fold_text

THRESHOLD = 0.7
PERMUTATIONS = 128
# Chances that a pair at the threshold is in no common bucket, and that its signatures agree too little.
OVERLOOKED, _UNVERIFIED = 0.005, 0.001
_SEED = 1
_BLOCK = 20_000  # texts whose shingles are in memory at once
_TELLING = 0.5  # the index of own words from which texts behind boilerplate are verified
_SLIPS = 2  # words that differ in the midst of boilerplate
_PROPOSED, _VERIFIED, _LEAST_VERIFIED = 500, 2_000_000, 10  # candidates of a text; pairs; pairs of a text

# Words in a shingle, and letters in one where neither text has more than `_FEW` words.
_WORDS, _LETTERS, _FEW = 2, 4, 12

# Faces, `!=`, a star alone, and each other sign.
_SIGNS_ALONE = r"(?<!\w)[:;]-?[()]|!=|(?<!\*)\*(?!\*)|[^\w\s*]"
# Numbers with their sign, with a factorial or a unit such as 6' (that no quote opens), ratios and times,
# words with a digit; then signs.
_NUMBER_OR_SIGN = re.compile(
    r"(?<![\w.])-\d\w*|\b(?<!['\"])\d+(?:!(?!=)|['\"](?!\w))"
    rf"|\d+(?::\d+)+|\w*\d\w*|{_SIGNS_ALONE}"
)
# Without numbers, which take long to look for.
_SIGN, _DIGIT = re.compile(_SIGNS_ALONE), re.compile(r"\d")
_NEGATION = re.compile(
    r"\b(?:not|no|never|none|nor|neither|nobody|nothing|nowhere|without|hardly|barely|cannot)\b"
    # n't with an apostrophe, a grave in its place, or without one.
    r"|n['`]t\b"
    r"|\b(?:ca|wo|do|does|did|is|are|was|were|has|have|had|could|should|would)nt\b"
)
_OPPOSITES = ("un", "in", "im", "ir", "il", "dis", "non")  # what makes of a word its opposite
_SIGNS, _SIGN_CATEGORIES = frozenset("#%&/@\\*"), frozenset({"Sm", "Sc", "So"})

_Unit = Literal["words", "letters"]
_WORD = re.compile(r"\w+")


class TextMatch(NamedTuple):
    """The place of a text and the Jaccard index of its shingles with another's, in [0, 1]."""

    row: int
    similarity: float


class DuplicateGroup(NamedTuple):
    """The first of several texts that are alike, and the later ones with their similarity to the first."""

    kept: int
    others: tuple[TextMatch, ...]


class _NormalizedText(NamedTuple):
    """The words of a text in small letters, and its numbers and signs in their order, negations last."""

    words: str
    signs: tuple[str, ...]


class _Index(NamedTuple):
    """Texts by bucket: `buckets` (bands, texts) holds -1 where no other text lies in the bucket.

    `signs` numbers the numbers and signs of each text, equal ones alike. `telling` holds the words beside
    boilerplate of those texts that have some; `whole` says which texts are signed by all of their words.
    `agreeing` is the share of the signatures that agrees in every pair that is verified, `agreeing_whole`
    that of two whole ones.
    """

    texts: list[_NormalizedText]
    signs: NDArray[np.intp]
    telling: dict[str, str]
    buckets: NDArray[np.int64]
    signatures: dict[_Unit, NDArray[np.uint32]]
    whole: NDArray[np.bool_]
    agreeing: float
    agreeing_whole: float


def near_duplicates(
    texts: Sequence[str], *, threshold: float = THRESHOLD, same: Callable[[int, int], bool] | None = None
) -> list[DuplicateGroup]:
    """Group texts around the first of their kind: the others are at least `threshold` alike to it.

    A text joins the group whose first text is most alike, so what is kept of each group stands for
    all of it; with `same` only a group of whose first text it holds, given the places of both. Letter case,
    punctuation, white space and the width of letters do not count; a text without a letter or digit is in
    no group. Takes some 3 KB of memory a text; 200,000 short rows took 34 seconds on one core.
    """
    folded = [_fold(text) for text in drop_ids(texts)]
    index = _index(folded, threshold)
    first: dict[int, list[TextMatch]] = defaultdict(list)
    joined: dict[_NormalizedText, TextMatch] = {}
    members: dict[int, list[int]] = defaultdict(list)
    search = _Search(index, threshold, same)
    for i, text in enumerate(folded):
        if not text.words:
            continue
        found = joined.get(text)
        if not found or (same and not same(i, found.row)):
            found = search.best(i, _candidates(index, members, i))
        joined.setdefault(text, found or TextMatch(i, 1.0))
        if found:
            first[found.row].append(TextMatch(i, found.similarity))
        else:
            for bucket in _own_buckets(index, i):
                members[bucket].append(i)
    return [DuplicateGroup(kept, tuple(others)) for kept, others in sorted(first.items())]


def nearest(
    texts: Sequence[str], reference: Sequence[str], *, threshold: float = THRESHOLD, among: Sequence[str] = ()
) -> list[TextMatch | None]:
    """Give for each text the most alike of `reference` (the first of several), or None below `threshold`.

    What is boilerplate is told by all texts, and by those `among` which they stand.
    """
    if not texts:
        return []
    folded = list(map(_fold, drop_ids([*reference, *texts, *among])))
    known: dict[_NormalizedText, int] = {}
    for i, text in enumerate(folded[: len(reference)]):
        known.setdefault(text, i)
    queries, others = folded[len(reference) :][: len(texts)], folded[len(reference) + len(texts) :]
    distinct = list(dict.fromkeys(text for text in queries if text.words and text not in known))
    index = _index([*known, *distinct], threshold, others)
    members: dict[int, list[int]] = defaultdict(list)
    for j in range(len(known)):
        for bucket in _own_buckets(index, j):
            members[bucket].append(j)
    search, places = _Search(index, threshold), list(known.values())
    found: dict[_NormalizedText, TextMatch | None] = {
        text: TextMatch(i, 1.0) for text, i in known.items() if text.words
    }
    for i, text in enumerate(distinct, start=len(known)):
        best = search.best(i, _candidates(index, members, i))
        found[text] = TextMatch(places[best.row], best.similarity) if best else None
    return [found.get(text) for text in queries]


def are_alike(a: str, b: str, threshold: float = THRESHOLD) -> bool:
    """Return whether two texts are equal, or as alike as near duplicates; two tell no boilerplate."""
    left, right = _fold(a), _fold(b)
    if left.signs != right.signs or _are_opposites(left.words, right.words):
        return a == b
    return a == b or similarity(a, b) >= threshold


def similarity(a: str, b: str) -> float:
    """Return the Jaccard index of two texts' shingles: pairs of words, or four letters of short texts.

    Letters are compared where neither text has more than twelve words.
    """
    return _similarity(fold_words(a), fold_words(b))


def _similarity(left: str, right: str) -> float:
    unit = _unit(left, right)
    return _jaccard(_shingles(left, unit), _shingles(right, unit))


def fold_words(text: str) -> str:
    """Return a text's words in small letters, single spaces between them."""
    return _fold(text).words


@lru_cache(maxsize=1024)
def _fold(text: str) -> _NormalizedText:
    plain = fold_text(text)
    found = (_NUMBER_OR_SIGN if _DIGIT.search(plain) else _SIGN).findall(plain)
    # Punctuation, to which a dash belongs that is in front of no number, does not count.
    marks = [
        mark
        for mark in found
        if len(mark) > 1 or mark.isalnum() or mark in _SIGNS or unicodedata.category(mark) in _SIGN_CATEGORIES
    ]
    marks += ["not"] * len(_NEGATION.findall(plain))
    return _NormalizedText(" ".join(_WORD.findall(plain)), tuple(marks))


class _Search:
    """Looks for the most alike of candidates; the shingles of the last queries are kept."""

    def __init__(
        self, index: _Index, threshold: float, same: Callable[[int, int], bool] | None = None
    ) -> None:
        self._index, self._threshold, self._same = index, threshold, same
        self._shingles = lru_cache(maxsize=1024)(_shingles)
        self._most = max(_LEAST_VERIFIED, _VERIFIED // len(index.texts)) if index.texts else 0

    def best(self, i: int, candidates: Sequence[int]) -> TextMatch | None:
        """Return the first of the most alike candidates, or None where none reaches the threshold."""
        # Without other numbers or signs, and signatures that agree too little; the most alike ones first.
        index, earlier = self._index, np.array(candidates, dtype=np.intp)
        chosen = earlier[index.signs[earlier] == index.signs[i]]
        agreeing = np.zeros(len(chosen))
        for signatures in index.signatures.values() if len(chosen) else ():
            if signatures[i].any():
                agreeing = np.maximum(agreeing, (signatures[chosen] == signatures[i]).mean(axis=1))
        both_whole = index.whole[chosen] & index.whole[i]
        likely = agreeing >= np.where(both_whole, index.agreeing_whole, index.agreeing)
        order = np.argsort(-agreeing[likely], kind="stable")[: self._most]
        best = None
        for j in chosen[likely][order].tolist():
            alike = self._similarity(i, j)
            enough = alike >= self._threshold and (best is None or (alike, -j) > (best.similarity, -best.row))
            if enough and self._tell_the_same(i, j) and (self._same is None or self._same(i, j)):
                best = TextMatch(j, alike)
        return best

    def _similarity(self, i: int, j: int) -> float:
        one, other = self._index.texts[i].words, self._index.texts[j].words
        unit = _unit(one, other)
        return _jaccard(self._shingles(one, unit), self._shingles(other, unit))

    @cached_property
    def _shared_frames(self) -> NDArray[np.uint64]:
        """The frames of all texts, which are looked at once there is a pair to be told apart."""
        return compute_frames([text.words for text in self._index.texts])

    def _tell_the_same(self, i: int, j: int) -> bool:
        """Compare what two texts have beside boilerplate; a slip in the midst of it leaves more in one."""
        texts, telling = (self._index.texts[i].words, self._index.texts[j].words), self._index.telling
        if texts[0] == texts[1]:
            return True
        if _are_opposites(*texts) or differ_in_a_frame(*texts, self._shared_frames):
            return False
        if not any(text in telling for text in texts):
            return True
        own = [(telling.get(text, text), text) for text in texts]
        (less, of_less), (more, _) = sorted(own, key=lambda pair: len(pair[0]))
        if less == more or _similarity(less, more) >= self._threshold:
            return True
        if f" {less} " not in f" {more} ":
            return False
        rest = f" {more} ".replace(f" {less} ", " ", 1).split()
        return sum(word not in of_less.split() for word in rest) <= _SLIPS < len(rest)


def _are_opposites(left: str, right: str) -> bool:
    one, other = set(left.split()), set(right.split())
    return any(
        f"{prefix}{word}" in more
        for less, more in ((one - other, other - one), (other - one, one - other))
        for word in less
        for prefix in _OPPOSITES
    )


def _candidates(index: _Index, members: dict[int, list[int]], i: int) -> list[int]:
    """Return the earlier texts in the buckets of a text, of the smallest buckets where they are many."""
    shared = (members[bucket] for bucket in _own_buckets(index, i) if bucket in members)
    found: set[int] = set()
    for bucket in sorted(shared, key=len):
        found.update(bucket[: _PROPOSED - len(found)])
    return sorted(found)


def _own_buckets(index: _Index, i: int) -> list[int]:
    mine = index.buckets[:, i]
    return list(mine[mine >= 0].tolist())


def _unit(left: str, right: str) -> _Unit:
    return "letters" if max(_n_words(left), _n_words(right)) <= _FEW else "words"


def _n_words(words: str) -> int:
    return words.count(" ") + 1


def _shingles(words: str, unit: _Unit) -> frozenset[tuple[str, ...]]:
    if not words:
        return frozenset()
    parts = list(f" {words} ") if unit == "letters" else words.split(" ")
    size = _LETTERS if unit == "letters" else _WORDS
    shingles = frozenset(zip(*(parts[i:] for i in range(size)), strict=False))
    # A word of one letter has three signs with the blanks around it.
    return shingles or frozenset([tuple(parts)] if unit == "letters" else [])


def _jaccard(left: frozenset[tuple[str, ...]], right: frozenset[tuple[str, ...]]) -> float:
    shared = len(left & right)
    return shared / (len(left) + len(right) - shared) if shared else 0.0


def _index(texts: list[_NormalizedText], threshold: float, among: Sequence[_NormalizedText] = ()) -> _Index:
    """Sign all texts by words, short ones by letters too, and sort them into the buckets of every band."""
    from scipy import stats

    # Texts behind boilerplate are signed by their own words: all of them would be candidates else.
    if not 0 < threshold <= 1:
        raise ValueError(f"a threshold of {threshold}; expected more than 0, at most 1")
    telling = find_telling_words([text.words for text in (*texts, *among)])
    words = [text.words for text in texts]
    for i, text in enumerate(words):
        if own := telling.get(text):  # without those of its words that stand beside the boilerplate
            boilerplate = Counter(text.split()) - Counter(own.split())
            words[i] = " ".join(word for word in own.split() if word not in boilerplate) or own
    takes: dict[_Unit, list[int]] = {
        "words": [i for i, text in enumerate(words) if _n_words(text) >= _WORDS],
        "letters": [i for i, text in enumerate(words) if text and _n_words(text) <= _FEW],
    }
    signatures = {unit: _signatures(words, chosen, unit) for unit, chosen in takes.items()}
    enough = min(threshold, _TELLING) if telling else threshold
    bands = [
        band
        for unit, chosen in takes.items()
        for band in _bands(signatures[unit], np.array(chosen, dtype=np.intp), enough)
    ]
    # A bucket's number is its own among all bands.
    buckets = [np.where(band >= 0, band + i * len(words), -1) for i, band in enumerate(bands)]
    of_bands = np.array(buckets, dtype=np.int64).reshape(len(bands), len(words))
    whole = np.array([own == text.words for own, text in zip(words, texts, strict=True)], dtype=bool)
    numbers = {signs: i for i, signs in enumerate(dict.fromkeys(text.signs for text in texts))}
    signs = np.array([numbers[text.signs] for text in texts], dtype=np.intp)
    # The share of a signature that seldom fewer permutations agree in, of a pair at each threshold.
    agreeing = stats.binom.ppf(_UNVERIFIED, PERMUTATIONS, (enough, threshold)) / PERMUTATIONS
    return _Index(texts, signs, telling, of_bands, signatures, whole, *map(float, agreeing))


def _signatures(words: list[str], chosen: list[int], unit: _Unit) -> NDArray[np.uint32]:
    """Return the MinHash of the chosen texts, (texts, permutations); the other rows are zero."""
    from datasketch import MinHash

    signed = np.zeros((len(words), PERMUTATIONS), dtype=np.uint32)
    for start in range(0, len(chosen), _BLOCK):
        block = chosen[start : start + _BLOCK]
        between = "" if unit == "letters" else " "
        sets = ([between.join(s).encode() for s in _shingles(words[i], unit)] for i in block)
        signed[block] = [
            made.hashvalues
            for made in MinHash.generator(sets, num_perm=PERMUTATIONS, seed=_SEED, hashfunc=zlib.crc32)
        ]
    return signed


def _bands(
    signatures: NDArray[np.uint32], chosen: NDArray[np.intp], threshold: float
) -> Iterator[NDArray[np.int64]]:
    """Yield for every band the bucket of each text, -1 for a text that is alone in it or is not chosen."""
    # The most rows in a band with which a pair at the threshold is seldom overlooked.
    seldom = (n for n in range(1, 9) if (1 - threshold**n) ** (PERMUTATIONS // n) <= OVERLOOKED)
    n_rows = max(seldom, default=1)
    # Two bands that differ may get one number: a candidate more, which is then verified.
    factors = np.random.default_rng(_SEED).integers(1, 2**63, n_rows, dtype=np.uint64) | np.uint64(1)
    for start in range(0, PERMUTATIONS - n_rows + 1, n_rows):
        keys = (signatures[chosen, start : start + n_rows].astype(np.uint64) * factors).sum(axis=1)
        _, bucket, count = np.unique(keys, return_inverse=True, return_counts=True)
        band = np.full(len(signatures), -1, dtype=np.int64)
        band[chosen] = np.where(count[bucket] > 1, bucket, -1)
        yield band
