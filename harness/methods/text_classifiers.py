"""Logistic regression on texts, for closed label sets: on TF-IDF or on embeddings of a frozen model."""

import json
import time
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from pydantic import Field

from harness.errors import Problem
from harness.plugins import Method
from harness.records import TrainingRecord, digest, is_unspaced
from harness.spec import Recipe, Spec
from harness.training import FitContext, Weights, heads


class Classifier:
    """TF-IDF and logistic regression: the cheapest alternative for closed label sets.

    Invariant: texts and labels are stored, not a pickle; opening the weights fits the classifier again.
    """

    class Params(Spec):
        """scikit-learn's names: `ngram_range` in words, `C` the inverse regularisation strength.

        In scripts without spaces, n-grams of letters take the place of words.
        """

        ngram_range: tuple[int, int] = (1, 2)
        C: float = Field(10.0, gt=0)
        min_df: int = Field(1, ge=1)

    @staticmethod
    def _fit(context: FitContext, params: Params) -> Weights:
        start = time.perf_counter()
        texts, indices, labels = heads.label_texts(context.train)
        content = {
            "texts": texts,
            "labels": [labels[i] for i in indices],
            "params": params.model_dump(mode="json"),
            **({"grams": True} if is_unspaced(texts) else {}),
        }
        (context.folder / "classifier.json").write_text(json.dumps(content, ensure_ascii=False))
        record = TrainingRecord(wall_s=round(time.perf_counter() - start, 3)).add(n_examples=len(texts))
        return Weights("classifier", digest(content), context.folder, record)

    METHOD = Method(
        params=Params,
        fit=_fit,
        makes="classifier",
        draws_from="train",
        proposal=lambda situation: {} if situation.closed_labels else None,
    )


class Embedding:
    """Logistic regression on texts embedded by a frozen model.

    Source: Reimers and Gurevych 2019 (arXiv:1908.10084) for sentence embeddings.
    """

    class Params(Spec):
        """`encoder` is a sentence-transformers folder or id; by default the base's mean hidden state is used.

        `C` is scikit-learn's inverse regularisation strength. Texts are cut at `max_length` tokens.
        """

        encoder: str | None = None
        C: float = Field(10.0, gt=0)
        max_length: int = Field(512, ge=8)

    @staticmethod
    def _problems(recipe: Recipe, base: Any, where: str) -> Iterator[Problem]:
        params = Embedding.Params(**recipe.params)
        if params.encoder and find_spec("sentence_transformers") is None:
            step = "pip install 'harness-evals[dense]', or leave encoder out"
            yield Problem(where, "no package sentence-transformers", "the package that embeds texts", step)
        yield from heads.encoder_problems(params)

    @staticmethod
    def _fit(context: FitContext, params: Params) -> Weights:
        from sklearn.linear_model import LogisticRegression

        start, (texts, indices, labels) = time.perf_counter(), heads.label_texts(context.train)
        embed = heads.embedder(params.encoder, context.source, context.machine, params.max_length)
        model = LogisticRegression(C=params.C, max_iter=2000).fit(embed(texts).numpy(), indices)
        content = {
            "labels": labels,
            "encoder": params.encoder,
            "max_length": params.max_length,
            "coefficients": model.coef_.tolist(),
            "intercepts": model.intercept_.tolist(),
        }
        folder = context.folder / heads.EMBEDDING
        folder.mkdir()
        (folder / "embedding.json").write_text(json.dumps(content, ensure_ascii=False), "utf-8")
        record = TrainingRecord(wall_s=round(time.perf_counter() - start, 3)).add(n_examples=len(texts))
        weights_digest = heads.head_digest(folder, heads.encoder_of(params.encoder, context.source))
        return Weights("embedding", weights_digest, context.folder, record)

    METHOD = Method(
        params=Params,
        fit=_fit,
        makes="embedding",
        draws_from="train",
        loops=("heads",),
        reads=heads.encoder_digest,
        problems=_problems,
    )


PLUGINS = {"classifier": Classifier, "embedding": Embedding}
