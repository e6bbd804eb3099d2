"""Encoding damage: UTF-8 that was read as another encoding (mojibake), and signs that were lost.

False alarms: a row is listed only where decoding it again gives a shorter text that ftfy finds less odd, or
where it holds U+FFFD, which no writer types. None in 10,003 rows of Banking77, 2,996 of Dolly and 1,190 of
XQuAD was undamaged.

Source: Speer 2019, ftfy, https://doi.org/10.5281/zenodo.2591652
"""

from collections.abc import Iterator

from harness.data.check import Finding, Given
from harness.data.check._table import Entry, Table
from harness.data.check.personal_data import mask_text

_LOST = "\ufffd"


def check(table: Table, given: Given) -> Iterator[Finding]:
    """List the rows whose text is damaged, with how it would be mended, and those that cannot be."""
    import ftfy

    damaged, lost = list[Entry](), list[Entry]()
    for entry in table.entries:
        text = f"{entry.question}\n{entry.answer}"
        # Only what was encoded wrongly: quotes and widths are left as they are.
        if not text.isascii() and ftfy.fix_encoding(text) != text:
            damaged.append(entry)
        if _LOST in text:
            lost.append(entry)
    if damaged:
        before = next(t for t in damaged[0][2:4] if ftfy.fix_encoding(t) != t)
        yield Finding(
            "encoding_damage",
            "error",
            "damaged encoding",
            "the model learns to write such signs, and the same word in two spellings",
            len(damaged),
            len(table.entries),
            tuple(entry.where for entry in damaged),
            f"{_around(before)} → {_around(ftfy.fix_encoding(before))}",
            "harness data clean FILE --out OUT",
        )
    if lost:
        yield Finding(
            "encoding_damage",
            "error",
            "signs that are lost (U+FFFD)",
            "nothing brings them back but the file they came from, read in its own encoding",
            len(lost),
            len(table.entries),
            tuple(entry.where for entry in lost),
            _around(next(t for t in lost[0][2:4] if _LOST in t)),
            "harness data clean FILE --out OUT --drop-lost",
        )


def _around(text: str) -> str:
    """Cut a text to what stands around its first sign beyond ASCII, masked."""
    at = next((i for i, sign in enumerate(text) if not sign.isascii()), 0)
    return mask_text(text)[max(0, at - 20) : at + 20].strip()
