"""Retrieve passages of the task's documents and put them in front of the question.

Invariant: passages come only from the documents, best first; ties keep the order of the documents.
Source: Lewis et al. 2020, arXiv:2005.11401; BM25 by Robertson & Zaragoza 2009 (bm25s, Lucene's variant);
dense retrieval by Reimers & Gurevych 2019, arXiv:1908.10084; reranking by a cross-encoder by Nogueira & Cho
2019, arXiv:1901.04085.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal

from pydantic import Field, model_validator

from harness.data.contamination import load_encoder
from harness.errors import UserError
from harness.prompting import Mark, PromptingContext, Step, fold_widths, with_context
from harness.provenance import source_digest as source_digest
from harness.records import WORD, Document, Example, pieces, split_into_grams
from harness.spec import Spec

NEEDS = ("documents",)
MODELS = ("model", "rerank")  # params that name weights


class Params(Spec):
    """`top_k` passages of at most `chunk_words` words; adjacent ones share `chunk_overlap` words.

    In scripts without blanks two letters of Han or kana, or three of Thai, Lao, Burmese or Khmer, count as a
    word. `retriever: dense` compares embeddings of `model`, a sentence-transformers id or folder. `rerank`
    names a cross-encoder of sentence-transformers, which reads the question with each of the retriever's
    first `rerank_from` passages, 20 if not written, and chooses the `top_k` of them. With `mark: number`
    passages begin with `[1]`, `[2]`, …, with `mark: id` with the id of their document, for answers that cite.
    """

    retriever: Literal["bm25", "dense"] = "bm25"
    model: str | None = None
    top_k: int = Field(2, ge=1)
    chunk_words: int = Field(120, ge=1)
    chunk_overlap: int = Field(20, ge=0)
    rerank: str | None = None
    rerank_from: int | None = Field(None, ge=1)
    mark: Mark | None = None

    @model_validator(mode="after")
    def _check(self) -> "Params":
        if self.chunk_overlap >= self.chunk_words:
            message = f"chunk_overlap {self.chunk_overlap} is not below chunk_words {self.chunk_words}"
            raise ValueError(message)
        if self.retriever == "dense" and not self.model:
            raise ValueError("retriever dense without model: name a sentence-transformers id or folder")
        if self.retriever != "dense" and self.model:
            step = "set retriever: dense, or leave it out"
            raise ValueError(f"a model with retriever {self.retriever}: {step}")
        if self.rerank_from and not self.rerank:
            raise ValueError("rerank_from without rerank: name a cross-encoder, or leave it out")
        if self.rerank and self.n_reranked < self.top_k:
            raise ValueError(f"rerank_from {self.n_reranked} is below top_k {self.top_k}, which it chooses")
        return self

    @property
    def n_reranked(self) -> int:
        """Number of passages that the cross-encoder reads with a question."""
        return self.rerank_from or 20


def build(context: PromptingContext, params: Params) -> Step:
    """Chunk and index the documents once and return the prompting; UserError without documents."""
    if not context.documents:
        found, expected = "prompting rag without documents", "documents to retrieve from"
        step = "give the task `data: {documents: …}`, or leave rag out"
        raise UserError(f"task {context.task.name}", found, expected, step)
    chunks = passages(context, params)
    texts = [f"{chunk.title} {chunk.text}" for chunk in chunks]
    where, reranker = f"task {context.task.name}", None
    if params.model is None:
        import bm25s

        options = {"stopwords": "en", "return_ids": False, "show_progress": False}
        words = partial(bm25s.tokenize, token_pattern=WORD, **options)
        index = bm25s.BM25(method="lucene")
        index.index(words([split_into_grams(fold_widths(text)) for text in texts]), show_progress=False)

        def score(query: str) -> list[float]:
            query_words = words([split_into_grams(fold_widths(query))])[0]
            return list(map(float, index.get_scores(query_words))) if query_words else [0.0] * len(texts)
    elif context.dry_run:

        def score(query: str) -> list[float]:  # takes the first passages
            return [0.0] * len(texts)
    else:
        dense = f"{where}: retriever dense"
        encoder = load_encoder(params.model, "SentenceTransformer", dense, "use retriever: bm25")
        options = {"normalize_embeddings": True, "show_progress_bar": False}
        vectors = encoder.encode_document(texts, **options)  # (n, d)

        def score(query: str) -> list[float]:
            return list(map(float, vectors @ encoder.encode_query([query], **options)[0]))

    if params.rerank and not context.dry_run:
        reranker = load_encoder(params.rerank, "CrossEncoder", f"{where}: rerank", "leave rerank out")

    def retrieve(example: Example) -> Example:
        ranked = _best_first(score(example.prompt), range(len(chunks)))
        if reranker:
            candidates = ranked[: params.n_reranked]
            pairs = [(example.prompt, texts[i]) for i in candidates]
            rerank_scores = reranker.predict(pairs, show_progress_bar=False)  # (n,)
            ranked = _best_first(list(map(float, rerank_scores)), candidates)
        return with_context(example, [chunks[i] for i in ranked[: params.top_k]], params.mark)

    return retrieve


def passages(context: PromptingContext, params: Params) -> list[Document]:
    """Cut the documents into the passages that the retrieval chooses from."""
    chunks: list[Document] = []
    for document in context.documents:
        words = pieces(document.text)
        step = params.chunk_words - params.chunk_overlap
        for start in range(0, max(len(words) - params.chunk_overlap, 1), step):
            text = "".join(words[start : start + params.chunk_words]).strip()
            chunks.append(document._replace(text=text))
    return chunks


def _best_first(scores: Sequence[float], places: Sequence[int]) -> list[int]:
    ordered = sorted(zip(scores, range(len(places)), strict=True), key=lambda s: (-s[0], s[1]))
    return [places[i] for _, i in ordered]
