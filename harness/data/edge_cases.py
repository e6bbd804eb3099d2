"""Edge cases among items: rare, long, negative and error-handling rows, by rules on their texts.

Invariant: a case depends on the questions and answers of training and test alone, so `harness data check`
counts what a comparison reports. A row may be several cases, and its own slice stays as it is.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from math import ceil
from types import MappingProxyType

from harness.data.guessed_columns import label_set
from harness.records import (
    MARKS,
    Example,
    has_closed_labels,
    has_negation,
    is_refusal,
    list_words,
    pieces,
    reports_error,
)

_FEWEST = 5  # training rows of an answer or a slice that is not rare
_UNSEEN = 0.5  # share of a question's words
_LONG = 0.9  # of the questions are not longer
FEWEST_ITEMS, LARGEST_SHARE = 5, 0.5  # of test, from which and up to which a case is reported
RULES = MappingProxyType(
    {
        "edge: rare": f"under {_FEWEST} training rows have its label or slice, or none half of its words",
        "edge: long": "the question is longer than nine in ten, of test where there is one",
        "edge: negative": "the question negates something, in one of ten languages",
        "edge: error handling": "the question names an error or has no word, or the answer refuses or asks",
    }
)


def edge_tests(
    train: Sequence[Example], test: Sequence[Example], *, has_labels: bool = False
) -> dict[str, Callable[[Example], bool]]:
    """Return what tells whether an item is a case, for each of `RULES`.

    Questions are long by those of training without a test. There is no case where nothing is asked. All
    answers are labels if it `has_labels`, else those of the rows that choose from one closed set.
    """
    is_closed = has_closed_labels([*train, *test])

    def label_of(row: Example) -> str:
        return _answer_of(row) if has_labels or (is_closed and row.choices) else ""

    labels, slices = Counter(map(label_of, train)), Counter(row.slice for row in train)
    questions = Counter(row.prompt for row in train)
    words = Counter(word for row in train for word in _words(row))

    def is_rare(row: Example) -> bool:
        named = ((labels, label_of(row)), (slices, row.slice))
        is_few = any(name and not of.keys() <= {""} and of[name] < _FEWEST for of, name in named)
        own, n_itself = _words(row), questions[row.prompt]  # a training row does not show its own words
        n_unseen = sum(words[word] <= n_itself for word in own)
        return is_few or bool(words and own and n_unseen >= _UNSEEN * len(own))

    def handles_error(row: Example) -> bool:
        answer = "" if has_labels or row.choices else _answer_of(row)
        declines = is_refusal(answer) or answer.rstrip().endswith(tuple(MARKS[1]))
        return declines or not _words(row) or "\ufffd" in row.prompt or reports_error(row.prompt)

    lengths = sorted(len(pieces(row.prompt)) for row in test or train)
    if not any(lengths):
        return {}
    longest = lengths[ceil(_LONG * len(lengths)) - 1]
    tests: tuple[Callable[[Example], bool], ...] = (
        is_rare,
        lambda row: len(pieces(row.prompt)) > longest,
        lambda row: has_negation(row.prompt),
        handles_error,
    )
    return dict(zip(RULES, tests, strict=True))


def reported_cases(train: Sequence[Example], test: Sequence[Example]) -> dict[str, frozenset[str]]:
    """Return the ids of the test items of each case that a comparison reports.

    A case of few items shows nothing, and one that most items are is no edge.
    """
    answers, questions = map(_answer_of, train), (row.prompt for row in train)
    tests = edge_tests(train, test, has_labels=bool(label_set(answers, questions=questions)))
    found = {case: [one.id for one in test if is_case(one)] for case, is_case in tests.items()}
    return {case: frozenset(ids) for case, ids in found.items() if is_reported(len(ids), len(test))}


def is_reported(n: int, n_test: int) -> bool:
    """Tell whether a comparison reports a case of n test items."""
    return FEWEST_ITEMS <= n <= LARGEST_SHARE * n_test


def _answer_of(row: Example) -> str:
    return "".join(row.references[:1])


def _words(row: Example) -> set[str]:
    return set(list_words(row.prompt.casefold()))
