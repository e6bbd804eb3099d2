"""Full-width letters and digits and half-width kana and hangul as the letters that they are forms of.

Invariant: a text without such forms comes back as it is; signs of punctuation keep their width.
Source: NFKC of Unicode's block "Halfwidth and Fullwidth Forms", as Lucene's CJKWidthFilter folds it.
"""

import re
import unicodedata
from collections.abc import Iterable

_FORMS = re.compile("[\uff10-\uff19\uff21-\uff3a\uff41-\uff5a\uff66-\uff9f\uffa1-\uffdc]+")


def has_widths(texts: Iterable[str]) -> bool:
    """Tell whether one of the texts has letters or digits of another width."""
    return any(not text.isascii() and _FORMS.search(text) for text in texts)


def fold_widths(text: str) -> str:
    """Return a text whose letters and digits have the width that they usually have: `ＡＢＣ` as `ABC`."""
    return _FORMS.sub(lambda found: unicodedata.normalize("NFKC", found[0]), text)
