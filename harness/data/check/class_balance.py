"""Class balance: how rows spread over the labels, and whether the test rows do so too.

Invariant: a label in several spellings is one label here; the check of answers' formats lists its spellings.

False alarms: a class of fewer than five rows is a count, and no chance is in it. That training and test have
another mix is said at `ALPHA` of a chi-square test of homogeneity (classes below five expected rows pooled).
Source: Pearson 1900; the effective number of classes is the exponential of Shannon's entropy, Hill 1973.
"""

import shlex
from collections import Counter
from collections.abc import Iterator
from math import exp, log

from harness.data.check import ALPHA, CheckContext, Finding
from harness.data.check._table import RowTable
from harness.data.edit.changes import unify_spellings

_FEWEST = 5  # a fifth of fewer rows is less than one row


def check(table: RowTable, given: CheckContext) -> Iterator[Finding]:
    """Show the balance, warn of one answer and of too small classes, and compare with the test rows."""
    yield from _find_one_answer(table)
    if not table.labels:
        return
    labels = unify_spellings([entry.answer for entry in table.entries])
    counts, n = Counter(labels), len(labels)
    effective = exp(-sum(k / n * log(k / n) for k in counts.values()))
    (most, k), (least, j) = counts.most_common(1)[0], counts.most_common()[-1]
    title = (
        f"{len(counts):,} labels, worth {effective:.1f} of equal size: {most!r} {k:,} rows, {least!r} {j:,}"
    )
    yield Finding("note", title, f"always answering {most!r} scores {100 * k / n:.1f} %")
    small = {label for label, m in counts.items() if m < _FEWEST}
    if small:
        rows = tuple(e.where for e, label in zip(table.entries, labels, strict=True) if label in small)
        yield Finding(
            "warning",
            f"{len(small):,} labels with fewer than {_FEWEST} rows",
            "validation or test may hold none of them, so nothing is known of them",
            n,
            rows,
            ", ".join(f"{label!r} {counts[label]}" for label in sorted(small)[:5]),
            "collect more rows of them",
        )
    if given.test:
        train, test = (Counter(entry.answer for entry in of.entries) for of in (table, given.test))
        if mix := _compare_mixes(train, test, table):
            yield mix


def _find_one_answer(table: RowTable) -> Iterator[Finding]:
    """Find that all rows, five or more, have the same answer."""
    answers = {entry.answer for entry in table.entries if entry.question}
    if len(answers) == 1 and answers != {""} and len(table.entries) >= _FEWEST:
        title = f"all rows have the same answer, {answers.pop()[:60]!r}"
        meaning = "always giving it is right, so no comparison can show that anything was learned"
        yield Finding("warning", title, meaning, command="add rows with other answers, or name their column")


def _compare_mixes(train: Counter[str], test: Counter[str], table: RowTable) -> Finding | None:
    unknown = [label for label in test if label not in train]
    if unknown:
        title = f"{len(unknown):,} labels stand in test alone: " + ", ".join(map(repr, unknown[:5]))
        n = sum(test[label] for label in unknown)
        meaning = "no training row shows them, so a fine-tune cannot answer them"
        return Finding("error", title, meaning, test.total(), command="add rows of them", count=n)
    p, label = mix_p(train, test)
    if p is None or p >= ALPHA:
        return None
    shares = (
        f"{100 * train[label] / train.total():.1f} % of training, {100 * test[label] / test.total():.1f} %"
    )
    meaning = "a score on test weighs labels otherwise than training did; name which mix is the real one"
    title = f"labels are mixed otherwise in test (chi-square, p = {p:.1g}): {label!r} is {shares} of test"
    column = table.reading.task.fields.reference.strip("{}")
    keeps = f" --stratify {shlex.quote(column)}" if column in table.columns else ""
    command = f"harness data split FILE{keeps} --out OUT"
    return Finding("warning", title, meaning, command=command)


def mix_p(train: Counter[str], test: Counter[str]) -> tuple[float | None, str]:
    """Test whether two counts of labels are draws of one mix; return p and the label that differs most."""
    from scipy import stats

    share = test.total() / (train.total() + test.total())
    both = {label: train[label] + test[label] for label in train | test}
    large = [label for label, n in both.items() if n * min(share, 1 - share) >= _FEWEST]
    pooled = [
        [counts[label] for label in large] + [sum(n for label, n in counts.items() if label not in large)]
        for counts in (train, test)
    ]
    cells = [pair for pair in zip(*pooled, strict=True) if sum(pair) > 0]
    if len(cells) < 2:
        return None, ""
    p = float(stats.chi2_contingency(list(zip(*cells, strict=True)), correction=False).pvalue)
    far = max(both, key=lambda label: abs(train[label] / train.total() - test[label] / test.total()))
    return p, far
