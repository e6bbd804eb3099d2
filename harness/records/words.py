"""Words of all scripts; of those that write no blanks between words, letters or overlapping pieces of a few.

Invariant: a text without such a script comes back as it is, so its words are those of any pattern.
Source: bigrams of Han and kana as Lucene's CJKBigramFilter forms them. The number of letters is the one that
found the right one of 240 paragraphs most often, by BM25 in XQuAD's 1,190 questions: of Chinese 11 % by whole
runs, 91 % by single letters, 92 % by two, 83 % by three; of Thai 78, 22, 89 and 93 %.
"""

import re
import unicodedata
from collections.abc import Iterable

_HAN_AND_KANA = (
    "\u3005-\u3007\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003347f"
)
# Thai, Lao, Burmese and Khmer, without digits and signs of punctuation.
_SOUTHEAST_ASIAN = (
    "\u0e01-\u0e3a\u0e40-\u0e4e\u0e81-\u0ece\u0edc-\u0edf"
    "\u1000-\u103f\u1050-\u108f\u109a-\u109d\u1780-\u17d3\u17d7\u17dc\u17dd"
)
_LETTERS = {_HAN_AND_KANA: 2, _SOUTHEAST_ASIAN: 3}  # of a piece

_UNSPACED = f"{_HAN_AND_KANA}{_SOUTHEAST_ASIAN}"
# Compiled where a text first needs them, as most commands and most texts do not.
_ANY = f"[{_UNSPACED}]"
_RUNS = "|".join(f"([{letters}]+)" for letters in _LETTERS)

_IN_WORDS = frozenset(("Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl"))  # categories of Unicode

# A word where `split_into_grams` was applied: vowels of some of these scripts are signs that `\w` leaves out.
WORD = rf"[\w{_UNSPACED}]+"

# A word with the blank before it, or as many letters as a piece has; signs stay with the letter before them.
_COUNTED = (rf"(?:[{of}](?:(?!\w)[{_UNSPACED}])*){{1,{n}}}[^\s\w{_UNSPACED}]*" for of, n in _LETTERS.items())
_PIECE = rf"\s*(?:{'|'.join(_COUNTED)}|[^\s{_UNSPACED}]+)"


def is_unspaced(texts: Iterable[str]) -> bool:
    """Tell whether one of the texts has letters of a script without blanks."""
    return any(not text.isascii() and re.search(_ANY, text) for text in texts)


def split_into_grams(text: str) -> str:
    """Return a text in which overlapping pieces stand for each run of letters of a script without blanks."""
    return text if text.isascii() else re.sub(_RUNS, _grams, text)


def pieces(text: str) -> list[str]:
    """Cut a text into what counts as a word each, with the blank before it; joined they are the text."""
    # Any blanks between two words become a single one.
    return re.findall(_PIECE, " ".join(text.split()))


def list_words(text: str) -> list[str]:
    """List the words of a text: runs of letters and digits; of a script without blanks each letter is one."""
    spaced = split_into_letters(text)
    return "".join(sign if unicodedata.category(sign)[:2] in _IN_WORDS else " " for sign in spaced).split()


def split_into_letters(text: str) -> str:
    """Return a text with a blank before and after each letter of a script without blanks."""
    return text if text.isascii() else re.sub(_ANY, r" \g<0> ", text)


def _grams(run: re.Match[str]) -> str:
    letters, groups = run[0], zip(run.groups(), _LETTERS.values(), strict=True)
    n = next(n for matched, n in groups if matched)  # the group says of which scripts they are
    return f" {' '.join(letters[i : i + n] for i in range(max(1, len(letters) - n + 1)))} "
