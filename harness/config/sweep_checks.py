"""Validation of what a recipe tries: the values of a sweep, the ranges of a search, and prompts.

Invariant: a check looks at what could be read and never stops another check; each point that is accepted here
is a recipe that can be made.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, product
from math import prod
from typing import Any

from harness.config.problems import problems_of
from harness.config.written_recipe import WrittenRecipe
from harness.errors import Problem, did_you_mean
from harness.spec import PROMPTS, Recipe, is_span, span_of

_MOST_TRIALS = 64  # of a sweep, each a training of its own


def check_sweep(written: WrittenRecipe) -> Iterator[Problem]:
    """Refuse to try what is no parameter, one value, a range that is none, or where nothing is trained."""
    recipe, method = written.recipe, written.method
    fields, key = method.params.model_fields, "search" if recipe.search else "sweep"
    if (n := prod(map(len, recipe.sweep.values()))) > _MOST_TRIALS:
        where = written.where("sweep")
        step = "sweep fewer values, or search: them"
        yield Problem(where, f"a sweep of {n:,} trials", f"at most {_MOST_TRIALS}", step)
    if not method.trains:
        yield from _check_prompts(written, key)
        return
    for name, values in (recipe.search or recipe.sweep).items():
        where = written.where(key, name)
        if not method.answers:
            found = (
                f"a {key} with the method {recipe.method}, which answers nothing that validation could score"
            )
            yield Problem(where, found, "one set of parameters", "choose by its held-out accuracy")
        elif name not in fields and method.params.model_config.get("extra") != "allow":
            yield Problem(where, f"a {key} of {name!r}", "a parameter", did_you_mean(name, fields))
        elif name in fields and fields[name].is_required():
            step = f"params: {{{name}: [{', '.join(map(str, values))}]}}, a candidate for each"
            yield Problem(where, f"a {key} of {name}, which has no default", "it in params", step)
        elif name in recipe.params:
            found = f"{name} in params and in {key}"
            yield Problem(where, found, "it in one of the two", "remove it from params")
        elif key == "search" and is_span(values):
            yield from _check_span(name, values, where)
        elif len(values) < 2:
            found = f"a {key} of {name} with {len(values)} values"
            yield Problem(where, found, "two values at least", f"add one, or write {name} in params")
    yield from _check_points(written, key)


def _check_span(name: str, values: list[Any], where: str) -> Iterator[Problem]:
    try:
        span_of(values)
    except ValueError as error:
        found, _, step = str(error).partition("; ")
        yield Problem(where, f"{name}: {found}", "a range with two ends", step)


def _check_points(written: WrittenRecipe, key: str) -> Iterator[Problem]:
    """Refuse values to try, then points of them whose values do not go together or with `params`."""
    recipe, method, tree = written.recipe, written.method, written.tree
    known = {name: values for name, values in recipe.tried.items() if name in method.params.model_fields}
    single = [
        problem
        for name, values in known.items()
        for value in values
        for problem in problems_of(
            method.params, {**recipe.params, name: value}, tree, (*written.keys, key, name)
        )
        if problem.found.startswith(f"{name}:")
    ]
    yield from single
    if single or prod(map(len, known.values())) > _MOST_TRIALS:
        return
    own = set(problems_of(method.params, recipe.params, tree, (*written.keys, "params")))
    points = (dict(zip(known, values, strict=True)) for values in product(*known.values()))
    together = (
        replace(problem, where=written.where(key))
        for point in points
        for problem in problems_of(method.params, {**recipe.params, **point}, tree, (*written.keys, "params"))
        if problem not in own
    )
    yield from dict.fromkeys(together)


def _check_prompts(written: WrittenRecipe, key: str) -> Iterator[Problem]:
    """Refuse to try what is no part of a prompt, one value or a range, and what only trainings have."""
    recipe, method = written.recipe, written.method
    for name, values in (recipe.search or recipe.sweep).items():
        where, at = written.where(key, name), (*written.keys, key, name)
        if name not in PROMPTS or not method.makes_language_model:
            found = f"{name} in a {key} with the method {recipe.method}, which trains no language model"
            of_prompts = f"{', '.join(PROMPTS[:-1])} or {PROMPTS[-1]}"
            expected = of_prompts if method.makes_language_model else "a method that trains"
            yield Problem(where, found, expected, f"remove {name} from {key}")
        elif is_span(values):
            yield Problem(where, f"a range of {name}", "a list of what is tried", "write each of them")
        elif len(values) < 2:
            found = f"a {key} of {name} with {len(values)} values"
            yield Problem(where, found, "two values at least", f"add one, or write {name} in the recipe")
        elif getattr(recipe, name) != Recipe.model_fields[name].default:
            found = f"{name} in the recipe and in {key}"
            yield Problem(where, found, "it in one of the two", f"move {name} of the recipe into {key}")
        else:
            yield from chain.from_iterable(
                problems_of(Recipe, {name: one}, written.tree, at) for one in values
            )
    if recipe.subject_to:
        found = f"subject_to with the method {recipe.method}, whose weights forget nothing"
        yield Problem(written.where("subject_to"), found, "a method that trains", "remove subject_to")
