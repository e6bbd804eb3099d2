"""Metrics of how much an answer overlaps with the references: words, n-grams and letters.

Invariant: with equal weights a corpus scores as by sacrebleu, and a text as by `rouge-score` without
stemming. If a reference has letters of a script without blanks (Chinese, Thai …), each letter is a word.
"""

import re
import string
import unicodedata
from collections import Counter
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from types import SimpleNamespace
from typing import Literal

import numpy as np

from harness.metrics import Array, Metric, Parts, mean_metric, ratio
from harness.records import (
    Example,
    Output,
    compose_letters,
    fold_text,
    is_unspaced,
    list_words,
    split_into_letters,
)
from harness.spec import Spec, Task


class Bleu:
    """Corpus BLEU of the answers against the references.

    Invariant: with equal weights the number is sacrebleu's `corpus_bleu` of composed texts
    (`records.compose_letters`) divided by 100 (13a tokenisation, exponential smoothing, closest reference
    length). References in a script without blanks are cut into letters as by its tokeniser `zh`, also
    Japanese and Thai.
    Source: Post 2018, arXiv:1804.08771; smoothing: Chen & Cherry 2014, method 3.
    """

    SHORT = "BLEU"
    WORDS_ARE_LETTERS = True  # where references are of a script without blanks

    @staticmethod
    def metric(task: Task) -> Metric:
        """Build BLEU in [0, 1]; the parts are the corpus statistics of one item."""
        import sacrebleu

        # Effective order changes only the sentence's own score, which is not used, and stops a warning.
        by_words = sacrebleu.BLEU(effective_order=True)
        by_letters = sacrebleu.BLEU(effective_order=True, tokenize="zh")

        def statistics(answer: str, example: Example) -> Parts:
            scorer, texts = by_words, [*map(compose_letters, (answer, *example.references))]
            if is_unspaced(example.references):
                scorer, texts = by_letters, [*map(split_into_letters, texts)]
            stats = scorer.sentence_score(texts[0], texts[1:])
            return tuple(map(float, (stats.sys_len, stats.ref_len, *stats.counts, *stats.totals)))

        counts = (f"{count}{n}" for count in ("correct", "total") for n in (1, 2, 3, 4))
        signature = f"case:mixed|eff:no|tok:13a|smooth:exp|version:{sacrebleu.__version__}"
        score = lambda output, example: statistics(output.text, example)  # noqa: E731
        names = ("hyp_len", "ref_len", *counts)
        return Metric("bleu", True, (0.0, 1.0), names, score, _bleu, partial(statistics, ""), signature)


