"""Overlap of the answer with the nearest reference: by default their longest common subsequence of words.

Invariant: for English the number is that of the `rouge-score` package without stemming. In scripts without
blanks each letter is a word. An item whose references have no word is not scored.
Source: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", sections 2, 3 and 3.2.
"""

from dataclasses import replace
from typing import Literal

from harness.metrics import Metric, mean_metric
from harness.records import Example, Output, fold_text, list_words
from harness.spec import Spec, Task

WORDS_ARE_LETTERS = True  # where references are of a script without blanks


class Params(Spec):
    """`kind: rougeLsum` compares texts of several lines line by line, `rouge1` and `rouge2` their n-grams."""

    kind: Literal["rougeL", "rougeLsum", "rouge1", "rouge2"] = "rougeL"


def metric(task: Task, params: Params) -> Metric:
    """Build the F-measure in [0, 1]: the best over the references, averaged over items."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([params.kind], tokenizer=_Tokenizer())

    def score(output: Output, example: Example) -> float:
        return float(scorer.score_multi(example.references, output.text)[params.kind].fmeasure)

    def is_read(example: Example) -> bool:
        return any(list_words(fold_text(reference)) for reference in example.references)

    return replace(mean_metric("rouge", score), reads=is_read)


class _Tokenizer:
    """Tokeniser as the package takes one."""

    def tokenize(self, text: str) -> list[str]:
        """List the words of a text as they are compared."""
        return list_words(fold_text(text))
