"""Validation of the regularizers of a candidate's training, and of their files of general rows.

Invariant: what is accepted here is called by the method's training; nothing is silently left out.
"""

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from harness import plugins
from harness.config.files import missing_file
from harness.config.problems import Keys, Tree
from harness.errors import Problem
from harness.plugins import Method
from harness.spec import HUB, Recipe


def check_regularizers(recipe: Recipe, method: Method, tree: Tree, keys: Keys) -> Iterator[Problem]:
    """Refuse regularisers that a method or its parameters do not take, and missing files of rows."""
    known = plugins.names("regularizers")
    for name, params in recipe.regularize.items():
        where = tree.where((*keys, "regularize", name))
        settings = _settings(recipe, method)
        if name in known and not all(plugins.takes(method, name, tried) for tried in settings):
            able = [m for m in plugins.names("methods") if _takes_somehow(plugins.method(m), name)]
            found = f"{name} with the method {recipe.method}, {_why_refused(name, method)}"
            yield Problem(where, found, f"one of the methods {', '.join(able)}", f"remove {name}")
        elif name in known and (found := plugins.refuses(name, recipe.params)):
            expected = "an adapter whose matrices are added to the base's"
            instead = ", or take kl" if plugins.takes(method, "kl", recipe.params) else ""
            yield Problem(where, f"{name} with {found}", expected, f"remove {name}{instead}")
        if isinstance(path := params.get("data"), str):
            yield from check_general_rows(path, where)


def _settings(recipe: Recipe, method: Method) -> Iterator[dict[str, Any]]:
    """Yield a recipe's parameters with each tried value of those that say which hooks a method calls."""
    tried = {name: recipe.tried[name] for name, _ in method.hooks_where if name in recipe.tried}
    for values in product(*tried.values()):
        yield {**recipe.params, **dict(zip(tried, values, strict=True))}


def _takes_somehow(method: Method, regularizer: str) -> bool:
    """Tell whether there are parameters of a method with which its training takes a regulariser."""
    return plugins.takes(method, regularizer, dict(iter(method.hooks_where)))


def _why_refused(regularizer: str, method: Method) -> str:
    """Say why a method does not take a regulariser."""
    if not method.trains:
        return "which makes no gradient steps"
    if plugins.reads_general_rows(regularizer) and not method.makes_language_model:
        return "which has no language-model head to read general rows with"
    if _takes_somehow(method, regularizer):
        values = ", ".join(f"{name}: {value}" for name, value in method.hooks_where)
        return f"whose training takes it with {values} alone"
    return getattr(plugins.load("regularizers", regularizer), "WHY_NOT", "whose training does not take it")


def check_general_rows(path: str | None, where: str) -> Iterator[Problem]:
    """Refuse a file of general rows that is not there."""
    if path is not None and not path.startswith(HUB) and not Path(path).is_file():
        yield missing_file(Path(path), where, "general rows, each with a prompt and its answer")
