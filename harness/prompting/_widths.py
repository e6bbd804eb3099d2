"""Full-width letters and digits, and half-width kana and hangul, in their usual width.

Invariant: a text without such forms is returned as it is; punctuation keeps its width.
Source: NFKC of Unicode's block "Halfwidth and Fullwidth Forms", as in Lucene's CJKWidthFilter.
"""

import re
import unicodedata
from collections.abc import Iterable

_FORMS = re.compile("[\uff10-\uff19\uff21-\uff3a\uff41-\uff5a\uff66-\uff9f\uffa1-\uffdc]+")


def has_widths(texts: Iterable[str]) -> bool:
    """Tell whether any text has letters or digits in an unusual width."""
    return any(not text.isascii() and _FORMS.search(text) for text in texts)


def fold_widths(text: str) -> str:
    """Return a text with letters and digits in their usual width: `ＡＢＣ` as `ABC`."""
    return _FORMS.sub(lambda found: unicodedata.normalize("NFKC", found[0]), text)
