"""Suspect labels: rows whose label a classifier that did not see them finds unlikely, by confident learning.

Invariant: at most `Given.most` rows, drawn by class, are judged by a logistic regression on the TF-IDF of
their words, each by one that was trained on the other four fifths; classes of fewer than five rows are left
out.

False alarms: a suspect is a row to read, not a proof: of 10,003 rows of Banking77 with 8 % planted flips 93 %
of the suspects were planted and 88 % of the flips found; of the rows as they are 1.6 % are suspect. Whether
there is an alarm is a binomial test at `ALPHA` that more rows are suspect than the share `_EXPECTED`, which
rows of right labels give; fewer suspects are a note.

Source: Northcutt, Jiang & Chuang 2021, Confident Learning, https://arxiv.org/abs/1911.00068, by cleanlab.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from harness.data.check import ALPHA, Finding, Given
from harness.data.check._table import Entry, Table
from harness.data.check.personal_data import excerpt

_FOLDS = 5
_FEWEST = 5  # rows of a class, one for each fold
_EXPECTED = 0.03
_FEATURES = 10_000


class Suspect(NamedTuple):
    """A row, the label that is proposed for it, and the probabilities of its own and of that one."""

    entry: Entry
    label: str
    p_own: float
    p_label: float


def check(table: Table, given: Given) -> Iterator[Finding]:
    """List the suspect rows, the most suspect first, with the label that is proposed."""
    from scipy import stats

    drawn = _judged(table, given.most)
    if len({entry.answer for entry in drawn}) < 2:
        return
    suspects = find_suspects(drawn)
    n, k = len(drawn), len(suspects)
    said = f", of {n:,} drawn by class" if len(drawn) < len(table.digests) else ""
    yield Finding(
        "suspect_labels", "note", f"label accuracy: about {100 * (1 - k / n):.1f} %{said}", _ACCURACY
    )
    if suspects:
        p = float(stats.binomtest(k, n, _EXPECTED, alternative="greater").pvalue)
        worst = suspects[0]
        yield Finding(
            "suspect_labels",
            "warning" if p < ALPHA else "note",
            f"suspect labels{said}" + ("" if p < ALPHA else ", no more than of right labels"),
            "a wrong label teaches a wrong answer, and in test it counts a right answer as wrong",
            k,
            n,
            tuple(suspect.entry.where for suspect in suspects),
            f"{worst.entry.where}: {excerpt(worst.entry.question, 70)!r} is {worst.entry.answer!r} "
            f"({100 * worst.p_own:.0f} %), more likely {worst.label!r} ({100 * worst.p_label:.0f} %)",
            "harness data clean FILE --out OUT --decisions DECISIONS  # taken on the Data page",
            tuple(suspect.label for suspect in suspects),
        )


_ACCURACY = "the share of labels that a classifier of words does not doubt"


def _judged(table: Table, most: int) -> list[Entry]:
    """Draw the rows that are judged: of classes with enough rows, if answers are labels."""
    if not table.labels:
        return []
    drawn = table.draw(most)
    counts = Counter(entry.answer for entry in drawn)
    return [entry for entry in drawn if counts[entry.answer] >= _FEWEST]


def find_suspects(entries: Sequence[Entry]) -> list[Suspect]:
    """Judge each row by a classifier trained on others; return the suspects, the most suspect first.

    Each label has at least five rows, and there are two.
    """
    import numpy as np
    from cleanlab.filter import find_label_issues
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import SGDClassifier
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline

    names = sorted({entry.answer for entry in entries})
    own = np.array([names.index(entry.answer) for entry in entries])
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, max_features=_FEATURES)
    regression = SGDClassifier(loss="log_loss", alpha=1e-5, max_iter=20, tol=None, random_state=0)
    model = make_pipeline(words, regression)
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=0)
    texts = [entry.question or "-" for entry in entries]
    p = cross_val_predict(model, texts, own, cv=folds, method="predict_proba")
    how = {"filter_by": "low_self_confidence", "return_indices_ranked_by": "self_confidence"}
    ranked = find_label_issues(own, p, n_jobs=1, **how)
    best = p.argmax(axis=1)
    return [
        Suspect(entries[i], names[best[i]], float(p[i, own[i]]), float(p[i, best[i]]))
        for i in ranked
        if best[i] != own[i]
    ]
