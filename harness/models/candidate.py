"""Candidates: what generates and scores text, and candidates without a language model.

Invariant: candidates take token ids, and only `encode_all` makes them from text; without a language model
they are UTF-8 bytes.
"""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from harness.models.batching import Pair, Tokens
from harness.models.later import Tokenizer
from harness.models.tokenization import encode_all
from harness.records import (
    WORD,
    Encoded,
    Likelihood,
    Limits,
    Message,
    Output,
    PromptText,
    digest,
    split_into_grams,
)


class Candidate:
    """Model that is evaluated; it encodes prompts by its tokenizer unless it overrides `encode_all`."""

    weights_digest: str
    engine: str
    layout_digest: str
    max_context: int
    tokenizer: Tokenizer

    def encode_all(self, prompts: Sequence[PromptText]) -> list[Encoded]:
        """Convert messages and their continuations into token ids, in order."""
        return encode_all(self.tokenizer, prompts)

    def encode(
        self, messages: Sequence[Message], continuation: str = "", *, chat_template: bool = True
    ) -> Encoded:
        """Convert messages and their continuation into token ids."""
        return self.encode_all([PromptText(messages, continuation, chat_template)])[0]

    def generate(self, prompts: Sequence[Tokens], limits: Limits, seeds: Sequence[int] = ()) -> list[Output]:
        """Answer each prompt, in order: greedily, or at the limits' temperature by the prompt's seed."""
        raise NotImplementedError

    def loglikelihood(self, pairs: Sequence[Pair]) -> list[Likelihood]:
        """Score each (context, continuation), in order; several may begin alike."""
        raise NotImplementedError


class TextTable(NamedTuple):
    """Answer of a text classifier to one text: its labels and their log-probabilities in nats."""

    labels: tuple[str, ...]
    logprobs: tuple[float, ...]


class TextCandidate(Candidate):
    """Candidate without a language model, whose token ids are UTF-8 bytes: it answers with the best label.

    `predict` maps prompts to tables of labels. A label that a table lacks has log-probability −1e9.
    """

    engine = "text"
    max_context = 1 << 30

    def __init__(self, predict: Callable[[Sequence[str]], list[TextTable]], weights_digest: str) -> None:
        self._predict, self.weights_digest = predict, weights_digest
        self.layout_digest = digest("text")

    def encode_all(self, prompts: Sequence[PromptText]) -> list[Encoded]:
        """Encode each last user message, and the continuation, as bytes."""
        users = [[m["content"] for m in prompt.messages if m["role"] == "user"] or [""] for prompt in prompts]
        return [
            Encoded(tuple(texts[-1].encode()), tuple(prompt.continuation.encode()))
            for texts, prompt in zip(users, prompts, strict=True)
        ]

    def generate(self, prompts: Sequence[Tokens], limits: Limits, seeds: Sequence[int] = ()) -> list[Output]:
        """Answer each prompt with its best label, which no seed changes."""
        start = time.perf_counter()
        tables = self._predict([bytes(p).decode() for p in prompts])
        share = (time.perf_counter() - start) / max(len(prompts), 1)
        best = [max(zip(table.logprobs, table.labels, strict=True))[1] for table in tables]
        return [
            Output(label, n_prompt_tokens=len(prompt), n_output_tokens=1, compute_s=share)
            for prompt, label in zip(prompts, best, strict=True)
        ]

    def loglikelihood(self, pairs: Sequence[Pair]) -> list[Likelihood]:
        """Return the log-probability of each label, given its text."""
        tables = self._predict([bytes(context).decode() for context, _ in pairs])
        likelihoods = []
        for (_, continuation), table in zip(pairs, tables, strict=True):
            logprobs = dict(zip(table.labels, table.logprobs, strict=True))
            # Without a chat template a choice follows its question after a space.
            logprob = logprobs.get(bytes(continuation).decode().removeprefix(" "), -1e9)
            likelihoods.append(Likelihood(logprob, logprob == max(table.logprobs)))
        return likelihoods


def classifier(folder: Path, weights_digest: str) -> TextCandidate:
    """Fit the classifier whose texts and labels are in a folder, and return it as a candidate."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    content = json.loads((folder / "classifier.json").read_text())
    params = content["params"]
    cut, words = (split_into_grams, {"token_pattern": WORD}) if content.get("grams") else (str, {})
    n_grams = tuple(params["ngram_range"])
    vectorizer = TfidfVectorizer(ngram_range=n_grams, min_df=params["min_df"], sublinear_tf=True, **words)
    model = make_pipeline(vectorizer, LogisticRegression(C=params["C"], max_iter=1000))
    model.fit(list(map(cut, content["texts"])), content["labels"])
    labels = tuple(map(str, model.classes_))

    def predict(texts: Sequence[str]) -> list[TextTable]:
        rows = model.predict_log_proba(list(map(cut, texts)))
        return [TextTable(labels, tuple(map(float, row))) for row in rows]

    return TextCandidate(predict, weights_digest)
