"""Validation of how each candidate comes by its weights: methods, sources, sweeps and regularizers.

Invariant: a check looks at what could be read and never stops another check; what is accepted here can
be made.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness import plugins
from harness.config.files import describe_missing_file
from harness.config.grids import GridMember
from harness.config.recipe_checks import WrittenRecipe, check_regularizers, check_sweep
from harness.config.yaml_loading import mapping, read_valid
from harness.errors import Problem, did_you_mean
from harness.plugins import OR
from harness.spec import BASE, HUB, Recipe, is_path, metric_plugin


def check_weights(written: WrittenRecipe) -> Iterator[Problem]:
    """Yield what does not fit in how a recipe comes by its weights."""
    yield from _check_weights_of_and_role(written)
    if written.recipe.method in plugins.names("methods"):
        checks = [_check_init_from, _check_reward, _check_merges, _check_quantization, _check_files]
        for check in (*checks, check_sweep, check_regularizers):
            yield from check(written)


def _check_weights_of_and_role(written: WrittenRecipe) -> Iterator[Problem]:
    """Refuse weights of no candidate, and as a baseline what is made here, without a judged forgetting."""
    name, recipe, members = written.name, written.recipe, written.members
    source, where, known = recipe.weights_of, written.where("weights_of"), plugins.names("methods")
    lender = members.get(source or "")
    if source == name:
        found = f"{name} taking its own weights"
        yield Problem(where, found, "the name of another candidate", _others(written))
    elif source is not None and lender is None:
        yield Problem(where, f"unknown candidate {source!r}", *_candidate(source, written))
    elif lender and mapping(lender.recipe).get("weights_of"):
        found = f"weights of {source}, which has none of its own"
        yield Problem(where, found, "a candidate with a method", f"name the one {source} takes them of")
    made_by = mapping(lender.recipe).get("method", BASE) if lender else recipe.method
    if recipe.role == "baseline" and made_by in known and not plugins.method(made_by).makes_nothing:
        *able, last = plugins.methods(makes_nothing=True)
        expected = f"a model made elsewhere (method: {', '.join(able)} or {last})"
        found = f"role: baseline of the method {made_by}, whose weights are made here"
        yield Problem(written.where("role"), found, expected, "leave out role")


def _check_init_from(written: WrittenRecipe) -> Iterator[Problem]:
    name, recipe, members, method = written.name, written.recipe, written.members, written.method
    source, where = recipe.init_from, written.where("init_from")
    if source is None:
        return
    if not (wanted := method.init_from):
        able = [able for able in plugins.names("methods") if plugins.method(able).init_from]
        found = f"init_from with the method {recipe.method}, which starts at the base"
        yield Problem(where, found, f"one of the methods {', '.join(able)}", "remove init_from")
    elif source not in members:
        yield Problem(where, f"unknown candidate {source!r}", *_candidate(source, written))
    elif name in _ancestors(name, members):
        step = _others(written)
        yield Problem(where, f"{name} starting from itself", "a candidate that is made before it", step)
    elif not {*wanted.split(OR)} & {*(made := _makes(source, members)).split(OR)}:
        found = f"{source}, which makes {_article(made)}"
        trained = (plugins.methods(trains_on_rows=True, makes=kind) for kind in wanted.split(OR))
        makers = [maker for of_a_kind in trained for maker in of_a_kind]
        step = f"name a candidate with the method {' or '.join(makers)}"
        yield Problem(where, found, f"a candidate that makes {_article(wanted)}", step)
    elif shape := sorted(recipe.params.keys() & set(method.adapter.fixed)):
        found = f"{', '.join(shape)} of an adapter that {source} has made already"
        yield Problem(written.where("params"), found, "its shape as it is", f"remove {', '.join(shape)}")


def answers(recipe: Any) -> bool:
    """Tell whether the weights of a recipe as written answer a task."""
    method = mapping(recipe).get("method", BASE)
    return method not in plugins.names("methods") or plugins.method(method).answers


def _check_reward(written: WrittenRecipe) -> Iterator[Problem]:
    """Refuse a method without the reward that it trains on, and a reward that is none."""
    recipe, members, method = written.recipe, written.members, written.method
    reward = recipe.reward
    expected = "a candidate that makes a reward model, one of our metrics, or a Python file"
    if reward is None:
        if method.rewarded:
            found, step = f"{recipe.method} without a reward", "add reward: exact_match"
            yield Problem(written.where("method"), found, expected, step)
        return
    where = written.where("reward")
    if not method.rewarded:
        able = " or ".join(plugins.methods(rewarded=True))
        found = f"reward with the method {recipe.method}, which trains on none"
        yield Problem(where, found, f"one of the methods {able}", "remove reward")
    elif is_path(reward):
        if not Path(reward).is_file():
            what = "a Python file with a function reward, or metric"
            yield describe_missing_file(Path(reward), where, what)
    elif reward in members:
        if (made := _makes(reward, members)) != "reward":
            able = " or ".join(plugins.methods(makes="reward"))
            found = f"{reward}, which makes {_article(made)}"
            step = f"one with the method {able}"
            yield Problem(where, found, "a candidate that makes a reward model", step)
    elif metric_plugin(reward) not in (known := plugins.names("metrics")):
        makers = {one for one in members if _makes(one, members) == "reward"}
        yield Problem(where, f"unknown reward {reward!r}", expected, did_you_mean(reward, {*known, *makers}))


def _ancestors(name: str, members: Mapping[str, GridMember]) -> list[str]:
    """List what a candidate starts from or merges, nearest first; a circle ends where it closes."""
    found: list[str] = []
    ahead = _parents(name, members)
    while ahead:
        at, *ahead = ahead
        if at not in found:
            found.append(at)
            ahead += _parents(at, members)
    return found


def _parents(name: str, members: Mapping[str, GridMember]) -> list[str]:
    recipe = read_valid(Recipe, members[name].recipe)
    named = (recipe.init_from, *recipe.merges) if recipe else ()
    return [one for one in named if one is not None and one in members]


def _check_merges(written: WrittenRecipe) -> Iterator[Problem]:
    """Refuse to merge fewer than two adapters, what is none, and with a method that merges nothing."""
    name, recipe, members, method = written.name, written.recipe, written.members, written.method
    where = written.where("merges")
    if not method.merges:
        if recipe.merges:
            able = " or ".join(plugins.methods(merges=True))
            found = f"merges with the method {recipe.method}, which merges nothing"
            yield Problem(where, found, f"merges with the method {able}", "remove merges")
        return
    if len(set(recipe.merges)) < 2 or len(set(recipe.merges)) < len(recipe.merges):
        found = f"{recipe.method} of {', '.join(recipe.merges) or 'nothing'}"
        step = "add merges: [lora, other], the names of candidates"
        yield Problem(where, found, "two candidates or more, each once", step)
    for source in recipe.merges:
        if source not in members:
            yield Problem(where, f"unknown candidate {source!r}", *_candidate(source, written))
        elif name == source or name in _ancestors(source, members):
            step = f"leave {source} out of merges"
            yield Problem(where, f"{name} merging itself", "candidates that are made before it", step)
        elif method.makes not in (made := _makes(source, members)).split(OR):
            found = f"{source}, which makes {_article(made)}"
            yield Problem(where, found, f"a candidate that makes {_article(method.makes)}", "name another")


def _makes(name: str, members: Mapping[str, GridMember]) -> str:
    recipe = mapping(members[name].recipe)
    method = recipe.get("method", BASE)
    if recipe.get("weights_of") or method not in plugins.names("methods"):
        return ""
    made, init = plugins.method(method).makes, str(recipe.get("init_from"))
    takes_any = OR in made and init in members and name not in _ancestors(name, members)
    return (_makes(init, members) if takes_any else "") or made


def _article(made: str) -> str:
    named = {
        "adapter": "an adapter",
        "delta": "a delta of a form of its own",
        "model": "a whole model",
        "adapter or model": "an adapter or a whole model",
        "adapter or delta or model": "an adapter, a delta or a whole model",
        "reward": "a reward model",
        "classifier": "a classifier",
        "head": "a classifier",
        "embedding": "a classifier",
        "endpoint": "no weights here",
        "artefact": "a file that is served",
    }
    return named.get(made, "no weights of its own")


def _check_files(written: WrittenRecipe) -> Iterator[Problem]:
    """Refuse weights or rows of a candidate's own where its method takes none, and missing files."""
    recipe, method = written.recipe, written.method
    if recipe.path is None and method.made_elsewhere:
        where = written.where("method")
        found = f"{recipe.method} without path"
        yield Problem(where, found, "the folder of the weights", "add path: ./the-folder")
    elif recipe.path is not None:
        where = written.where("path")
        if not method.made_elsewhere:
            found = f"path with the method {recipe.method}, which makes its own weights"
            able = " or ".join(plugins.methods(made_elsewhere=True))
            yield Problem(where, found, f"path with the method {able}", f"add method: {able}")
        elif recipe.path.startswith(HUB) and not method.makes_whole_model:
            step = "download it, or merge it and name method: model"
            yield Problem(where, f"{recipe.method} of the hub", "the folder of the weights", step)
        elif not recipe.path.startswith(HUB) and not (
            Path(recipe.path).is_dir() or (method.makes_artefact and Path(recipe.path).is_file())
        ):
            yield describe_missing_file(Path(recipe.path), where, "the folder of the weights")
    for key in ("train", "mix"):
        if getattr(recipe, key) and not method.draws_from:
            found = f"{key} with the method {recipe.method}, which trains on no rows"
            step = f"remove {key}, or add method: lora"
            yield Problem(written.where(key), found, "a method that trains on rows", step)
    if len(set(recipe.train)) < len(recipe.train):
        yield Problem(written.where("train"), "a file twice in train", "every file once", "remove one")
    for key, paths in (("train", recipe.train), ("mix", recipe.mix.paths if recipe.mix else ())):
        for path in paths:
            if not path.startswith(HUB) and not Path(path).is_file():
                yield describe_missing_file(Path(path), written.where(key), "rows to train on")


