"""Formats of answers: white space around them, spellings of one label, and formats that go with a source.

Invariant: formats are compared between sources only where answers are texts; labels differ by their mix.

False alarms: white space and spelling are counts. That a source has a format of its own is tested by Fisher's
exact test of each source against the others, at `ALPHA` over all sources and formats by Bonferroni, so
sources of one format raise an alarm in fewer than 1 file in 1,000.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from harness.data.check import ALPHA, DECIDE, CheckContext, Finding
from harness.data.check._table import RowTable, TableEntry
from harness.data.check.personal_data import excerpt, mask_text
from harness.data.edit.changes import commonest_spellings, several_spellings
from harness.formatting import pluralize

_FORMS: dict[str, Callable[[str], bool]] = {
    "end with a full stop": lambda text: text.rstrip().endswith((".", "!", "?")),
    "begin with a capital": lambda text: text.lstrip()[:1].isupper(),
    "hold Markdown": lambda text: bool(re.search(r"\*\*|^#+ |^[-*] |```", text, re.MULTILINE)),
    "are JSON": lambda text: text.strip()[:1] in "{[" and text.strip()[-1:] in "}]" and text.strip() != "",
    "have several lines": lambda text: "\n" in text.strip(),
    "begin with a mark such as 'Answer:'": lambda text: bool(re.match(r"\s*\w+:\s", text)),
}
_MOST_SOURCES = 50


def check(table: RowTable, given: CheckContext) -> Iterator[Finding]:
    """List answers with outer white space, labels in several spellings, and formats that go with a source."""
    answered = [entry for entry in table.entries if entry.answer]
    yield from _outer_spaces(table)
    yield from _spellings(answered, table) if table.labels else _test_by_source(answered)


def _outer_spaces(table: RowTable) -> Iterator[Finding]:
    """List answers with white space at an end, as the file has them: known layouts are read without it."""
    clean = "harness data clean FILE --out OUT"
    cut = f"{clean} --leading-spaces  # unless it is the indentation of code"
    ends = (("behind", str.rstrip, clean), ("in front of", str.lstrip, cut))
    for where, strip, command in ends:
        first_of = ((e, next((t for t in e.spaced if t != strip(t)), "")) for e in table.entries)
        spaced = [(entry, text) for entry, text in first_of if text]
        if spaced:
            masked = mask_text(spaced[0][1])
            yield Finding(
                "warning",
                f"answers with white space {where} them",
                "a trainer that reads the file teaches it, and exact match counts it as wrong",
                len(table.entries),
                tuple(entry.where for entry, _ in spaced),
                repr(masked[-60:] if where == "behind" else masked[:60]),
                command,
            )


def _spellings(answered: Sequence[TableEntry], table: RowTable) -> Iterator[Finding]:
    """List the rarer spellings of labels, with the commonest one of each."""
    several = several_spellings(entry.answer for entry in answered)
    commonest = commonest_spellings(several)
    if commonest:
        rare = [entry for entry in answered if entry.answer in commonest]
        yield Finding(
            "error",
            f"{pluralize(len(several), 'label')} in several spellings",
            "each spelling is a label of its own to a metric and to a classifier",
            len(answered),
            tuple(entry.where for entry in rare),
            ", ".join(f"{spelt!r} {n:,}" for spelt, n in several[0].counts),
            "harness data clean FILE --out OUT --spellings"
            if table.labels_in_rows
            else "no command: labels stand within longer texts; write each in one spelling by hand",
            tuple(commonest[entry.answer] for entry in rare),
        )


def _test_by_source(answered: Sequence[TableEntry]) -> Iterator[Finding]:
    """Test for each source and form whether it goes with the source, and list its rows that differ."""
    from scipy import stats

    sources = [source for source, _ in Counter(entry.source for entry in answered).most_common(_MOST_SOURCES)]
    if len(sources) < 2:
        return
    n_tests = len(sources) * len(_FORMS)
    for form, has in _FORMS.items():
        found = Counter((entry.source, has(entry.answer)) for entry in answered)
        n_with = sum(n for (_, yes), n in found.items() if yes)
        tested = []
        for source in sources:
            k, n = found[source, True], found[source, True] + found[source, False]
            others = [n_with - k, len(answered) - n - (n_with - k)]
            tested.append((float(stats.fisher_exact([[k, n - k], others]).pvalue), source, k / n, others))
        p, source, share, others = min(tested)
        if p < ALPHA / n_tests:
            common = share > others[0] / max(1, sum(others))
            odd = [e for e in answered if e.source == source and has(e.answer) == common]
            yield Finding(
                "warning",
                f"answers of {source!r} {form} in {100 * share:.0f} %, those of other sources in "
                f"{100 * others[0] / max(1, sum(others)):.0f} %",
                "a mixed template: the model learns a source's format, not the one that you want",
                len(answered),
                tuple(entry.where for entry in odd),
                excerpt(odd[0].answer, 80),
                DECIDE,
            )
