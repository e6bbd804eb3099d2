"""Traits of rows by rules on their texts: the quality of answers, and edge cases among items.

Invariant: the same rows give the same scores. An edge case depends only on the questions and answers of
training and test, so `harness data check` counts what a comparison reports.
Source: Rae et al. 2021, arXiv:2112.11446, appendix A1 (repeated n-grams, stop rules); Marion et al. 2023,
arXiv:2309.04564 (rows kept by perplexity).
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from math import ceil, log
from statistics import median
from types import MappingProxyType
from typing import NamedTuple

from harness import records
from harness.data.column_roles import QuestionAndAnswers
from harness.data.guessed_columns import label_set
from harness.records import Example

_GRAM = 3  # words
_FAR, _FARTHEST = 3.0, 6.0  # robust standard deviations from the median: from here on, and at worst
_LEAST_SPREAD = 0.7  # of the logarithm of words: "yes" is normal among sentences of eight words
_NEARLY_ALL = 0.9  # of the answers; from here on a form is the usual one
_TAUGHT = 0.05  # of the answers; from here on refusals are meant to be learned
_FEWEST_LETTERS, _FEWEST_TOLD, _ONE_LANGUAGE = 60, 20, 0.8  # of a text; texts; share of texts in it
_ENDS = ("".join(records.MARKS[:3]), "\"'”’»)]}`*")
_UNWRITTEN = re.compile(r"\[object \w+\]|<[\w.]+ (?:object )?at 0x[0-9a-fA-F]+>")  # objects as text
THRESHOLDS = tuple(tenth / 10 for tenth in range(1, 10))


class AnswerQuality(NamedTuple):
    """Score of an answer in [0, 1], 1 minus the worst of its traits, and that trait; "" without fault."""

    score: float
    trait: str = ""


ScoreAnswers = Callable[[Sequence[QuestionAndAnswers]], list[AnswerQuality]]


def score_answers(
    rows: Sequence[QuestionAndAnswers],
    language_of: Callable[[str], str],
    bits: Sequence[float | None] = (),
    grades: Sequence[float | None] = (),
) -> list[AnswerQuality]:
    """Score the first answers of rows by the traits that docs/howto/check_data.md defines.

    `bits` are a model's bits per byte of each answer, `grades` a judge's, in [0, 1]; None if unknown.
    """
    answers = [row.answers[0] for row in rows]
    words = [records.list_words(answer.casefold()) for answer in answers]
    languages = [_tell_language(answer, language_of) for answer in answers]
    are_told = sum(map(bool, languages)) >= _FEWEST_TOLD
    row_languages = languages if are_told else [_tell_language(row.question, language_of) for row in rows]
    known_languages = list(filter(None, row_languages))
    majority, n_usual = Counter(known_languages).most_common(1)[0] if known_languages else ("", 0)
    is_usual = len(known_languages) >= _FEWEST_TOLD and n_usual >= _ONE_LANGUAGE * len(known_languages)
    refuses, has_end, repeated = [records.is_refusal(a) for a in answers], list[bool](), list[float]()
    for answer, answer_words in zip(answers, words, strict=True):
        bare_answer = answer.rstrip().rstrip(_ENDS[1])
        is_quoted = bare_answer != answer.rstrip()
        has_end.append(bare_answer.endswith(tuple(_ENDS[0])) or is_quoted or not answer.strip())
        grams = list(zip(*(answer_words[i:] for i in range(_GRAM)), strict=False))
        repeated.append(1 - len(set(grams)) / len(grams) if grams else 0.0)
    is_taught = sum(refuses) >= _TAUGHT * len(answers)
    share = sum(has_end) / max(1, len(answers))

    usually_repeated = median(repeated) if repeated else 0.0
    traits = {
        "repetition": [max(0.0, share - usually_repeated) for share in repeated],
        "length": _far([log(len(answer)) if answer else None for answer in words], abs, _LEAST_SPREAD),
        "language": [float(bool(is_usual and language and language != majority)) for language in languages],
        "refusal": [float(refused and not is_taught) for refused in refuses],
        "end": [0.0 if ends or share < _NEARLY_ALL else share for ends in has_end],
        "no word": [float(not any(map(str.isalnum, answer))) for answer in answers],
        "object": [sum(map(len, _UNWRITTEN.findall(a))) / max(1, len(a.strip())) for a in answers],
        "perplexity": _far(bits or [None] * len(answers), lambda above: above),
        "judge": [0.0 if grade is None else 1 - grade for grade in grades or [None] * len(answers)],
    }
    worst = [max((values[i], trait) for trait, values in traits.items()) for i in range(len(answers))]
    return [AnswerQuality(1 - value, trait if value else "") for value, trait in worst]


def _tell_language(text: str, language_of: Callable[[str], str]) -> str:
    """Name the language of a text by its words in lower case, without names; "" for a short text."""
    plain = " ".join(word for word in text.split() if not word[:1].isupper())
    return language_of(plain) if records.count_letters(plain) >= _FEWEST_LETTERS else ""


def _far(
    values: Sequence[float | None], distance: Callable[[float], float], least_spread: float = 0.0
) -> list[float]:
    numbers = [value for value in values if value is not None]
    middle = median(numbers) if numbers else 0.0
    spread = max(least_spread, 1.4826 * median(abs(value - middle) for value in numbers) if numbers else 0.0)
    if not spread:
        return [0.0] * len(values)
    sigmas = [0.0 if value is None else distance(value - middle) / spread for value in values]
    return [min(1.0, max(0.0, (sigma - _FAR) / (_FARTHEST - _FAR))) for sigma in sigmas]


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
    """Return a test of each case in `RULES` for items; none without questions."""
    is_closed = records.has_closed_labels([*train, *test])

    def label_of(row: Example) -> str:
        return "".join(row.references[:1]) if has_labels or (is_closed and row.choices) else ""

    labels, slices = Counter(map(label_of, train)), Counter(row.slice for row in train)
    questions = Counter(row.prompt for row in train)
    words = Counter(word for row in train for word in _words(row))

    def is_rare(row: Example) -> bool:
        groups = ((labels, label_of(row)), (slices, row.slice))
        is_few = any(name and not counts.keys() <= {""} and counts[name] < _FEWEST for counts, name in groups)
        # The row itself does not count as a row with its words.
        row_words, n_itself = _words(row), questions[row.prompt]
        n_unseen = sum(words[word] <= n_itself for word in row_words)
        return is_few or bool(words and row_words and n_unseen >= _UNSEEN * len(row_words))

    def handles_error(row: Example) -> bool:
        answer = "" if has_labels or row.choices else "".join(row.references[:1])
        declines = records.is_refusal(answer) or answer.rstrip().endswith(tuple(records.MARKS[1]))
        return declines or not _words(row) or "\ufffd" in row.prompt or records.reports_error(row.prompt)

    lengths = sorted(len(records.pieces(row.prompt)) for row in test or train)
    if not any(lengths):
        return {}
    longest = lengths[ceil(_LONG * len(lengths)) - 1]
    is_long, negates = (
        (lambda row: len(records.pieces(row.prompt)) > longest),
        (lambda row: records.count_negations(row.prompt) > 0),
    )
    return dict(zip(RULES, (is_rare, is_long, negates, handles_error), strict=True))


def reported_cases(train: Sequence[Example], test: Sequence[Example]) -> dict[str, frozenset[str]]:
    """Return the ids of the test items of each case that a comparison reports."""
    answers, questions = ("".join(row.references[:1]) for row in train), (row.prompt for row in train)
    tests = edge_tests(train, test, has_labels=bool(label_set(answers, questions=questions)))
    ids_by_case = {case: [row.id for row in test if is_case(row)] for case, is_case in tests.items()}
    return {case: frozenset(ids) for case, ids in ids_by_case.items() if is_reported(len(ids), len(test))}


def is_reported(n: int, n_test: int) -> bool:
    """Tell whether a comparison reports a case of n test items."""
    return FEWEST_ITEMS <= n <= LARGEST_SHARE * n_test


def _words(row: Example) -> set[str]:
    return set(records.list_words(row.prompt.casefold()))
