"""Languages and scripts: other languages than most, words of two alphabets.

Invariant: a language is guessed of texts with at least `_LETTERS` letters, and counts where the guess is
sure; one of at least the share `_OWN` of the texts is a language of the file, and no alarm.

False alarms: sure guesses are taken to be wrong in at most `_WRONG` of the texts (none was in 6,567 English
ones of Banking77, Dolly and XQuAD), so other languages raise an alarm where a binomial test at `ALPHA` says
that there are more. Words of Latin and Cyrillic letters are a count.
Source: Lui & Baldwin 2012, langid.py, by py3langid; Unicode's names of letters.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from typing import Any

from harness.data.check import ALPHA, DECIDE, CheckContext, Finding
from harness.data.check._table import RowTable, TableEntry
from harness.data.check.personal_data import excerpt
from harness.formatting import pluralize

_LETTERS = 40
_SURE = 0.9
_WRONG = 0.001
_OWN = 0.1
_WORD = re.compile(r"[^\W\d_]+")  # of "3D-принтер" two
_MIXED = frozenset({"LATIN", "CYRILLIC"})


def check(table: RowTable, given: CheckContext) -> Iterator[Finding]:
    """Count languages and scripts, and list what differs from most rows."""
    yield from _languages(table.draw(given.most))
    yield from _scripts(table)


def _languages(drawn: Sequence[TableEntry]) -> Iterator[Finding]:
    from scipy import stats

    guess = _identifier().classify
    long = [e for e in drawn if sum(map(str.isalpha, e.question)) >= _LETTERS]
    sure = [(entry, name) for entry in long for name, p in [guess(entry.question)] if p >= _SURE]
    if not sure:
        return
    counts = Counter(str(name) for _, name in sure)
    own = [name for i, (name, n) in enumerate(counts.most_common()) if not i or n >= _OWN * len(sure)]
    shown = ", ".join(f"{name} {100 * n / len(sure):.1f} %" for name, n in counts.most_common(5))
    title = f"languages of {pluralize(len(sure), 'text')} with {_LETTERS} letters and more: {shown}"
    yield Finding("note", title, "in which language the model learns to answer")
    others = [entry for entry, name in sure if name not in own]
    p = float(stats.binomtest(len(others), len(sure), _WRONG, alternative="greater").pvalue)
    if others and p < ALPHA:
        yield Finding(
            "warning",
            f"texts in another language than {', '.join(map(repr, own))}",
            "a few rows of a language teach little of it, and metrics of words may not fit it",
            len(sure),
            tuple(entry.where for entry in others),
            f"{others[0].where}: {excerpt(others[0].question, 60)!r}",
            DECIDE,
        )


@cache
def _identifier() -> Any:
    """Load what guesses languages, which takes half a second, once a process."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _scripts(table: RowTable) -> Iterator[Finding]:
    scripts: Counter[str] = Counter()
    mixed: list[tuple[TableEntry, str]] = []
    for entry in table.entries:
        if entry.question.isascii():
            scripts["LATIN"] += 1
            continue
        words = [word for word in _WORD.findall(entry.question) if not word.isascii()]
        of = {_script(sign) for sign in entry.question if sign.isalpha()}
        scripts.update(of)
        if of >= _MIXED and (word := next((w for w in words if _find_scripts(w) >= _MIXED), None)):
            mixed.append((entry, word))
    if len(scripts) > 1:
        shown = ", ".join(f"{name.lower()} {n:,}" for name, n in scripts.most_common(5))
        yield Finding("note", f"rows by script: {shown}", "scripts that the tokenizer must know")
    if mixed:
        yield Finding(
            "warning",
            "words that mix Latin and Cyrillic letters",
            "they look like other words and are other tokens: a slip, or made to be overlooked",
            len(table.entries),
            tuple(entry.where for entry, _ in mixed),
            f"{mixed[0][0].where}: {mixed[0][1]!r}",
            DECIDE,
        )


def _find_scripts(word: str) -> set[str]:
    return {_script(sign) for sign in word if sign.isalpha()}


@lru_cache(maxsize=10_000)
def _script(sign: str) -> str:
    """Name the script of a letter, as its Unicode name begins."""
    return unicodedata.name(sign, "UNKNOWN").split(" ")[0].split("-")[0]
