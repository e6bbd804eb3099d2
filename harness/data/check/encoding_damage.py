"""Encoding damage: UTF-8 that was read as another encoding (mojibake), control characters, and lost signs.

False alarms: a row is listed only where decoding it again gives a shorter text that ftfy finds less odd, or
where it holds U+FFFD, which no writer types. Control characters, and line ends other than a line feed, are
counted. None in 10,003 rows of Banking77, 2,996 of Dolly and 1,190 of XQuAD was undamaged.
Source: Speer 2019, ftfy, https://doi.org/10.5281/zenodo.2591652
"""

from collections.abc import Callable, Iterator
from itertools import zip_longest

from harness.data.check import CheckContext, Finding
from harness.data.check._table import RowTable
from harness.data.check.personal_data import mask_text
from harness.data.edit.clean import mend_encoding, mend_signs

_LOST = "\ufffd"


def check(table: RowTable, given: CheckContext) -> Iterator[Finding]:
    """List the rows whose text is damaged, with how it would be mended, and those that cannot be."""
    # Only what was encoded wrongly: quotes and widths are left as they are.
    damaged = _find(table, lambda text: mend_encoding(text) != text)
    control = _find(table, lambda text: mend_signs(text) != text)
    lost = _find(table, lambda text: _LOST in text)
    if damaged:
        before = next(iter(damaged.values()))
        yield Finding(
            "error",
            "damaged encoding",
            "the model learns to write such signs, and the same word in two spellings",
            len(table.entries),
            tuple(damaged),
            f"{_cut_around(before)} → {_cut_around(mend_encoding(before))}",
            "harness data clean FILE --out OUT",
        )
    if control:
        first = next(iter(control.values()))
        sign = next(i for i, (a, b) in enumerate(zip_longest(first, mend_signs(first))) if a != b)
        yield Finding(
            "warning",
            "control characters, or line ends other than a line feed",
            "nobody sees them, and a tokenizer makes tokens of them that other rows do not have",
            len(table.entries),
            tuple(control),
            repr(mask_text(first)[max(0, sign - 20) : sign + 20]),
            "harness data clean FILE --out OUT",
        )
    if lost:
        yield Finding(
            "error",
            "signs that are lost (U+FFFD)",
            "nothing brings them back but the file they came from, read in its own encoding",
            len(table.entries),
            tuple(lost),
            _cut_around(next(iter(lost.values()))),
            "harness data clean FILE --out OUT --drop-lost",
        )


def _find(table: RowTable, is_damaged: Callable[[str], bool]) -> dict[str, str]:
    """Map the places of the rows that hold damaged text to the first such text of each."""
    found: dict[str, str] = {}
    for entry in table.entries:
        of = entry.qa
        for text in (of.question, of.context, of.system, *of.answers):
            if is_damaged(text):
                found.setdefault(entry.where, text)
    return found


def _cut_around(text: str) -> str:
    """Cut a text to what stands around its first sign beyond ASCII, masked."""
    at = next((i for i, sign in enumerate(text) if not sign.isascii()), 0)
    return mask_text(text)[max(0, at - 20) : at + 20].strip()
