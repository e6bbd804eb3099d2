"""Corpus BLEU of the answers against the references.

Invariant: with equal weights the number is sacrebleu's `corpus_bleu` of composed texts
(`records.compose_letters`) divided by 100 (13a tokenisation, exponential smoothing, closest reference
length). References in a script without blanks are cut into letters as by its tokeniser `zh`, also Japanese
and Thai.
Source: Post 2018, arXiv:1804.08771; smoothing: Chen & Cherry 2014, method 3.
"""

from functools import partial

import numpy as np

from harness.metrics import Array, Metric, Parts, ratio
from harness.records import Example, Output, compose_letters, is_unspaced, split_into_letters
from harness.spec import Task

_ORDERS = (1, 2, 3, 4)
WORDS_ARE_LETTERS = True  # where references are of a script without blanks
_NAMES = ("hyp_len", "ref_len", *(f"correct{n}" for n in _ORDERS), *(f"total{n}" for n in _ORDERS))

SHORT = "BLEU"


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
        found = scorer.sentence_score(texts[0], texts[1:])
        return tuple(map(float, (found.sys_len, found.ref_len, *found.counts, *found.totals)))

    def score(output: Output, example: Example) -> Parts:
        return statistics(output.text, example)

    signature = f"case:mixed|eff:no|tok:13a|smooth:exp|version:{sacrebleu.__version__}"
    worst = partial(statistics, "")
    return Metric("bleu", True, (0.0, 1.0), _NAMES, score, _aggregate, worst, signature)


def _aggregate(parts: Array, weights: Array) -> Array:
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
