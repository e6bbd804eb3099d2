"""Longest common subsequence of the words of the answer and of the nearest reference.

Invariant: the number is that of the `rouge-score` package without stemming. Its tokeniser
keeps Latin letters and digits only: an item whose references have none is not scored.
Source: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", section 3.
"""

from dataclasses import replace

from harness.metrics import Metric, mean_metric
from harness.records import Example, Output
from harness.spec import Task


def metric(task: Task) -> Metric:
    """Build ROUGE-L (F-measure) in [0, 1]: the best over the references, averaged over items."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=False)

    def score(output: Output, example: Example) -> float:
        return float(scorer.score_multi(example.references, output.text)["rougeL"].fmeasure)

    return replace(mean_metric("rougeL", score), reads=_is_read)


def _is_read(example: Example) -> bool:
    from rouge_score.tokenize import tokenize

    return any(tokenize(reference, None) for reference in example.references)
