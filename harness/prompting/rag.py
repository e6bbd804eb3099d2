"""Retrieve passages of the task's documents and put them in front of the question.

Invariant: passages come from the documents alone, best first; equally good ones keep the
order of the documents.
Source: Lewis et al. 2020, arXiv:2005.11401; BM25 by Robertson & Zaragoza 2009 (bm25s, Lucene's variant).
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

from pydantic import Field, model_validator

from harness.errors import Problem, UserError
from harness.prompting import PromptingContext, Step, with_context
from harness.records import Document, Example
from harness.spec import Spec

_WORDS = r"(?u)\b\w+\b"


NEEDS = ("documents",)


class Params(Spec):
    """`top_k` passages of at most `chunk_words` words; neighbours share `chunk_overlap` words."""

    retriever: Literal["bm25"] = "bm25"
    top_k: int = Field(2, ge=1)
    chunk_words: int = Field(120, ge=1)
    chunk_overlap: int = Field(20, ge=0)

    @model_validator(mode="after")
    def _chunks_advance(self) -> "Params":
        if self.chunk_overlap >= self.chunk_words:
            raise ValueError(
                f"chunk_overlap {self.chunk_overlap} is not below chunk_words {self.chunk_words}"
            )
        return self


def build(context: PromptingContext, params: Params) -> Step:
    """Chunk and index the documents once and return the prompting.

    Raises:
        UserError: the task has no documents.
    """
    if not context.documents:
        raise UserError(_no_documents(context.task.name))
    chunks = [chunk for document in context.documents for chunk in _chunks(document, params)]
    scores = _bm25([f"{chunk.title} {chunk.text}" for chunk in chunks])

    def retrieve(example: Example) -> Example:
        best = sorted(
            zip(scores(example.prompt), range(len(chunks)), strict=True), key=lambda s: (-s[0], s[1])
        )
        return with_context(example, [chunks[i] for _, i in best[: params.top_k]])

    return retrieve


def _chunks(document: Document, params: Params) -> list[Document]:
    words = document.text.split()
    step = params.chunk_words - params.chunk_overlap
    starts = range(0, max(len(words) - params.chunk_overlap, 1), step)
    return [document._replace(text=" ".join(words[start : start + params.chunk_words])) for start in starts]


def _bm25(texts: list[str]) -> Callable[[str], list[float]]:
    import bm25s

    words = partial(
        bm25s.tokenize, token_pattern=_WORDS, stopwords="en", return_ids=False, show_progress=False
    )
    index = bm25s.BM25(method="lucene")
    index.index(words(texts), show_progress=False)

    def scores(query: str) -> list[float]:
        asked = words([query])[0]
        return list(map(float, index.get_scores(asked))) if asked else [0.0] * len(texts)

    return scores


def _no_documents(task: str) -> Problem:
    return Problem(
        f"task {task}",
        "prompting rag without documents",
        "documents to retrieve from",
        "give the task `data: {documents: …}`, or leave rag out",
    )
