"""Spurious markers of labels: signs, or words at a fixed place, that give the label without reading.

Invariant: what is tested is form, not content: how a question begins and ends, its outer white space, and a
word or a sign, alone or at a word, only where it stands at one end in nine of ten of its rows. A marker
gives the label in nine of ten of its rows.

False alarms: each form is tested against each label by Fisher's exact test (one-sided), at `ALPHA` over all
pairs by Bonferroni: where forms are independent of labels, fewer than 1 file in 1,000 raises one. A word that
questions of one label truly begin with is found as well, which only a reader can tell from a marker; a word
in the middle is none, however well it gives the label: none is found in Banking77.
Source: Gururangan et al. 2018, Annotation Artifacts in NLI Data; Gardner et al. 2021, Competency Problems,
whose test of single features this is, restricted to form.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator

from harness.data.check import ALPHA, CheckContext, Finding
from harness.data.check._table import RowTable, TableEntry
from harness.data.check.personal_data import excerpt

_GIVES, _AT_ONE_END = 0.9, 0.9
_FEWEST = 5  # rows of a form that is tested
_SHOWN = 5
_SIGN = re.compile(r"[^\w\s]")
_NAMED = re.compile(r"(?:first|last) (?:word|sign) ['\"](.*)['\"]")


def check(table: RowTable, given: CheckContext) -> Iterator[Finding]:
    """List the forms from which a label follows, the commonest first."""
    if not table.labels:
        return
    rows: dict[str, list[TableEntry]] = defaultdict(list)
    words: Counter[str] = Counter()
    for entry in table.entries:
        words.update(set(map(_bare, entry.question.split())) | set(_SIGN.findall(entry.question)))
        for form in forms(entry.question):
            rows[form].append(entry)
    found = list(_markers(table, rows, words))
    # Of forms of the same rows the first stands, a word before its sign.
    once = {
        tuple(entry.where for entry in rows[form]): (form, label, p) for form, label, p in reversed(found)
    }
    for form, label, p in sorted(once.values(), key=lambda f: -len(rows[f[0]]))[:_SHOWN]:
        marked = rows[form]
        n = sum(entry.answer == label for entry in marked)
        yield Finding(
            "warning",
            f"{form} gives the label {label!r} in {n:,} of {len(marked):,} rows (p = {p:.1g})",
            "a model may learn the mark in place of the meaning, and fail where it is absent",
            len(table.entries),
            tuple(entry.where for entry in marked),
            repr(excerpt(marked[0].question, 80)),
            "remove the mark from the rows, if it is none of the question",
        )


def forms(question: str) -> Iterator[str]:
    """Yield the forms of a question, each in words."""
    tokens = question.split()
    if not tokens:
        return
    yield f"first word {_bare(tokens[0])!r}"
    yield f"last word {_bare(tokens[-1])!r}"
    # A sign at a word, which the word's form does not show.
    for place, sign in (("first", tokens[0][0]), ("last", tokens[-1][-1])):
        if _SIGN.fullmatch(sign) and len(tokens[0 if place == "first" else -1]) > 1:
            yield f"{place} sign {sign!r}"
    if question != question.strip():
        yield "white space around the question"
    if "\u200b" in question or "\xa0" in question:
        yield "a space that cannot be seen"


def _bare(token: str) -> str:
    """Return a word without case and without the punctuation around it; a sign stays."""
    return re.sub(r"^\W+|\W+$", "", token.lower()) or token


def _markers(
    table: RowTable, rows: dict[str, list[TableEntry]], words: Counter[str]
) -> Iterator[tuple[str, str, float]]:
    """Yield form, label and p of what passes the test, and gives the label where it stands."""
    from scipy import stats

    labels = Counter(entry.answer for entry in table.entries)
    tested = {form: of for form, of in rows.items() if len(of) >= _FEWEST}
    level = ALPHA / max(1, len(tested) * len(labels))
    for form, of in tested.items():
        label, n = Counter(entry.answer for entry in of).most_common(1)[0]
        word = found[1] if (found := _NAMED.fullmatch(form)) else ""
        if n < _GIVES * len(of) or (word and len(of) < _AT_ONE_END * words[word]):
            continue
        p = float(stats.hypergeom.sf(n - 1, len(table.entries), labels[label], len(of)))
        if p < level:
            yield form, label, p