def _check_quantization(written: WrittenRecipe) -> Iterator[Problem]:
    """Refuse to quantise a base on which no new adapter is trained, or on which none is served."""
    recipe, members, method = written.recipe, written.members, written.method
    if recipe.quantization and not (method.trains and method.makes_adapter):
        found = f"quantization with the method {recipe.method}, which trains no adapter"
        where = written.where("quantization")
        yield Problem(where, found, "a method that trains an adapter on the base", "remove quantization")
    source = recipe.weights_of if recipe.weights_of in members else None
    made = _makes(source or written.name, members)
    if recipe.serve_on is not None and "adapter" not in made.split(OR):
        found = f"serve_on for {_article(made)}"
        where = written.where("serve_on")
        yield Problem(where, found, "an adapter, which can be put on another base", "remove serve_on")


def _candidate(source: str, written: WrittenRecipe) -> tuple[str, str]:
    name, members = written.name, written.members
    grid = [member for member, m in members.items() if m.source == source]
    if grid:
        return "one candidate of that grid", f"one of: {', '.join(grid)}"
    return "the name of another candidate", did_you_mean(source, members.keys() - {name})


def _others(written: WrittenRecipe) -> str:
    name, members = written.name, written.members
    return f"one of: {', '.join(sorted(members.keys() - {name}))}" if len(members) > 1 else "give it a method"
