"""ROUGE-L of texts of several lines: the union of the common subsequences, line by line.

Invariant: the number is that of the `rouge-score` package without stemming, which takes every
line for a sentence. Its tokeniser keeps Latin letters and digits only: an item whose references have none is
not scored.
Source: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", section 3.2.
"""

from dataclasses import replace

from harness.metrics import Metric, mean_metric
from harness.records import Example, Output
from harness.spec import Task


def metric(task: Task) -> Metric:
    """Build summary-level ROUGE-L (F-measure) in [0, 1]: the best over the references, averaged."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeLsum"], use_stemmer=False)

    def score(output: Output, example: Example) -> float:
        return float(scorer.score_multi(example.references, output.text)["rougeLsum"].fmeasure)

    return replace(mean_metric("rougeLsum", score), reads=_is_read)


def _is_read(example: Example) -> bool:
    from rouge_score.tokenize import tokenize

    return any(tokenize(reference, None) for reference in example.references)
