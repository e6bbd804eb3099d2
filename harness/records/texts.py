"""Texts of all scripts: the only normalisation by which texts are compared, and their words.

Invariant: each function is idempotent. Accents, digits of other scripts, superscripts and fractions (x² is
not x2), symbols, inner punctuation and spelling stay as they are.
Source: caseless matching of the Unicode Standard, section 3.13, D145; Unicode Standard Annexes 15 (NFC) and
44 (Default_Ignorable_Code_Point, without the tags that tell flags apart); bigrams of Han and kana as in
Lucene's CJKBigramFilter. Of several lengths of n-grams these found the right one of 240 paragraphs most
often, by BM25 on XQuAD's 1,190 questions: two letters in Chinese (92 %), three in Thai (93 %)
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0100-\U000e01ef]+"
)
_OTHER_WIDTHS = re.compile("[\uff01-\uff5e\uff61-\uffdc\uffe0-\uffe2\uffe4-\uffee]+")
_TYPEWRITTEN = {
    "'": "\u2018\u2019\u201a\u201b\u2032\u2035\u2039\u203a\u02b9\u02bb\u02bc\u00b4\u05f3\ua78c",
    '"': "\u201c\u201d\u201e\u201f\u2033\u2036\u00ab\u00bb\u02ba\u05f4\u301d\u301e\u301f",
    "-": "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\u2043\u05be\ufe58\ufe63",
    "...": "\u2026",
    "~": "\u301c",
}
_AS_TYPEWRITTEN = str.maketrans({sign: plain for plain, signs in _TYPEWRITTEN.items() for sign in signs})
_WHOLE = re.compile(r"(-?(?:0|[1-9]\d*))\.0+")
_TRUTHS = {"true": "1", "false": "0", "1": "true", "0": "false"}
_FULL_STOPS = tuple(".。।۔։።။។")


def compose_letters(text: str) -> str:
    """Drop invisible characters and compose letters with their accents."""
    return text if text.isascii() else unicodedata.normalize("NFC", _INVISIBLE.sub("", text))


def fold_text(text: str) -> str:
    """Fold a text for comparison: invisible characters, letter forms, case, typography and white space."""
    if not text.isascii():
        text = compose_letters(_OTHER_WIDTHS.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text))
        text = unicodedata.normalize("NFC", unicodedata.normalize("NFD", text).casefold())
        text = text.translate(_AS_TYPEWRITTEN)
    return " ".join(text.lower().split() if text.isascii() else text.split())


def normalize(text: str) -> str:
    """Fold a text, and drop quotes around it and the full stop at its end unless nothing else is left."""
    folded = fold_text(text)
    while bare := _undress(folded):
        folded = bare
    return folded


def match_label(text: str, labels: tuple[str, ...]) -> str | None:
    """Return the label that a text equals, also as a number or truth value (1, 1.0, true); else None."""
    if text in labels:
        return text
    label_by_fold = _by_fold(labels)
    return label_by_fold.get(key := _fold_label(text)) or label_by_fold.get(_TRUTHS.get(key, ""))


def list_labels(answers: Iterable[str]) -> list[str]:
    """List the distinct labels among answers, sorted, each in its commonest spelling, but 1 for 1.0."""
    spelling_by_key: dict[str, str] = {}
    counts = Counter(answers)
    for answer in sorted(counts, key=lambda a: (_fold_label(a) != normalize(a), -counts[a], a)):
        if not {key := _fold_label(answer), _TRUTHS.get(key)} & spelling_by_key.keys():
            spelling_by_key[key] = key if key != normalize(answer) else answer
    return sorted(spelling_by_key.values())


@lru_cache(maxsize=16)
def _by_fold(labels: tuple[str, ...]) -> dict[str, str]:
    return {_fold_label(label): label for label in labels}


def _fold_label(label: str) -> str:
    folded = normalize(label)
    whole = _WHOLE.fullmatch(folded)
    return whole[1] if whole else folded


def _undress(text: str) -> str:
    """Drop the full stop at the end of a text, or the quotes around it; empty if it has neither."""
    if text.endswith(_FULL_STOPS):
        bare = text[:-1].rstrip()
        return "" if bare.endswith(_FULL_STOPS) else bare
    return text[1:-1].strip() if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'`" else ""


_HAN_AND_KANA = (
    "\u3005-\u3007\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003347f"
)
# Thai, Lao, Burmese and Khmer, without digits and signs of punctuation.
_SOUTHEAST_ASIAN = (
    "\u0e01-\u0e3a\u0e40-\u0e4e\u0e81-\u0ece\u0edc-\u0edf"
    "\u1000-\u103f\u1050-\u108f\u109a-\u109d\u1780-\u17d3\u17d7\u17dc\u17dd"
)
_LETTERS_EACH = 2.5  # Latin letters that say as much as one of a script without blanks
_LETTERS = {_HAN_AND_KANA: 2, _SOUTHEAST_ASIAN: 3}  # letters of an n-gram

_UNSPACED = f"{_HAN_AND_KANA}{_SOUTHEAST_ASIAN}"
# Compiled on first use: most commands and most texts do not need them.
_ANY = f"[{_UNSPACED}]"
_RUNS = "|".join(f"([{letters}]+)" for letters in _LETTERS)

_IN_WORDS = frozenset(("Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl"))  # Unicode categories

# A word after `split_into_grams`: `\w` misses the vowel signs of some of these scripts.
WORD = rf"[\w{_UNSPACED}]+"

# A word with the blank before it, or an n-gram; signs stay with the letter before them.
_COUNTED = (rf"(?:[{s}](?:(?!\w)[{_UNSPACED}])*){{1,{n}}}[^\s\w{_UNSPACED}]*" for s, n in _LETTERS.items())
_PIECE = rf"\s*(?:{'|'.join(_COUNTED)}|[^\s{_UNSPACED}]+)"


def is_unspaced(texts: Iterable[str]) -> bool:
    """Tell whether any text has letters of a script without blanks."""
    return any(not text.isascii() and re.search(_ANY, text) for text in texts)


def count_letters(text: str) -> float:
    """Count letters, vowel signs included; a letter of a script without blanks counts for several."""
    n = sum(unicodedata.category(sign)[0] in "LM" for sign in text)
    return _LETTERS_EACH * n if is_unspaced([text]) else n


def split_into_grams(text: str) -> str:
    """Replace each run of letters of a script without blanks by its overlapping n-grams."""
    return text if text.isascii() else re.sub(_RUNS, _grams, text)


def pieces(text: str) -> list[str]:
    """Cut a text into units that count as one word each, with the blank before; joined they give the text."""
    return re.findall(_PIECE, " ".join(text.split()))


def list_words(text: str) -> list[str]:
    """List the words of a text: runs of letters and digits; single letters in a script without blanks."""
    spaced = split_into_letters(text)
    return "".join(sign if unicodedata.category(sign)[:2] in _IN_WORDS else " " for sign in spaced).split()


def split_into_letters(text: str) -> str:
    """Put a blank before and after each letter of a script without blanks."""
    return text if text.isascii() else re.sub(_ANY, r" \g<0> ", text)


def _grams(run: re.Match[str]) -> str:
    letters, groups = run[0], zip(run.groups(), _LETTERS.values(), strict=True)
    n = next(n for matched, n in groups if matched)  # the group tells the script
    return f" {' '.join(letters[i : i + n] for i in range(max(1, len(letters) - n + 1)))} "
