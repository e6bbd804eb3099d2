"""Checks of the prompts that a candidate tries which trains nothing: its sweep or search over them."""

from collections.abc import Iterator
from itertools import chain

from pydantic import ValidationError

from harness.config.problems import Keys, Tree, problems_of
from harness.errors import Problem
from harness.plugins import Method
from harness.spec import PROMPTS, Recipe, is_span


def check_prompts(recipe: Recipe, method: Method, tree: Tree, keys: Keys, key: str) -> Iterator[Problem]:
    """Refuse to try what is no part of a prompt, one value or a range, and what only trainings have."""
    for name, values in (recipe.search or recipe.sweep).items():
        at = (*keys, key, name)
        where = tree.where(at)
        if name not in PROMPTS or not method.makes_language_model:
            found = f"{name} in a {key} with the method {recipe.method}, which trains no language model"
            of_prompts = f"{', '.join(PROMPTS[:-1])} or {PROMPTS[-1]}"
            expected = of_prompts if method.makes_language_model else "a method that trains"
            yield Problem(where, found, expected, f"remove {name} from {key}")
        elif is_span(values):
            yield Problem(where, f"a range of {name}", "a list of what is tried", "write each of them")
        elif len(values) < 2:
            yield Problem(where, f"a {key} of {name} with {len(values)} values", "two values at least")
        elif getattr(recipe, name) != Recipe.model_fields[name].default:
            found = f"{name} in the recipe and in {key}"
            yield Problem(where, found, "it in one of the two", f"move {name} of the recipe into {key}")
        else:
            yield from chain.from_iterable(problems_of(Recipe, {name: one}, tree, at) for one in values)
    if recipe.subject_to:
        found = f"subject_to with the method {recipe.method}, whose weights forget nothing"
        yield Problem(tree.where((*keys, "subject_to")), found, "a method that trains", "remove subject_to")


def recipes_by_prompt(recipe: Recipe) -> Iterator[Recipe]:
    """Yield the recipe with each single value that it tries for its prompt, as far as that is one."""
    for name, values in recipe.tried.items():
        for value in values if name in PROMPTS else ():
            try:
                yield recipe.with_prompt({name: value})
            except ValidationError:
                continue  # is refused where it stands
