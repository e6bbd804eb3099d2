"""ROUGE variants of the `rouge-score` package, without stemming.

Invariant: its tokeniser keeps Latin letters and digits only, so an item whose references have none is not
scored.
"""

from dataclasses import replace

from harness.metrics import Metric, mean_metric
from harness.records import Example, Output


def build_rouge(variant: str) -> Metric:
    """Build a variant's F-measure in [0, 1]: the best over the references, averaged over items."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([variant], use_stemmer=False)

    def score(output: Output, example: Example) -> float:
        return float(scorer.score_multi(example.references, output.text)[variant].fmeasure)

    return replace(mean_metric(variant, score), reads=_is_read)


def _is_read(example: Example) -> bool:
    from rouge_score.tokenize import tokenize

    return any(tokenize(reference, None) for reference in example.references)
