"""Logistic regression on texts embedded by a frozen model.

Source: Reimers and Gurevych 2019 (arXiv:1908.10084) for sentence embeddings.
"""

import json
import time
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from pydantic import Field

from harness.errors import Problem
from harness.plugins import Method, MethodChecks
from harness.records import TrainingRecord
from harness.spec import Recipe, Spec
from harness.training import FitContext, Weights, heads


class Params(Spec):
    """`encoder` is a sentence-transformers folder or id; by default the base's mean hidden state is used.

    `C` is scikit-learn's inverse regularisation strength. Texts are cut at `max_length` tokens.
    """

    encoder: str | None = None
    C: float = Field(10.0, gt=0)
    max_length: int = Field(512, ge=8)


def problems(recipe: Recipe, base: Any, where: str) -> Iterator[Problem]:
    """Yield the problems of the named encoder."""
    params = Params(**recipe.params)
    if params.encoder and find_spec("sentence_transformers") is None:
        step = "pip install 'harness-evals[dense]', or leave encoder out"
        yield Problem(where, "no package sentence-transformers", "the package that embeds texts", step)
    yield from heads.encoder_problems(params)


def fit(context: FitContext, params: Params) -> Weights:
    """Embed the training texts, fit the classifier, and store its coefficients."""
    from sklearn.linear_model import LogisticRegression

    start, (texts, indices, labels) = time.perf_counter(), heads.label_texts(context.train)
    embed = heads.embedder(params.encoder, context.source, context.machine, params.max_length)
    fitted = LogisticRegression(C=params.C, max_iter=2000).fit(embed(texts).numpy(), indices)
    content = {
        "labels": labels,
        "encoder": params.encoder,
        "max_length": params.max_length,
        "coefficients": fitted.coef_.tolist(),
        "intercepts": fitted.intercept_.tolist(),
    }
    folder = context.folder / heads.EMBEDDING
    folder.mkdir()
    (folder / "embedding.json").write_text(json.dumps(content, ensure_ascii=False), "utf-8")
    made = TrainingRecord(wall_s=round(time.perf_counter() - start, 3), n_examples=len(texts))
    own = heads.head_digest(folder, heads.encoder_of(params.encoder, context.source))
    return Weights("embedding", own, context.folder, made)


METHOD = Method(
    params=Params,
    fit=fit,
    makes="embedding",
    draws_from="train",
    loops=("heads",),
    reads=heads.encoder_digest,
    checks=MethodChecks(problems),
)
