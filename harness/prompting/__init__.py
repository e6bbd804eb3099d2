"""Contract of a prompting: a function from an example to the example that the candidate receives.

Invariant: a prompting changes only messages and passages; the id, references, choices and cluster of an
example stay, so every candidate answers the same items. A text without such forms is returned as it is;
punctuation keeps its width.
Source: NFKC of Unicode's block "Halfwidth and Fullwidth Forms", as in Lucene's CJKWidthFilter
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, Literal, NamedTuple

from harness import plugins
from harness.records import Document, Example
from harness.spec import Task

Step = Callable[[Example], Example]
Mark = Literal["number", "id"]

CONTEXT = "Context:\n"
_MARK = re.compile(r"(?:(?:system|user|assistant): )?\[([^\[\]]+)\] ")  # a turn may begin with its role


@dataclass(frozen=True, slots=True)
class PromptingContext:
    """Sources of promptings: training examples for shots, documents for retrieval.

    In a `dry_run` prompts are only counted, and no model is loaded to choose among sources.
    """

    task: Task
    train: tuple[Example, ...]
    documents: tuple[Document, ...]
    seed: int
    dry_run: bool = False


class IndexSize(NamedTuple):
    """Size of a retrieval index: documents, their passages, and the bytes of the passages' texts."""

    n_documents: int
    n_passages: int
    n_bytes: int


def index_sizes(prompting: Mapping[str, Mapping[str, Any]], context: PromptingContext) -> Iterator[IndexSize]:
    """Yield the size of each retrieval index of the promptings, counted without a model."""
    for plugin, params in _load(prompting, context):
        if hasattr(plugin, "index_size"):
            yield plugin.index_size(context, params)


def list_passages(
    prompting: Mapping[str, Mapping[str, Any]], context: PromptingContext
) -> Iterator[tuple[dict[str, Any], list[Document]]]:
    """Yield the settings of each retrieval with the passages that it chooses from, without a model."""
    for plugin, params in _load(prompting, context):
        if hasattr(plugin, "passages"):
            yield params.model_dump(mode="json", exclude_none=True), plugin.passages(context, params)


def describe_prompts(
    prompting: Mapping[str, Mapping[str, Any]], context: PromptingContext, items: Sequence[Example]
) -> Iterator[str]:
    """Yield the promptings' remarks on the prompts of these items, without a model."""
    for plugin, params in _load(prompting, context):
        if hasattr(plugin, "remarks"):
            yield from plugin.remarks(context, params, items)


def _load(prompting: Mapping[str, Mapping[str, Any]], context: PromptingContext) -> Iterator[tuple[Any, Any]]:
    for name, params in prompting.items():
        plugin = plugins.load("prompting", name, f"task {context.task.name}")
        yield plugin, plugin.Params(**params)


def compose(prompting: Mapping[str, Mapping[str, Any]], context: PromptingContext) -> Step:
    """Build every prompting once and apply them in the order written.

    Raises:
        UserError: a name is unknown, or a prompting lacks its sources.
    """
    steps: list[Step] = [plugin.build(context, params) for plugin, params in _load(prompting, context)]
    return lambda example: reduce(lambda changed, step: step(changed), steps, example)


def with_context(example: Example, passages: list[Document], mark: Mark | None = None) -> Example:
    """Put passages in front of the question; no passage contains an empty line.

    With a `mark` each passage begins with a number or id in brackets, by which an answer can cite it: the
    rank of its document among the retrieved ones, or the document's id.
    """
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
    """Return the passages that `with_context` put in front of a question; empty without any.

    A template may have put words in front of them; if these contain such a context too, the `question` tells
    which one holds the passages.
    """
    before = prompt.rpartition(f"\n\n{question}")[0].rpartition("\n\n")[2] if question else ""
    own_context = f"\n{before}".rpartition(f"\n{CONTEXT}")[2] if f"\n{CONTEXT}" in f"\n{before}" else ""
    return own_context or before.partition(CONTEXT)[2] or prompt.partition(CONTEXT)[2].partition("\n\n")[0]


def map_passage_marks(example: Example) -> dict[str, str]:
    """Map the marks by which an answer can cite passages of its prompt to the ids of their documents.

    Without marks in the prompt a document is cited by its rank among the retrieved ones or by its id; where
    ids are numbers, by its rank. Without retrieval, the lines that begin with a mark in the prompt and in the
    turns before it are the passages, each named by its mark.
    """
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
    """Return the share in [0, 1] of the documents with the answer that were retrieved.

    None if the example names no document, or nothing was retrieved for it.
    """
    if not example.documents or not example.passages:
        return None
    return len(set(example.documents) & set(example.passages)) / len(set(example.documents))


_FORMS = re.compile("[\uff10-\uff19\uff21-\uff3a\uff41-\uff5a\uff66-\uff9f\uffa1-\uffdc]+")


def has_widths(texts: Iterable[str]) -> bool:
    """Tell whether any text has letters or digits in an unusual width."""
    return any(not text.isascii() and _FORMS.search(text) for text in texts)


def fold_widths(text: str) -> str:
    """Return a text with letters and digits in their usual width: `ＡＢＣ` as `ABC`."""
    return _FORMS.sub(lambda found: unicodedata.normalize("NFKC", found[0]), text)
