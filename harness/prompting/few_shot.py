"""Show solved training examples as turns before the question.

Invariant: shots come only from training rows and never are the item itself, by id or by wording.
Source: Brown et al. 2020, arXiv:2005.14165 (fixed); Liu et al. 2022, arXiv:2101.06804 (knn).
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice, takewhile, zip_longest
from typing import Literal

from pydantic import Field

from harness.errors import UserError
from harness.formatting import count, pluralize
from harness.prompting import PromptingContext, Step, fold_widths, question
from harness.records import WORD, Example, Message, fold_text, split_into_grams, turns_as_text
from harness.spec import Spec

Ranking = Callable[[Example], Iterable[Example]]


NEEDS = ("train",)


class Params(Spec):
    """`select: fixed` shows the same `shots` to every item, `knn` those most similar to it, nearest last.

    Where fewer than `shots` are left, the plan and the report say for how many items.
    """

    select: Literal["fixed", "knn"] = "fixed"
    shots: int = Field(4, ge=1)


def build(context: PromptingContext, params: Params) -> Step:
    """Rank the training examples once; UserError if there are none, or some without an answer."""
    where = f"task {context.task.name}"
    if not context.train:
        found, expected = "prompting few_shot without training examples", "training rows to take shots from"
        step = "give the task `data: {train: …}`, or use zero_shot"
        raise UserError(where, found, expected, step)
    if n_bare := sum(not example.references for example in context.train):
        found = f"prompting few_shot, and {count(n_bare)} of {pluralize(len(context.train), 'training row')}"
        step = "add their references, leave these rows out, or use zero_shot"
        raise UserError(where, f"{found} without a reference", "in each the answer to show", step)
    if params.select == "fixed":  # at random; every prefix is balanced over slices, then over labels
        shuffled = list(context.train)
        random.Random(context.seed).shuffle(shuffled)
        slices = _groups(shuffled, lambda shot: shot.slice)
        by_label = [_groups(rows, lambda shot: shot.references[0] if shot.choices else "") for rows in slices]
        order = _alternate(list(map(_alternate, by_label)))
    ranked = _nearest(context.train) if params.select == "knn" else lambda example: order

    def show(example: Example) -> Example:
        text, other_shots = fold_text(_dialogue(example)), (s for s in ranked(example) if s.id != example.id)
        shots = list(islice((s for s in other_shots if fold_text(_dialogue(s)) != text), params.shots))
        system = tuple(takewhile(lambda message: message["role"] == "system", example.messages))
        turns: list[Message] = []
        for shot in shots[::-1]:
            turns += (message for message in shot.messages if message["role"] != "system")
            turns.append({"role": "assistant", "content": shot.references[0]})
        return replace(example, messages=(*system, *turns, *example.messages[len(system) :]))

    return show


def remarks(context: PromptingContext, params: Params, items: Sequence[Example]) -> Iterator[str]:
    """Report for how many items there are fewer shots than configured, and why."""
    text_by_id: dict[str, str] = {}
    for shot in context.train:
        text_by_id[shot.id] = fold_text(_dialogue(shot))
        if len(text_by_id) > params.shots + 1 and len({*text_by_id.values()}) > params.shots + 1:
            return  # at most one row has an item's words, and another its id
    n_by_words = Counter(text_by_id.values())
    questions = [(item.id, fold_text(_dialogue(item))) for item in items]
    n_same = [n_by_words[text] + (text_by_id.get(i, text) != text) for i, text in questions]
    n_left = [len(context.train) - n for n in n_same]
    if n_short := sum(n < params.shots for n in n_left):
        shortage = f"shows {count(n_short)} of {pluralize(len(items), 'item')} fewer than"
        missing = f"{pluralize(params.shots, 'shot')}, {min(n_left)} at the least"
        reason = f"{context.task.name} has {pluralize(len(context.train), 'training row')}"
        note = f", and the item itself, up to {max(n_same)} of them, is not a shot" if any(n_same) else ""
        yield f"{shortage} {missing}: {reason}{note}"


def _dialogue(example: Example) -> str:
    earlier = [turn for turn in example.messages[:-1] if turn["role"] != "system"]
    return "\n".join(filter(None, (turns_as_text(earlier), question(example))))


def _nearest(train: tuple[Example, ...]) -> Ranking:
    from sklearn.feature_extraction.text import TfidfVectorizer

    def cut(example: Example) -> str:
        return split_into_grams(fold_widths(_dialogue(example)))

    texts = list(map(cut, train))
    if not any(re.search(WORD, text) for text in texts):
        return lambda example: iter(train)
    vectorizer = TfidfVectorizer(token_pattern=WORD, sublinear_tf=True)
    vectors = vectorizer.fit_transform(texts)  # (train, words), unit rows

    def rank(example: Example) -> Iterator[Example]:
        similarity = (vectors @ vectorizer.transform([cut(example)]).T).toarray()[:, 0]
        return (train[i] for i in (-similarity).argsort(kind="stable"))

    return rank


def _groups(examples: Iterable[Example], key: Callable[[Example], str]) -> list[list[Example]]:
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(key(example), []).append(example)
    return list(groups.values())


def _alternate(groups: list[list[Example]]) -> list[Example]:
    return [example for turn in zip_longest(*groups) for example in turn if example is not None]
