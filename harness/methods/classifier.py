"""TF-IDF and logistic regression: the cheapest alternative for closed label sets.

Invariant: texts and labels are stored, not a pickle; opening the weights fits the classifier again.
"""

import json
import time

from pydantic import Field

from harness.plugins import Method
from harness.records import TrainingRecord, digest, is_unspaced
from harness.spec import Spec
from harness.training import FitContext, Weights
from harness.training.heads import label_texts


class Params(Spec):
    """scikit-learn's names: `ngram_range` in words, `C` the inverse regularisation strength.

    In scripts without spaces, n-grams of letters take the place of words.
    """

    ngram_range: tuple[int, int] = (1, 2)
    C: float = Field(10.0, gt=0)
    min_df: int = Field(1, ge=1)


def fit(context: FitContext, params: Params) -> Weights:
    """Store the training texts that have a closed set of choices."""
    start = time.perf_counter()
    texts, indices, known = label_texts(context.train)
    content = {
        "texts": texts,
        "labels": [known[i] for i in indices],
        "params": params.model_dump(mode="json"),
        **({"grams": True} if is_unspaced(texts) else {}),
    }
    (context.folder / "classifier.json").write_text(json.dumps(content, ensure_ascii=False))
    made = TrainingRecord(wall_s=round(time.perf_counter() - start, 3), n_examples=len(texts))
    return Weights("classifier", digest(content), context.folder, made)


METHOD = Method(
    params=Params,
    fit=fit,
    makes="classifier",
    draws_from="train",
    proposal=lambda situation: {} if situation.closed_labels else None,
)
