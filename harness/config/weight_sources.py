"""Where a candidate's weights come from: another candidate, a folder, or one of several trials.

Invariant: what is accepted here can be made; only what lies inside a folder is looked at later.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from harness import plugins
from harness.config import problems as wording
from harness.config.files import missing_file
from harness.config.grids import Member
from harness.config.yaml_tree import Keys, Tree, mapping
from harness.errors import Problem, did_you_mean
from harness.spec import HUB, Recipe

_FOR = {"adapter": "lora", "model": "full"}  # what has to be made → the usual method that makes it


def check(name: str, recipe: Recipe, members: Mapping[str, Member], tree: Tree) -> Iterator[Problem]:
    """Yield what does not fit in how a recipe comes by its weights."""
    keys: Keys = ("candidates", members[name].source)
    yield from _borrowed(name, recipe, members, tree, keys)
    if recipe.method not in plugins.names("methods"):
        return
    method = plugins.load("methods", recipe.method)
    yield from _started(name, recipe, method, members, tree, keys)
    yield from _made_elsewhere(recipe, method, tree, keys)
    yield from _served(recipe, members, tree, keys)
    yield from _swept(recipe, method, tree, keys)
    yield from _replayed(recipe, method, tree, keys)


def _borrowed(
    name: str, recipe: Recipe, members: Mapping[str, Member], tree: Tree, keys: Keys
) -> Iterator[Problem]:
    source = recipe.weights_of
    if source is None:
        return
    where = tree.where((*keys, "weights_of"))
    if source == name:
        found = f"{name} taking its own weights"
        yield Problem(where, found, "the name of another candidate", _others(name, members))
    elif source not in members:
        yield Problem(where, f"unknown candidate {source!r}", *_candidate(source, name, members))
    elif mapping(members[source].recipe).get("weights_of"):
        found = f"weights of {source}, which has none of its own"
        yield Problem(where, found, "a candidate with a method", f"name the one {source} takes them of")


def _started(
    name: str, recipe: Recipe, method: ModuleType, members: Mapping[str, Member], tree: Tree, keys: Keys
) -> Iterator[Problem]:
    source, where = recipe.init_from, tree.where((*keys, "init_from"))
    if source is None:
        return
    if not (wanted := getattr(method, "INIT_FROM", "")):
        able = [n for n in plugins.names("methods") if hasattr(plugins.load("methods", n), "INIT_FROM")]
        found = f"init_from with the method {recipe.method}, which starts at the base"
        yield Problem(where, found, f"one of the methods {', '.join(able)}", "remove init_from")
    elif source not in members:
        yield Problem(where, f"unknown candidate {source!r}", *_candidate(source, name, members))
    elif name in _ancestors(name, members):
        yield Problem(where, f"{name} starting from itself", "a candidate that is made before it")
    elif (made := _makes(source, members)) != wanted:
        found = f"{source}, which makes {_article(made)}"
        step = f"name a {_FOR[wanted]} candidate"
        yield Problem(where, found, f"a candidate that makes {_article(wanted)}", step)
    elif shape := sorted(recipe.params.keys() & set(getattr(method, "SHAPE", ()))):
        found = f"{', '.join(shape)} of an adapter that {source} has made already"
        yield Problem(
            tree.where((*keys, "params")), found, "its shape as it is", f"remove {', '.join(shape)}"
        )


def _ancestors(name: str, members: Mapping[str, Member]) -> list[str]:
    """List what a candidate starts from, nearest first; a circle ends where it closes."""
    found: list[str] = []
    at: Any = mapping(members[name].recipe).get("init_from")
    while at in members and at not in found:
        found.append(at)
        at = mapping(members[at].recipe).get("init_from")
    return found


def _makes(name: str, members: Mapping[str, Member]) -> str:
    recipe = mapping(members[name].recipe)
    method = recipe.get("method", "base")
    if recipe.get("weights_of") or method not in plugins.names("methods"):
        return ""
    return str(getattr(plugins.load("methods", method), "MAKES", ""))


def _article(made: str) -> str:
    return {"": "no weights of its own", "adapter": "an adapter"}.get(made, f"a whole {made}")


def _made_elsewhere(recipe: Recipe, method: ModuleType, tree: Tree, keys: Keys) -> Iterator[Problem]:
    takes_path = bool(getattr(method, "PATH", False))
    if recipe.path is None and takes_path:
        where = tree.where((*keys, "method"))
        found = f"{recipe.method} without path"
        yield Problem(where, found, "the folder of the weights", "add path: ./the-folder")
    elif recipe.path is not None:
        where = tree.where((*keys, "path"))
        if not takes_path:
            found = f"path with the method {recipe.method}, which makes its own weights"
            yield Problem(where, found, "path with the method adapter", "add method: adapter")
        elif not Path(recipe.path).is_dir():
            yield missing_file(Path(recipe.path), where, "the folder of an adapter")


def _served(recipe: Recipe, members: Mapping[str, Member], tree: Tree, keys: Keys) -> Iterator[Problem]:
    if recipe.serve_on is None:
        return
    borrowed = recipe.weights_of in members
    made = _makes(recipe.weights_of, members) if borrowed and recipe.weights_of else _own(recipe)
    if made != "adapter":
        found = f"serve_on for {_article(made)}"
        where = tree.where((*keys, "serve_on"))
        yield Problem(where, found, "an adapter, which can be put on another base", "remove serve_on")


def _own(recipe: Recipe) -> str:
    return str(getattr(plugins.load("methods", recipe.method), "MAKES", ""))


def _swept(recipe: Recipe, method: ModuleType, tree: Tree, keys: Keys) -> Iterator[Problem]:
    """Refuse a sweep of what is no parameter, of one value, or of a method that trains nothing."""
    fields = method.Params.model_fields
    for name, values in recipe.sweep.items():
        at = (*keys, "sweep", name)
        where = tree.where(at)
        if "learning_rate" not in fields:
            found = f"a sweep with the method {recipe.method}, which trains no language model"
            yield Problem(where, found, "a method that trains", "remove sweep")
        elif name not in fields:
            yield Problem(where, f"a sweep of {name!r}", "a parameter", did_you_mean(name, fields))
        elif name in recipe.params:
            found = f"{name} in params and in sweep"
            yield Problem(where, found, "it in one of the two", "remove it from params")
        elif len(values) < 2:
            yield Problem(where, f"a sweep of {name} with {len(values)} values", "two values at least")
        for value in values if name in fields else ():
            tried = {**recipe.params, name: value}
            problems = wording.problems_of(method.Params, tried, tree, at)
            yield from (p for p in problems if p.found.startswith(f"{name}:"))


def _replayed(recipe: Recipe, method: ModuleType, tree: Tree, keys: Keys) -> Iterator[Problem]:
    """Refuse replay where nothing is trained on rows, and a file of it that is not there."""
    if recipe.replay is None:
        return
    where = tree.where((*keys, "replay"))
    if not replays(method):
        found = f"replay with the method {recipe.method}, which trains no language model on rows"
        yield Problem(where, found, "one of lora, qlora and full", "remove replay")
    yield from replay_file(recipe.replay.data, where)


def replays(method: ModuleType) -> bool:
    """Tell whether a method trains a language model on rows, into which others can be mixed."""
    return "train" in getattr(method, "NEEDS", ()) and "num_train_epochs" in method.Params.model_fields


def replay_file(path: str | None, where: str) -> Iterator[Problem]:
    """Refuse a file of rows to replay that is not there."""
    if path is not None and not path.startswith(HUB) and not Path(path).is_file():
        yield missing_file(Path(path), where, "rows to replay, each with a prompt and its answer")


def _candidate(source: str, name: str, members: Mapping[str, Member]) -> tuple[str, str]:
    grid = [member for member, m in members.items() if m.source == source]
    if grid:
        return "one candidate of that grid", f"one of: {', '.join(grid)}"
    return "the name of another candidate", did_you_mean(source, members.keys() - {name})


def _others(name: str, members: Mapping[str, Member]) -> str:
    return f"one of: {', '.join(sorted(members.keys() - {name}))}" if len(members) > 1 else "give it a method"
