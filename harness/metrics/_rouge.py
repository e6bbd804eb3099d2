"""ROUGE variants of the `rouge-score` package, without stemming, over words of any script.

Invariant: of English the words are those of the package's own tokeniser, which drops all other letters; an
item whose references have no word is not scored.
"""

from dataclasses import replace

from harness.metrics import Metric, mean_metric
from harness.records import Example, Output, fold_text, list_words


class _Tokenizer:
    """Tokeniser as the package takes one."""

    def tokenize(self, text: str) -> list[str]:
        """List the words of a text as they are compared."""
        return list_words(fold_text(text))


def build_rouge(variant: str) -> Metric:
    """Build a variant's F-measure in [0, 1]: the best over the references, averaged over items."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([variant], tokenizer=_Tokenizer())

    def score(output: Output, example: Example) -> float:
        return float(scorer.score_multi(example.references, output.text)[variant].fmeasure)

    return replace(mean_metric(variant, score), reads=_is_read)


def _is_read(example: Example) -> bool:
    return any(list_words(fold_text(reference)) for reference in example.references)
