"""Traits of rows: relevance, diversity, representativeness and freshness; what so many test items decide.

Invariant: each figure comes with its meaning; label accuracy, the fifth trait, stands with the suspect
labels.

False alarms: only representativeness raises an alarm, where a classifier tells unseen training rows from
unseen test rows: a Mann-Whitney test of its scores at `ALPHA`, so independent rows of one source are told
apart in 1 file of 1,000. Rows of a group are not independent: where training and test have no group in common
there is no alarm, of the groups that `--source` names or by which `harness data split --group` parted them.
Source: Lopez-Paz & Oquab 2017, Revisiting Classifier Two-Sample Tests; Friedman & Dieng 2023, The Vendi
Score.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any

from harness.data.check import ALPHA, CheckContext, Finding
from harness.data.check._table import RowTable, TableEntry
from harness.data.edit.row_files import find_grouping_column

_MOST, _MOST_VARIED = 4_000, 1_000
_FEWEST = 20  # rows of each side
_DISAGREEMENTS = (0.1, 0.3)


def check(table: RowTable, given: CheckContext) -> Iterator[Finding]:
    """Give each trait that the rows allow."""
    drawn = table.draw(_MOST)
    if len(drawn) >= _FEWEST:
        yield _diversity(drawn)
    yield from _freshness(table, given.test)
    if given.test is None:
        return
    test = given.test.draw(_MOST)
    if given.detectable:
        yield _decidable(len(given.test.entries), given.detectable)
    if min(len(drawn), len(test)) >= _FEWEST:
        yield _relevance(drawn, test)
        yield _representativeness(drawn, test, _find_disjoint_column(table, given.test, drawn, test))


def _find_disjoint_column(
    table: RowTable, tested: RowTable, drawn: Sequence[TableEntry], test: Sequence[TableEntry]
) -> str | None:
    """Return the column of which training and test have no value in common; None where none is known."""
    # It is the one that `--source` names, or by which `harness data split --group` parted the files.
    if table.reading.source and not {e.source for e in drawn} & {e.source for e in test}:
        return table.reading.source
    groups = {find_grouping_column(file) for file in (*table.files, *tested.files)}
    return groups.pop() if len(groups) == 1 else None


def _vectors(*groups: Sequence[TableEntry]) -> list[Any]:
    """Return the TF-IDF of the words of groups of rows, each (n, words) with rows of length 1."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\S+")
    words.fit([entry.question for group in groups for entry in group])
    return [words.transform([entry.question for entry in group]) for group in groups]


def _diversity(drawn: Sequence[TableEntry]) -> Finding:
    """Give the Vendi score: the exponential of the entropy of the eigenvalues of the similarities over n."""
    import numpy as np

    (x,) = _vectors(random.Random(0).sample(list(drawn), min(len(drawn), _MOST_VARIED)))
    values = np.linalg.eigvalsh((x @ x.T).toarray() / x.shape[0])
    values = values[values > 1e-12]
    score = float(np.exp(-(values * np.log(values)).sum()))
    title = f"diversity: {x.shape[0]:,} rows vary as much as {score:,.0f} rows without a word in common would"
    return Finding("note", title, "few: many rows say the same in the same words")


def _relevance(train: Sequence[TableEntry], test: Sequence[TableEntry]) -> Finding:
    x, y = _vectors(train, test)
    near = sum(float((y[i : i + 500] @ x.T).max(axis=1).sum()) for i in range(0, y.shape[0], 500))
    far = float((y @ x.mean(axis=0).T).mean())
    title = (
        f"relevance: a test item is {near / y.shape[0]:.2f} similar to its nearest training row,"
        f" {far:.2f} to an average one"
    )
    return Finding(
        "note",
        title,
        "1: the same words, 0: none in common (cosine); near 0, training does not prepare for the test",
    )


def _representativeness(
    train: Sequence[TableEntry], test: Sequence[TableEntry], apart: str | None
) -> Finding:
    """Train a classifier on half of both, and test on the other half whether it tells them apart."""
    # Where the two are of other groups, values of the column `apart`, their rows are no independent draws.
    from scipy import stats
    from scipy.sparse import vstack
    from sklearn.linear_model import LogisticRegression
    from sklearn.utils import shuffle

    n = min(len(train), len(test))
    halves = [shuffle(rows, random_state=0)[:n] for rows in _vectors(train, test)]
    seen = vstack([half[: n // 2] for half in halves])
    model = LogisticRegression().fit(seen, [0] * (n // 2) + [1] * (n // 2))
    scores = [model.decision_function(half[n // 2 :]) for half in halves]
    u = stats.mannwhitneyu(scores[1], scores[0], alternative="greater")
    auc, p = float(u.statistic) / (len(scores[0]) * len(scores[1])), float(u.pvalue)
    title = f"representativeness: a classifier tells test from training, AUC {auc:.2f} (p = {p:.1g})"
    if apart:
        return Finding("note", title, f"0.5 is alike; test has other values of {apart!r} than training")
    if p < ALPHA:
        meaning = (
            "0.5 is alike: the questions of test differ from those of training, so it shows less of what"
            " training brought"
        )
        return Finding("warning", title, meaning, command="harness data split FILE --out OUT")
    return Finding("note", title, "0.5 is alike: test items look like training rows")


def _freshness(table: RowTable, test: RowTable | None) -> Iterator[Finding]:
    dates = sorted(entry.date for entry in table.entries if entry.date)
    if not dates:
        return
    newest = max([dates[-1], *(entry.date for entry in (test.entries if test else ()) if entry.date)])
    age = median((newest - date).days for date in dates)
    title = f"freshness: half of the rows are {age:,.0f} days or older at {newest:%Y-%m-%d}, the newest"
    yield Finding("note", title, f"from {dates[0]:%Y-%m-%d} on; old rows teach what has changed since")


def _decidable(n: int, detectable: Callable[[int, float], float]) -> Finding:
    few, many = (100 * detectable(n, d) for d in _DISAGREEMENTS)
    title = f"{n:,} test items show a difference of {few:.1f} to {many:.1f} percentage points"
    meaning = "with 80 % power, where two models answer 10 to 30 % of the items differently"
    return Finding("note", title, meaning)
