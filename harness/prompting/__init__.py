"""Contract of a prompting: a function from an example to the example that a candidate is given.

Invariant: a prompting changes only messages and passages; the id, references, choices and
cluster of an example stay, so every candidate answers the same items.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, Literal, NamedTuple

from harness import plugins
from harness.prompting._widths import has_widths
from harness.records import Document, Example, Message
from harness.spec import Task

Step = Callable[[Example], Example]
Mark = Literal["number", "id"]

CONTEXT = "Context:\n"
_MARK = re.compile(r"(?:(?:system|user|assistant): )?\[([^\[\]]+)\] ")  # a turn begins with its role


@dataclass(frozen=True, slots=True)
class PromptingContext:
    """Sources of promptings: training examples for shots, documents for retrieval.

    In a `dry_run`, whose prompts are only counted, no model is loaded to choose among them.
    """

    task: Task
    train: tuple[Example, ...]
    documents: tuple[Document, ...]
    seed: int
    dry_run: bool = False


class IndexSize(NamedTuple):
    """Size of what a prompting retrieves from: documents, passages of them, and the bytes of their texts."""

    n_documents: int
    n_passages: int
    n_bytes: int


def index_sizes(prompting: Mapping[str, Mapping[str, Any]], context: PromptingContext) -> Iterator[IndexSize]:
    """Yield the size of each index that promptings retrieve from, counted without a model."""
    for name, params in prompting.items():
        plugin = plugins.load("prompting", name, f"task {context.task.name}")
        if hasattr(plugin, "index_size"):
            yield plugin.index_size(context, plugin.Params(**params))


def describe_prompts(
    prompting: Mapping[str, Mapping[str, Any]], context: PromptingContext, items: Sequence[Example]
) -> Iterator[str]:
    """Yield what promptings say of the prompts that they make for items, without a model."""
    for name, params in prompting.items():
        plugin = plugins.load("prompting", name, f"task {context.task.name}")
        if hasattr(plugin, "remarks"):
            yield from plugin.remarks(context, plugin.Params(**params), items)


def compose(prompting: Mapping[str, Mapping[str, Any]], context: PromptingContext) -> Step:
    """Build every prompting once and apply them in the order written.

    Raises:
        UserError: a name is unknown, or a prompting lacks what it draws from.
    """
    steps = [_build(name, params, context) for name, params in prompting.items()]
    return lambda example: reduce(lambda changed, step: step(changed), steps, example)


def _build(name: str, params: Mapping[str, Any], context: PromptingContext) -> Step:
    plugin = plugins.load("prompting", name, f"task {context.task.name}")
    step: Step = plugin.build(context, plugin.Params(**params))
    return step


def with_context(example: Example, passages: list[Document], mark: Mark | None = None) -> Example:
    """Put passages in front of the question; no passage holds an empty line.

    With a `mark` each begins with one in brackets, by which an answer can cite it: the place of its document
    among those that were found, or the document's id.
    """
    ids = tuple(dict.fromkeys(p.id for p in passages))
    marks = {i: "" if mark is None else f"[{i if mark == 'id' else at}] " for at, i in enumerate(ids, 1)}
    lines = (" ".join(f"{p.title}: {p.text}".removeprefix(": ").split()) for p in passages)
    shown = "\n".join(f"{marks[p.id]}{line}" for p, line in zip(passages, lines, strict=True))
    prompt = f"{CONTEXT}{shown}\n\n{example.prompt}"
    return replace(example, messages=_put_prompt(example.messages, prompt), passages=ids)


def question(example: Example) -> str:
    """Return the question, without the passages that a prompting put in front of it."""
    if not example.passages:
        return example.prompt
    return example.prompt.removeprefix(CONTEXT).partition("\n\n")[2]


def context_of(prompt: str, question: str = "") -> str:
    """Return the passages that `with_context` put in front of a question; empty where there are none.

    A template may have put words in front of them; where these hold such a context too, the `question`
    tells which one is the passages'.
    """
    before = prompt.rpartition(f"\n\n{question}")[0].rpartition("\n\n")[2] if question else ""
    of_its_own = f"\n{before}".rpartition(f"\n{CONTEXT}")[2] if f"\n{CONTEXT}" in f"\n{before}" else ""
    return of_its_own or before.partition(CONTEXT)[2] or prompt.partition(CONTEXT)[2].partition("\n\n")[0]


def map_passage_marks(example: Example) -> dict[str, str]:
    """Map the marks by which an answer can cite passages of its prompt to the ids of their documents.

    Without marks in the prompt a document is cited by its place among those that were found, or by its id;
    where ids are numbers, by its place. Where nothing was retrieved, the lines that begin with a mark in the
    prompt, and in the turns before it, are the passages, each of its mark's name.
    """
    prompt = f"{example.earlier}\n{example.prompt}"
    context = context_of(example.prompt, example.plain_prompt) if example.passages else prompt
    lines = context.splitlines()
    marks = list(dict.fromkeys(found[1] for line in lines if (found := _MARK.match(line))))
    if not example.passages:
        return {mark: mark for mark in marks}
    if len(marks) == len(example.passages):
        return dict(zip(marks, example.passages, strict=True))
    numbers = {str(at): i for at, i in enumerate(example.passages, 1)}
    return {i: i for i in example.passages} | numbers


def recall(example: Example) -> float | None:
    """Return the share in [0, 1] of the documents with the answer that were retrieved.

    None when the example names no document, or nothing was retrieved for it.
    """
    if not example.documents or not example.passages:
        return None
    return len(set(example.documents) & set(example.passages)) / len(set(example.documents))


def _put_prompt(messages: tuple[Message, ...], text: str) -> tuple[Message, ...]:
    last = max(i for i, message in enumerate(messages) if message["role"] == "user")
    return (*messages[:last], {**messages[last], "content": text}, *messages[last + 1 :])
