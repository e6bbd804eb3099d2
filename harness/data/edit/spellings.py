"""Spellings of one label: equal to metrics, or alike but for what separates words or ends them.

Invariant: the same answers in the same order give the same spellings; the commonest stands, of two equally
common ones the first. Other signs tell labels apart, as C and C++.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from harness.data.guessed_columns import LONGEST_LABEL, MOST_LABELS, ROWS_A_LABEL
from harness.formatting import pluralize
from harness.records import normalize


class LabelSpellings(NamedTuple):
    """A label as it is spelt most often, and its other spellings; each with its number of rows."""

    commonest: str
    counts: tuple[tuple[str, int], ...]


def describe_no_labels(answers: Sequence[str]) -> tuple[str, str]:
    """Say what answers are that are not a closed set, and what labels are."""
    found = f"{pluralize(len(set(answers)), 'different answer')} of {pluralize(len(answers), 'row')}"
    most = f"at most {MOST_LABELS} labels of at most {LONGEST_LABEL} characters"
    return found, f"{most}, each of {ROWS_A_LABEL} rows in the mean"


def several_spellings(answers: Iterable[str]) -> list[LabelSpellings]:
    """List the labels that are spelt in several ways."""
    counts: dict[str, Counter[str]] = {}
    for answer in answers:
        counts.setdefault(_fold_label(answer), Counter())[answer] += 1
    ordered = (tuple(of.most_common()) for folded, of in counts.items() if folded and len(of) > 1)
    return [LabelSpellings(of[0][0], of) for of in ordered]


def commonest_spellings(labels: Sequence[LabelSpellings]) -> dict[str, str]:
    """Map each rarer spelling to the commonest one of its label."""
    return {spelt: label.commonest for label in labels for spelt, _ in label.counts[1:]}


def unify_spellings(answers: Sequence[str]) -> list[str]:
    """Return answers, each label in its commonest spelling."""
    commonest = commonest_spellings(several_spellings(answers))
    return [commonest.get(answer, answer) for answer in answers]


def _fold_label(label: str) -> str:
    """Fold what makes labels equal to metrics, and also what separates words or ends a label."""
    return re.sub(r"(?<=[^\W\d_])[\s_-]+(?=[^\W\d_])", "", normalize(label).rstrip(".,;:"))
