"""A list where a parameter takes one value is a grid: one candidate for each value.

Invariant: every combination of the grids of a recipe gives one candidate, named
`few-shot[shots=4]`, of a longer text `prompt[system=2-be-brief]`; a recipe without a grid keeps its name.
"""

import re
from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple, get_args, get_origin

from pydantic import BaseModel

from harness import plugins
from harness.config.yaml_loading import Keys, Tree, mapping
from harness.errors import Problem
from harness.spec import BASE, PLUGINS, Decoding

KEYS = ("system", "template", "answer")  # of a recipe, whose lists are grids too
_WORD = re.compile(r"[a-z0-9]+")
_IN_NO_NAME = re.compile(r"[/\\\x00-\x1f\x7f]+")  # a path as a value names no folder
_WORDS = 3  # of a text, in the name of its candidate


class GridMember(NamedTuple):
    """One candidate of a grid: the name it was written under, and its recipe as written."""

    source: str
    recipe: Any


def expand(tree: Tree) -> dict[str, GridMember]:
    """Return every candidate by name, grids multiplied out."""
    written = mapping(tree.data.get("candidates")).items()
    return {name: member for source, recipe in written for name, member in _members(source, recipe, tree)}


def _members(source: str, recipe: Any, tree: Tree) -> Iterator[tuple[str, GridMember]]:
    grids = dict(_grids(recipe))
    for keys, listed in grids.items():
        if not listed:
            where = tree.where(("candidates", source, *keys))
            found = f"an empty grid for {keys[-1]}"
            step = f"write values between the brackets, or remove {keys[-1]}"
            tree.problems.append(Problem(where, found, "at least one value", step))
    for values in product(*grids.values()):
        point = dict(zip(grids, values, strict=True))
        named = ",".join(f"{keys[-1]}={_label(keys, grids[keys], value)}" for keys, value in point.items())
        yield f"{source}[{named}]" if named else source, GridMember(source, _choose_from_grids(recipe, point))


def _grids(recipe: Any) -> Iterator[tuple[Keys, list[Any]]]:
    """Yield the keys below the recipe and the values of each grid in it."""
    if not isinstance(recipe, dict):
        return
    yield from _grids_of("methods", recipe.get("method", BASE), recipe.get("params"), ("params",))
    yield from (((key,), recipe[key]) for key in KEYS if isinstance(recipe.get(key), list))
    for key, value in mapping(recipe.get("decoding")).items():
        if key in Decoding.model_fields and isinstance(value, list):
            yield ("decoding", key), value
    for key, kind in PLUGINS.items():
        for name, params in mapping(recipe.get(key)).items():
            yield from _grids_of(kind, name, params, (key, name))


def _grids_of(kind: str, name: Any, params: Any, keys: Keys) -> Iterator[tuple[Keys, list[Any]]]:
    if not isinstance(params, dict) or name not in plugins.names(kind):
        return
    fields = plugins.load(kind, name).Params.model_fields
    for key, value in params.items():
        if key in fields and isinstance(value, list):
            holds_lists = any(isinstance(entry, list) for entry in value)
            if holds_lists or not _takes_a_list(fields[key].annotation):
                yield (*keys, key), value


def _takes_a_list(annotation: Any) -> bool:
    if annotation is Any or (get_origin(annotation) or annotation) in (list, tuple, set, frozenset):
        return True
    is_model = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return not is_model and any(_takes_a_list(inner) for inner in get_args(annotation))


def _choose_from_grids(recipe: Any, point: dict[Keys, Any]) -> Any:
    if not point:
        return recipe
    first = {keys[0] for keys in point}
    below = {key: {keys[1:]: value for keys, value in point.items() if keys[0] == key} for key in first}
    changed = {
        key: inner[()] if () in inner else _choose_from_grids(recipe[key], inner)
        for key, inner in below.items()
    }
    return {**recipe, **changed}


def _label(keys: Keys, values: list[Any], value: Any) -> str:
    """Name one value of a grid; a text by its place and its first words."""
    if keys not in (("system",), ("template",)):
        short = [_short(value) for value in values]
        own = _short(value)
        return own if short.count(own) == 1 else f"{values.index(value) + 1}-{own}"
    words = "-".join(_WORD.findall(str(value).casefold())[:_WORDS])
    return "-".join(filter(None, (str(values.index(value) + 1), "none" if value is None else words)))


def _short(value: Any) -> str:
    if isinstance(value, list):
        return "+".join(map(_short, value))
    return str(value).lower() if isinstance(value, bool) else _IN_NO_NAME.sub("-", str(value))
