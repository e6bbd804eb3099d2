"""Passages before a question: how retrieval writes them into a prompt, and how they are read again.

Invariant: `question` and `context_of` read what `with_context` wrote.
"""

import re
from dataclasses import replace
from typing import Literal

from harness.records.sample_results import Document, Example

Mark = Literal["number", "id"]

CONTEXT = "Context:\n"
_MARK = re.compile(r"(?:(?:system|user|assistant): )?\[([^\[\]]+)\] ")  # a turn may begin with its role


def with_context(example: Example, passages: list[Document], mark: Mark | None = None) -> Example:
    """Put passages in front of the question, each after its rank or id in brackets if there is a `mark`."""
    ids = tuple(dict.fromkeys(p.id for p in passages))
    marks = {i: "" if mark is None else f"[{i if mark == 'id' else rank}] " for rank, i in enumerate(ids, 1)}
    lines = (" ".join(f"{p.title}: {p.text}".removeprefix(": ").split()) for p in passages)
    context_text = "\n".join(f"{marks[p.id]}{line}" for p, line in zip(passages, lines, strict=True))
    prompt = f"{CONTEXT}{context_text}\n\n{example.prompt}"
    turns = example.messages
    last = max(i for i, message in enumerate(turns) if message["role"] == "user")
    messages = (*turns[:last], {**turns[last], "content": prompt}, *turns[last + 1 :])
    return replace(example, messages=messages, passages=ids)


def question(example: Example) -> str:
    """Return the question without the retrieved passages in front of it."""
    if not example.passages:
        return example.prompt
    return example.prompt.removeprefix(CONTEXT).partition("\n\n")[2]


def context_of(prompt: str, question: str = "") -> str:
    """Return the passages that `with_context` put in front of a question; empty without any."""
    before = prompt.rpartition(f"\n\n{question}")[0].rpartition("\n\n")[2] if question else ""
    own_context = f"\n{before}".rpartition(f"\n{CONTEXT}")[2] if f"\n{CONTEXT}" in f"\n{before}" else ""
    return own_context or before.partition(CONTEXT)[2] or prompt.partition(CONTEXT)[2].partition("\n\n")[0]


def map_passage_marks(example: Example) -> dict[str, str]:
    """Map the marks by which an answer can cite passages of its prompt to the ids of their documents."""
    prompt = f"{example.earlier}\n{example.prompt}"
    context = context_of(example.prompt, example.plain_prompt) if example.passages else prompt
    lines = context.splitlines()
    marks = list(dict.fromkeys(match[1] for line in lines if (match := _MARK.match(line))))
    if not example.passages:
        return {mark: mark for mark in marks}
    if len(marks) == len(example.passages):
        return dict(zip(marks, example.passages, strict=True))
    numbers = {str(rank): i for rank, i in enumerate(example.passages, 1)}
    return {i: i for i in example.passages} | numbers


def recall(example: Example) -> float | None:
    """Return the share of the documents with the answer that were retrieved; None without documents."""
    if not example.documents or not example.passages:
        return None
    return len(set(example.documents) & set(example.passages)) / len(set(example.documents))
