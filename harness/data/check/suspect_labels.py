"""Suspect labels: rows whose label a classifier that did not see them finds unlikely, by confident learning.

Invariant: at most `Given.most` rows, drawn by class, are judged by a logistic regression on the TF-IDF of
their words and signs, each by one that was trained on the other four fifths; classes of fewer than five rows
are left out. A classifier that gives too few of the labels judges none: its own errors would pass for theirs.

False alarms: a suspect is a row to read, not a proof. A classifier is too weak below the share `_SKILL` of
what always answering the commonest label leaves open. Whether there is an alarm is a binomial test at `ALPHA`
that more than the share `_EXPECTED` of the labels surely differ: the row's own has a probability below
`_OWN`, another one above `_OTHER`. A classifier that errs is seldom so sure. They were chosen on 180 draws
of Banking77 and the own generator; of 202 others with right labels (2 to 40 labels of 8 to 100 rows) 1 raises
an alarm, of 113 of Banking77 with 8 % flipped labels 74 do, and 22 of the 22 of more than 400 rows.
Source: Northcutt, Jiang & Chuang 2021, Confident Learning, https://arxiv.org/abs/1911.00068, by cleanlab.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from harness.data.check import ALPHA, DECIDE, CheckContext, Finding
from harness.data.check._table import RowTable, TableEntry
from harness.data.check.personal_data import excerpt
from harness.data.edit.changes import unify_spellings

_FOLDS = 5
_FEWEST = 5  # rows of a class, one for each fold
_EXPECTED, _OWN, _OTHER = 0.025, 0.02, 0.6
_SKILL = 0.7
_FEATURES = 10_000
# Words, single letters of scripts without blanks (Thai, Kana, Han), and signs: "+" may be the point.
_UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff"
_TOKEN = rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s]"


class Suspect(NamedTuple):
    """A row, the label that is proposed for it, and the probabilities of its own and of that one."""

    entry: TableEntry
    label: str
    p_own: float
    p_label: float


class SuspectLabels(NamedTuple):
    """Suspects, the most suspect first, and the share of the labels that the classifier gives, in [0, 1].

    `n_sure` labels surely differ from what it gives.
    """

    suspects: list[Suspect]
    accuracy: float
    n_sure: int


def check(table: RowTable, given: CheckContext) -> Iterator[Finding]:
    """List the suspect rows, the most suspect first, with the label that is proposed."""
    from scipy import stats

    drawn = _draw_judged(table, given.most)
    counts = Counter(entry.answer for entry in drawn)
    if len(counts) < 2:
        return
    suspects, accuracy, n_sure = judge_labels(drawn)
    common, most = counts.most_common(1)[0]
    if accuracy - most / len(drawn) < _SKILL * (1 - most / len(drawn)):
        yield _withheld(accuracy, common, most / len(drawn))
        return
    p = float(stats.binomtest(n_sure, len(drawn), _EXPECTED, alternative="greater").pvalue)
    yield from _report_suspects(suspects, n_sure, len(drawn), len(table.digests), is_alarm=p < ALPHA)


def _withheld(accuracy: float, common: str, share: float) -> Finding:
    return Finding(
        "note",
        f"labels are not judged: a classifier of words gives {100 * accuracy:.1f} % of them, "
        f"always answering {common!r} {100 * share:.1f} %",
        "too weak to tell a wrong label from its own errors: few rows of a label, or no matter of words",
    )


def _report_suspects(
    suspects: Sequence[Suspect], n_sure: int, n: int, n_all: int, *, is_alarm: bool
) -> Iterator[Finding]:
    """Give the label accuracy, and the suspects if there are some."""
    doubted = 100 * len(suspects) / n
    said = f", of {n:,} judged (sampled by class, of labels with {_FEWEST} rows or more)" if n < n_all else ""
    yield Finding(
        "note",
        f"label accuracy: about {100 - doubted:.1f} %{said}"
        if is_alarm
        else f"label accuracy: {doubted:.1f} % of the labels are suspect, "
        f"hardly more than where all are right{said}",
        f"a classifier of words is sure of another label in {100 * n_sure / n:.1f} % of the rows, "
        f"where all labels are right in up to {100 * _EXPECTED:.1f} %",
    )
    if suspects:
        worst = suspects[0]
        yield Finding(
            "warning" if is_alarm else "note",
            f"suspect labels{said}" + ("" if is_alarm else ", hardly more than where all are right"),
            "a wrong label teaches a wrong answer, and in test it counts a right answer as wrong",
            n,
            tuple(suspect.entry.where for suspect in suspects),
            f"{worst.entry.where}: {excerpt(worst.entry.question, 70)!r} is {worst.entry.answer!r} "
            f"({100 * worst.p_own:.0f} %), more likely {worst.label!r} ({100 * worst.p_label:.0f} %)",
            DECIDE,
            tuple(suspect.label for suspect in suspects),
        )


def _draw_judged(table: RowTable, most: int) -> list[TableEntry]:
    """Draw the rows that are judged: of labels with enough rows, each label in one spelling."""
    if not table.labels:
        return []
    drawn = table.draw(most)
    labels = unify_spellings([entry.answer for entry in drawn])
    counts = Counter(labels)
    spelt = (entry._replace(answer=label) for entry, label in zip(drawn, labels, strict=True))
    return [entry for entry in spelt if counts[entry.answer] >= _FEWEST]


def judge_labels(entries: Sequence[TableEntry]) -> SuspectLabels:
    """Judge each row by a classifier trained on others.

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
    words = TfidfVectorizer(
        ngram_range=(1, 2), sublinear_tf=True, max_features=_FEATURES, token_pattern=_TOKEN
    )
    regression = SGDClassifier(loss="log_loss", alpha=1e-5, max_iter=20, tol=None, random_state=0)
    model = make_pipeline(words, regression)
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=0)
    texts = [entry.question if entry.question.strip() else "-" for entry in entries]
    p = cross_val_predict(model, texts, own, cv=folds, method="predict_proba")
    how = {"filter_by": "low_self_confidence", "return_indices_ranked_by": "self_confidence"}
    ranked = find_label_issues(own, p, n_jobs=1, **how)
    best = p.argmax(axis=1)
    suspects = [
        Suspect(entries[i], names[best[i]], float(p[i, own[i]]), float(p[i, best[i]]))
        for i in ranked
        if best[i] != own[i]
    ]
    sure = (best != own) & (p[np.arange(len(own)), own] < _OWN) & (p.max(axis=1) > _OTHER)
    return SuspectLabels(suspects, float((best == own).mean()), int(sure.sum()))
