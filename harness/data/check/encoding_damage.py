"""Damaged texts: UTF-8 read as another encoding (mojibake), control characters, lost signs, special tokens.

False alarms: a row is listed only where decoding it again gives a shorter text that ftfy finds less odd, or
where it holds U+FFFD, which no writer types. Control characters, and line ends other than a line feed, are
counted. None in 10,003 rows of Banking77, 2,996 of Dolly and 1,190 of XQuAD was undamaged. Special tokens are
those of the base and of known families: a text about chat templates holds them on purpose.
Source: Speer 2019, ftfy, https://doi.org/10.5281/zenodo.2591652
"""

from collections.abc import Callable, Iterator
from itertools import zip_longest

from harness.data.check import CheckContext, Finding, Severity
from harness.data.check._table import RowTable
from harness.data.check.personal_data import mask_text
from harness.data.edit import find_special
from harness.data.edit.clean import mend_encoding, mend_signs
from harness.errors import as_argument

_LOST = "\ufffd"


def check(table: RowTable, given: CheckContext) -> Iterator[Finding]:
    """List the rows whose text is damaged, with how it would be fixed, and those that cannot be."""
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
            "they are invisible, and the tokenizer turns them into tokens that other rows do not have",
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
    yield from _find_special_tokens(table, given)


def _find_special_tokens(table: RowTable, given: CheckContext) -> Iterator[Finding]:
    """List the rows whose answers, and those whose prompts, hold special tokens."""
    own = given.tokenizer.special if given.tokenizer else ()
    answers, prompts = dict[str, str](), dict[str, str]()
    for entry in table.entries:
        of = entry.qa
        if token := find_special([*of.answers, entry.answer], own):
            answers[entry.where] = token
        elif token := find_special((of.question, of.context, of.system), own):
            prompts[entry.where] = token
    severity: Severity = "error"
    meaning = "they are read as text: no right answer says so, and a model would learn to write it"
    for rows, what in ((answers, "answers"), (prompts, "prompts")):
        if rows:
            named = sorted(set(rows.values()))
            is_known = given.tokenizer is None or all(find_special([token]) for token in named)
            base = (
                "" if is_known or given.tokenizer is None else f" --base {as_argument(given.tokenizer.name)}"
            )
            title, command = f"special tokens in {what}: {', '.join(named[:5])}", f"--special-tokens{base}"
            command = f"harness data clean FILE --out OUT {command}"
            yield Finding(severity, title, meaning, len(table.entries), tuple(rows), command=command)
        severity, meaning = (
            "warning",
            "they are read as text, and end no turn: often what a template wrote before",
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