def _bleu(parts: Array, weights: Array) -> Array:
    sums = weights @ parts  # (…, 10)
    hyp, ref, correct, total = sums[..., 0], sums[..., 1], sums[..., 2:6], sums[..., 6:10]
    # The i-th order without a match is replaced by 1 / (2^i · total), counting i from 1.
    missing = correct == 0
    halvings = np.cumsum(missing, axis=-1)
    smoothed = ratio(np.ones_like(total), 2.0**halvings * total)
    precision = np.where(missing, smoothed, ratio(correct, total))  # (…, 4)
    scored = (correct > 0).any(axis=-1) & (total > 0).all(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        brevity = np.exp(np.minimum(0.0, 1 - ref / hyp))
        bleu = brevity * np.exp(np.log(precision).mean(axis=-1))
    return np.where(scored, np.minimum(bleu, 1.0), 0.0)


_LENGTHS = range(1, 7)
_BETA_SQUARED = 4.0


class Chrf:
    """Corpus chrF of the answers against the references: overlap of character n-grams.

    Invariant: with equal weights the number is sacrebleu's `corpus_chrf` of composed texts
    (`records.compose_letters`) divided by 100 (n up to 6, no words, recall counts twice, no white space).
    Source: Popović 2015, "chrF: character n-gram F-score for automatic MT evaluation", formula 1.
    """

    @staticmethod
    def metric(task: Task) -> Metric:
        """Build chrF in [0, 1]; the parts are the n-gram counts of one item and its nearest reference."""
        names = tuple(f"{count}{n}" for n in _LENGTHS for count in ("said", "expected", "shared"))
        signature = f"case:mixed|eff:yes|nc:6|nw:0|space:no|version:{version('sacrebleu')}"
        worst = lambda example: _count_ngrams("", example.references[0])  # noqa: E731
        return Metric("chrf", True, (0.0, 1.0), names, _score_ngrams, _chrf, worst, signature)


def _score_ngrams(output: Output, example: Example) -> Parts:
    counted = [_count_ngrams(output.text, reference) for reference in example.references]
    scores = [float(_chrf(np.array([parts]), np.ones(1))) for parts in counted]
    return counted[scores.index(max(scores))]


def _count_ngrams(answer: str, reference: str) -> Parts:
    """Count n-grams of answer, reference and both; none of a length that the reference is too short for."""
    counts: list[float] = []
    for n in _LENGTHS:
        ours, theirs = _ngrams(answer, n), _ngrams(reference, n)
        n_shared = (ours & theirs).total()
        counts += (float(ours.total() if theirs else 0), float(theirs.total()), float(n_shared))
    return tuple(counts)


def _ngrams(text: str, n: int) -> Counter[str]:
    letters = "".join(compose_letters(text).split())
    return Counter(letters[i : i + n] for i in range(len(letters) - n + 1))


def _chrf(parts: Array, weights: Array) -> Array:
    sums = weights @ parts  # (…, 18)
    n_answer, n_reference, n_shared = sums[..., 0::3], sums[..., 1::3], sums[..., 2::3]  # (…, 6)
    counts = (n_answer > 0) & (n_reference > 0)
    n = np.maximum(counts.sum(axis=-1), 1)
    precision = np.divide(n_shared, n_answer, out=np.zeros_like(n_shared), where=counts).sum(axis=-1) / n
    recall = np.divide(n_shared, n_reference, out=np.zeros_like(n_shared), where=counts).sum(axis=-1) / n
    weighted = _BETA_SQUARED * precision + recall
    f = (1 + _BETA_SQUARED) * precision * recall
    return np.asarray(np.divide(f, weighted, out=np.zeros_like(f), where=weighted > 0))


class Rouge:
    """Overlap of the answer with the nearest reference: by default their longest common subsequence of words.

    An item whose references have no word is not scored.
    Source: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", sections 2, 3 and 3.2.
    """

    WORDS_ARE_LETTERS = True

    class Params(Spec):
        """`kind: rougeLsum` compares texts of several lines line by line, `rouge1` and `rouge2` n-grams."""

        kind: Literal["rougeL", "rougeLsum", "rouge1", "rouge2"] = "rougeL"

    @staticmethod
    def metric(task: Task, params: Params) -> Metric:
        """Build the F-measure in [0, 1]: the best over the references, averaged over items."""
        from rouge_score.rouge_scorer import RougeScorer

        def words(text: str) -> list[str]:
            return list_words(fold_text(text))

        scorer = RougeScorer([params.kind], tokenizer=SimpleNamespace(tokenize=words))

        def score(output: Output, example: Example) -> float:
            return float(scorer.score_multi(example.references, output.text)[params.kind].fmeasure)

        return replace(mean_metric("rouge", score), reads=lambda example: any(map(words, example.references)))


_ARTICLES = re.compile(r"\b(a|an|the)\b")


def _words(text: str, by_letters: bool) -> list[str]:
    folded = split_into_letters(fold_text(text)) if by_letters else fold_text(text)
    marks = {sign for sign in set(folded) if unicodedata.category(sign).startswith("P")}
    kept_text = "".join(sign for sign in folded if sign not in marks and sign not in string.punctuation)
    return _ARTICLES.sub(" ", kept_text).split()


def _f1(answer: list[str], reference: list[str]) -> float:
    if not answer or not reference:
        return float(answer == reference)
    return 2 * (Counter(answer) & Counter(reference)).total() / (len(answer) + len(reference))


class TokenF1:
    """Overlap of the words of the answer and of the nearest reference.

    Articles, punctuation of any script and what `records.fold_text` folds never count.
    Source: Rajpurkar et al. 2016, arXiv:1606.05250, section 6.1 (SQuAD's F1); by letters as in MLQA's mixed
    segmentation (Lewis et al. 2020, arXiv:1910.07475).
    """

    SHORT = "F1"
    WORDS_ARE_LETTERS = True

    @staticmethod
    def _score(output: Output, example: Example) -> float:
        by_letters = is_unspaced(example.references)
        answer = _words(output.text, by_letters)
        references = (_words(reference, by_letters) for reference in example.references)
        return max((_f1(answer, reference) for reference in references), default=0.0)

    metric = mean_metric("token_f1", _score)


PLUGINS = {"bleu": Bleu, "chrf": Chrf, "rouge": Rouge, "token_f1": TokenF1}
