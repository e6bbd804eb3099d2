"""Contract of a prompting: a function from an example to the example that the candidate receives.

Invariant: a prompting changes only messages and passages; the id, references, choices and cluster of an
example stay, so every candidate answers the same items. Texts without unusual widths stay unchanged, and
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
from harness.records import Document, Example, Mark, context_of, question, recall, with_context
from harness.spec import Task

Step = Callable[[Example], Example]


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
    """Build every prompting once and apply them in order; UserError for unknown names and missing sources."""
    steps: list[Step] = [plugin.build(context, params) for plugin, params in _load(prompting, context)]
    return lambda example: reduce(lambda prompted, step: step(prompted), steps, example)


_FORMS = re.compile("[\uff10-\uff19\uff21-\uff3a\uff41-\uff5a\uff66-\uff9f\uffa1-\uffdc]+")


def has_widths(texts: Iterable[str]) -> bool:
    """Tell whether any text has letters or digits in an unusual width."""
    return any(not text.isascii() and _FORMS.search(text) for text in texts)


def fold_widths(text: str) -> str:
    """Return a text with letters and digits in their usual width: `ＡＢＣ` as `ABC`."""
    return _FORMS.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)
