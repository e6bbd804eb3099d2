"""Formats of answers: outer white space, spellings of one label, and formats that go with a source.

Invariant: formats are compared between sources only where answers are texts; labels differ by their mix.

False alarms: white space and spelling are counts. That a source has a format of its own is tested by Fisher's
exact test of each source against the others, at `ALPHA` over all sources and formats by Bonferroni, so
sources of one format raise an alarm in fewer than 1 file in 1,000.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from harness.data.check import ALPHA, Finding, Given
from harness.data.check._table import Entry, Table
from harness.data.check.personal_data import excerpt

_FORMS: dict[str, Callable[[str], bool]] = {
    "end with a full stop": lambda text: text.rstrip().endswith((".", "!", "?")),
    "begin with a capital": lambda text: text.lstrip()[:1].isupper(),
    "hold Markdown": lambda text: bool(re.search(r"\*\*|^#+ |^[-*] |```", text, re.MULTILINE)),
    "are JSON": lambda text: text.strip()[:1] in "{[" and text.strip()[-1:] in "}]" and text.strip() != "",
    "have several lines": lambda text: "\n" in text.strip(),
    "begin with a mark such as 'Answer:'": lambda text: bool(re.match(r"\s*\w+:\s", text)),
}
_MOST_SOURCES = 50


def check(table: Table, given: Given) -> Iterator[Finding]:
    """List answers with outer white space, labels in several spellings, and formats that go with a source."""
    answered = [entry for entry in table.entries if entry.answer]
    if spaced := [entry for entry in answered if entry.answer != entry.answer.strip()]:
        yield Finding(
            "answer_formats",
            "warning",
            "answers with white space around them",
            "the model learns to write it, and exact match counts it as wrong",
            len(spaced),
            len(table.entries),
            tuple(entry.where for entry in spaced),
            repr(excerpt(spaced[0].answer, 60)),
            "harness data clean FILE --out OUT",
        )
    yield from _spellings(answered) if table.labels else _by_source(answered)


def _spellings(answered: Sequence[Entry]) -> Iterator[Finding]:
    """List the rarer spellings of labels that are alike but for case, separators of words and full stops."""
    counts: dict[str, Counter[str]] = {}
    for entry in answered:
        counts.setdefault(_fold_label(entry.answer), Counter())[entry.answer] += 1
    several = {folded: of for folded, of in counts.items() if folded and len(of) > 1}
    rare = {spelt for of in several.values() for spelt, _ in of.most_common()[1:]}
    if rare:
        rows = tuple(entry.where for entry in answered if entry.answer in rare)
        first = next(iter(several.values())).most_common()
        yield Finding(
            "answer_formats",
            "error",
            f"{len(several):,} labels in several spellings",
            "each spelling is a label of its own to a metric and to a classifier",
            len(rows),
            len(answered),
            rows,
            ", ".join(f"{spelt!r} {n:,}" for spelt, n in first),
            "harness data clean FILE --out OUT --decisions DECISIONS  # taken on the Data page",
        )


def _fold_label(label: str) -> str:
    """Fold case, what separates words, and a full stop; other signs tell labels apart, as C and C++."""
    return re.sub(r"(?<=[^\W\d_])[\s_-]+(?=[^\W\d_])", "", label.lower().strip().rstrip(".,;:"))


def _by_source(answered: Sequence[Entry]) -> Iterator[Finding]:
    """Test for each source and form whether it goes with the source."""
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
            yield Finding(
                "answer_formats",
                "warning",
                f"answers of {source!r} {form} in {100 * share:.0f} %, those of other sources in "
                f"{100 * others[0] / max(1, sum(others)):.0f} %",
                "a mixed template: the model learns a source's format, not the one that you want",
                example=excerpt(next(entry.answer for entry in answered if entry.source == source), 80),
                command="write all answers in one format",
            )
