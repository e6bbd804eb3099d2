"""Validation across keys: names, files, weight sources and candidates that must fit together.

Invariant: a check looks at what could be read and never stops another check; what is accepted here can
be made.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import product
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Any

from harness import plugins
from harness.config.files import missing_file, raw_tasks
from harness.config.grids import Member
from harness.config.problems import Keys, Tree, mapping, problems_of, salvage
from harness.errors import Problem, UserError, did_you_mean
from harness.plugins import Method
from harness.spec import (
    BASE,
    DATA_FILES,
    EVALUATE,
    HUB,
    PLUGINS,
    GatePolicy,
    NightlyPolicy,
    Recipe,
    RescuePolicy,
    Task,
    is_path,
)

_NAME_SIGNS = frozenset("_.-")
_MOST_TRIALS = 64  # of a sweep, each a training of its own


def check(tree: Tree, members: Mapping[str, Member]) -> None:
    """Add to the tree's problems whatever does not fit together."""
    tasks = [(keys, salvage(Task, task)) for keys, task in raw_tasks(tree)]
    known = [(keys, task) for keys, task in tasks if task is not None]
    target = next((task for keys, task in known if keys == ("target",)), None)
    for keys, task in known:
        tree.problems += _task(task, keys, tree)
    tree.problems += _names(known, tree)
    tree.problems += _roles(tree)
    tree.problems += _gated(known, tree)
    tree.problems += _rescue(tree)
    tree.problems += _check_nightly(members, tree)
    for name, member in members.items():
        recipe = salvage(Recipe, member.recipe)
        if recipe is not None:
            tree.problems += _recipe(recipe, ("candidates", member.source), target, tree)
            tree.problems += _weight_source(name, recipe, members, tree)
    tree.problems += [_bad_name(m.source, tree) for m in members.values() if not _is_name(m.source)]


def _task(task: Task, keys: Keys, tree: Tree) -> Iterator[Problem]:
    if task.lm_eval:
        yield from _of_lm_eval(task, keys, tree)
        return
    for name in DATA_FILES:
        path = getattr(task.data, name)
        if path is not None and not path.startswith(HUB) and not Path(path).exists():
            where = tree.where((*keys, "data", name))
            yield missing_file(Path(path), where, f"the {name} rows of task {task.name}")
    for index, name in enumerate(task.metrics):
        yield from _metric(name, tree.where((*keys, "metrics", index)))
    where = tree.where((*keys, "data"))
    if task.data.source("test") is None:
        found = f"task {task.name} without test rows"
        yield Problem(where, found, "`test:` in its data", "add test: test.jsonl")
    if task.num_fewshot and task.data.source("train") is None:
        at = tree.where((*keys, "num_fewshot"))
        yield Problem(at, "shots without rows to take them from", "`train:` in the data of the task")


def _metric(written: str, where: str) -> Iterator[Problem]:
    """Refuse a metric that is none of ours, a file that is not there or has the name of one of ours."""
    path = Path(written.removeprefix(EVALUATE).partition(":")[0])
    if is_path(str(path)) and not path.exists():
        yield missing_file(path, where, "the file of a metric")
    elif written.endswith(".py") and not written.startswith(EVALUATE):
        if path.stem in plugins.names("metrics"):
            found = f"a file of the name of our own metric {path.stem}"
            yield Problem(where, found, "a name of its own", "rename the file")
    elif not written.startswith(EVALUATE) and written not in plugins.names("metrics"):
        yield plugins.unknown("metrics", written, where)


def _of_lm_eval(task: Task, keys: Keys, tree: Tree) -> Iterator[Problem]:
    if keys == ("target",):
        found = f"{task.lm_eval}, a task of lm-eval, as the target"
        yield Problem(
            tree.where(keys), found, "a task with data of its own", "list it in a suite under suites:"
        )


def _names(tasks: Iterable[tuple[Keys, Task]], tree: Tree) -> Iterator[Problem]:
    """Refuse a name of a task or a suite that stands twice."""
    seen: dict[str, str] = {}
    named = [(f"task {task.name!r}", (*keys, "name")) for keys, task in tasks]
    named += [(f"suite {suite.get('name')!r}", ("suites", i, "name")) for i, suite in _suites(tree)]
    for name, keys in named:
        where = tree.where(keys)
        if name in seen:
            yield Problem(where, f"a second {name}", "every name once", f"the first is at {seen[name]}")
        seen.setdefault(name, where)


def _roles(tree: Tree) -> Iterator[Problem]:
    for i, suite in _suites(tree):
        if suite.get("role", "target") == "target":
            where = tree.where(("suites", i, "role"))
            found = f"suite {suite.get('name')!r} with the role target"
            yield Problem(where, found, "the role capability, safety or regression", "add role: capability")


def _rescue(tree: Tree) -> Iterator[Problem]:
    policy = salvage(RescuePolicy, tree.data.get("rescue", {}))
    if policy is None:
        return
    yield from _general_file(policy.replay, tree.where(("rescue", "replay")))
    if set(policy.steps) - set(RescuePolicy().steps):
        known = plugins.rescue_steps()
        for index, step in enumerate(policy.steps):
            if step not in known:
                where = tree.where(("rescue", "steps", index))
                yield Problem(
                    where, f"unknown step {step!r}", "a step of a rescue", did_you_mean(step, known)
                )


def _check_nightly(members: Mapping[str, Member], tree: Tree) -> Iterator[Problem]:
    """Refuse to watch at night what is no candidate."""
    policy = salvage(NightlyPolicy, tree.data.get("nightly", {}))
    for index, name in enumerate(policy.candidates if policy and members else ()):
        if name not in members:
            where = tree.where(("nightly", "candidates", index))
            yield Problem(where, f"unknown candidate {name!r}", "a candidate", did_you_mean(name, members))


def _gated(tasks: Iterable[tuple[Keys, Task]], tree: Tree) -> Iterator[Problem]:
    gate = salvage(GatePolicy, tree.data.get("gate", {}))
    suites = _suites(tree)
    if tree.failed or gate is None:
        return
    of_suites = {task.name for keys, task in tasks if keys != ("target",)}
    named = (
        ("critical", "task or suite", gate.critical, of_suites | {str(s.get("name")) for _, s in suites}),
        ("tasks", "task", gate.tasks, of_suites),
    )
    for key, what, names, known in named:
        for index, name in enumerate(names):
            if name not in known:
                where = tree.where(("gate", key, index))
                hint = did_you_mean(name, known) if known else "list its suite under suites:"
                yield Problem(where, f"unknown {what} {name!r}", "one that is listed under suites:", hint)


def _recipe(recipe: Recipe, keys: Keys, target: Task | None, tree: Tree) -> Iterator[Problem]:
    if recipe.template is not None and "{prompt}" not in recipe.template:
        where = tree.where((*keys, "template"))
        found = f"template {recipe.template!r}"
        yield Problem(where, found, "a template with {prompt} in it", "add {prompt}")
    used = [("methods", recipe.method, recipe.params, (*keys, "params"), tree.where((*keys, "method")))]
    for key, kind in PLUGINS.items():
        for name, params in getattr(recipe, key).items():
            at = (*keys, key, name)
            used.append((kind, name, params, at, tree.where(at)))
    for kind, name, params, at, where in used:
        try:
            plugin = plugins.load(kind, name, where)
        except UserError as error:
            yield from error.problems
        else:
            yield from problems_of(plugin.Params, params, tree, at)
            yield from _needs(_files_read(kind, plugin), name, target, where)


def _files_read(kind: str, plugin: ModuleType) -> tuple[str, ...]:
    """Name the files of the data that a plugin reads."""
    if kind == "methods":
        return (plugin.METHOD.draws_from,) if plugin.METHOD.draws_from else ()
    return getattr(plugin, "NEEDS", ())


def _needs(needs: tuple[str, ...], name: str, target: Task | None, where: str) -> Iterator[Problem]:
    """Compare the files that a plugin reads with what the target has."""
    for need in needs if target else ():
        if target is not None and target.data.source(need) is None:
            found = f"{name} without {need} rows"
            expected = f"`{need}:` in the data of the target"
            yield Problem(where, found, expected, f"add {need}: {need}.jsonl, or leave {name} out")


def _suites(tree: Tree) -> list[tuple[int, dict[str, Any]]]:
    suites = tree.data.get("suites")
    listed = enumerate(suites) if isinstance(suites, list) else ()
    return [(i, suite) for i, suite in listed if isinstance(suite, dict)]


def _bad_name(name: str, tree: Tree) -> Problem:
    where = tree.where(("candidates", name))
    return Problem(where, f"candidate {name!r}", "a name of letters, digits and the signs _ . -", "rename it")


def _is_name(name: str) -> bool:
    return bool(name) and all(sign.isascii() and (sign.isalnum() or sign in _NAME_SIGNS) for sign in name)


def _weight_source(name: str, recipe: Recipe, members: Mapping[str, Member], tree: Tree) -> Iterator[Problem]:
    """Yield what does not fit in how a recipe comes by its weights."""
    keys: Keys = ("candidates", members[name].source)
    yield from _check_weights_of(name, recipe, members, tree, keys)
    if recipe.method not in plugins.names("methods"):
        return
    method = plugins.method(recipe.method)
    yield from _check_init_from(name, recipe, method, members, tree, keys)
    yield from _check_reward(recipe, method, members, tree, keys)
    yield from _check_merges(name, recipe, method, members, tree, keys)
    yield from _check_quantization(recipe, method, tree, keys)
    yield from _path_problems(recipe, method, tree, keys)
    yield from _check_serve_on(recipe, method, members, tree, keys)
    yield from _check_sweep(recipe, method, tree, keys)
    yield from _check_regularizers(recipe, method, tree, keys)


def _check_weights_of(
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


def _check_init_from(
    name: str, recipe: Recipe, method: Method, members: Mapping[str, Member], tree: Tree, keys: Keys
) -> Iterator[Problem]:
    source, where = recipe.init_from, tree.where((*keys, "init_from"))
    if source is None:
        return
    if not (wanted := method.init_from):
        able = [able for able in plugins.names("methods") if plugins.method(able).init_from]
        found = f"init_from with the method {recipe.method}, which starts at the base"
        yield Problem(where, found, f"one of the methods {', '.join(able)}", "remove init_from")
    elif source not in members:
        yield Problem(where, f"unknown candidate {source!r}", *_candidate(source, name, members))
    elif name in _ancestors(name, members):
        yield Problem(where, f"{name} starting from itself", "a candidate that is made before it")
    elif (made := _makes(source, members)) != wanted:
        found = f"{source}, which makes {_article(made)}"
        makers = plugins.methods(trains_on_rows=True, makes=wanted)
        step = f"name a candidate with the method {' or '.join(makers)}"
        yield Problem(where, found, f"a candidate that makes {_article(wanted)}", step)
    elif shape := sorted(recipe.params.keys() & set(method.shape_params)):
        found = f"{', '.join(shape)} of an adapter that {source} has made already"
        yield Problem(
            tree.where((*keys, "params")), found, "its shape as it is", f"remove {', '.join(shape)}"
        )


def answers(recipe: Any) -> bool:
    """Tell whether the weights of a recipe as written answer a task."""
    method = mapping(recipe).get("method", BASE)
    return method not in plugins.names("methods") or plugins.method(method).answers


def _check_reward(
    recipe: Recipe, method: Method, members: Mapping[str, Member], tree: Tree, keys: Keys
) -> Iterator[Problem]:
    """Refuse a method without the reward that it trains on, and a reward that is none."""
    reward = recipe.reward
    expected = "a candidate that makes a reward model, one of our metrics, or a Python file"
    if reward is None:
        if method.rewarded:
            found, step = f"{recipe.method} without a reward", "add reward: exact_match"
            yield Problem(tree.where((*keys, "method")), found, expected, step)
        return
    where = tree.where((*keys, "reward"))
    if not method.rewarded:
        able = " or ".join(plugins.methods(rewarded=True))
        found = f"reward with the method {recipe.method}, which trains on none"
        yield Problem(where, found, f"one of the methods {able}", "remove reward")
    elif is_path(reward):
        if not Path(reward).is_file():
            yield missing_file(Path(reward), where, "a Python file with a function reward")
    elif reward in members:
        if (made := _makes(reward, members)) != "reward":
            able = " or ".join(plugins.methods(makes="reward"))
            found = f"{reward}, which makes {_article(made)}"
            yield Problem(
                where, found, "a candidate that makes a reward model", f"one with the method {able}"
            )
    elif reward not in (known := plugins.names("metrics")):
        makers = {one for one in members if _makes(one, members) == "reward"}
        yield Problem(where, f"unknown reward {reward!r}", expected, did_you_mean(reward, {*known, *makers}))


def _ancestors(name: str, members: Mapping[str, Member]) -> list[str]:
    """List what a candidate starts from or merges, nearest first; a circle ends where it closes."""
    found: list[str] = []
    ahead = _parents(name, members)
    while ahead:
        at, *ahead = ahead
        if at not in found:
            found.append(at)
            ahead += _parents(at, members)
    return found


def _parents(name: str, members: Mapping[str, Member]) -> list[str]:
    recipe = salvage(Recipe, members[name].recipe)
    named = (recipe.init_from, *recipe.merges) if recipe else ()
    return [one for one in named if one is not None and one in members]


def _check_merges(
    name: str, recipe: Recipe, method: Method, members: Mapping[str, Member], tree: Tree, keys: Keys
) -> Iterator[Problem]:
    """Refuse to merge fewer than two adapters, what is none, and with a method that merges nothing."""
    where = tree.where((*keys, "merges"))
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
            yield Problem(where, f"unknown candidate {source!r}", *_candidate(source, name, members))
        elif name == source or name in _ancestors(source, members):
            yield Problem(where, f"{name} merging itself", "candidates that are made before it")
        elif (made := _makes(source, members)) != method.makes:
            found = f"{source}, which makes {_article(made)}"
            yield Problem(where, found, f"a candidate that makes {_article(method.makes)}", "name another")


def _check_quantization(recipe: Recipe, method: Method, tree: Tree, keys: Keys) -> Iterator[Problem]:
    """Refuse to quantise a base on which no new adapter is trained."""
    if recipe.quantization and not (method.trains and method.makes == "adapter"):
        found = f"quantization with the method {recipe.method}, which trains no adapter"
        where = tree.where((*keys, "quantization"))
        yield Problem(where, found, "a method that trains an adapter on the base", "remove quantization")


def _makes(name: str, members: Mapping[str, Member]) -> str:
    recipe = mapping(members[name].recipe)
    method = recipe.get("method", BASE)
    if recipe.get("weights_of") or method not in plugins.names("methods"):
        return ""
    return plugins.method(method).makes


def _article(made: str) -> str:
    named = {
        "adapter": "an adapter",
        "delta": "a delta of a form of its own",
        "model": "a whole model",
        "reward": "a reward model",
    }
    return named.get(made, "no weights of its own")


def _path_problems(recipe: Recipe, method: Method, tree: Tree, keys: Keys) -> Iterator[Problem]:
    if recipe.path is None and method.made_elsewhere:
        where = tree.where((*keys, "method"))
        found = f"{recipe.method} without path"
        yield Problem(where, found, "the folder of the weights", "add path: ./the-folder")
    elif recipe.path is not None:
        where = tree.where((*keys, "path"))
        if not method.made_elsewhere:
            found = f"path with the method {recipe.method}, which makes its own weights"
            able = " or ".join(plugins.methods(made_elsewhere=True))
            yield Problem(where, found, f"path with the method {able}", f"add method: {able}")
        elif recipe.path.startswith(HUB) and method.makes != "model":
            step = "download it, or merge it and name method: model"
            yield Problem(where, f"{recipe.method} of the hub", "the folder of the weights", step)
        elif not recipe.path.startswith(HUB) and not Path(recipe.path).is_dir():
            yield missing_file(Path(recipe.path), where, "the folder of the weights")


def _check_serve_on(
    recipe: Recipe, method: Method, members: Mapping[str, Member], tree: Tree, keys: Keys
) -> Iterator[Problem]:
    if recipe.serve_on is None:
        return
    borrowed = recipe.weights_of in members
    made = _makes(recipe.weights_of, members) if borrowed and recipe.weights_of else method.makes
    if made != "adapter":
        found = f"serve_on for {_article(made)}"
        where = tree.where((*keys, "serve_on"))
        yield Problem(where, found, "an adapter, which can be put on another base", "remove serve_on")


def _check_sweep(recipe: Recipe, method: Method, tree: Tree, keys: Keys) -> Iterator[Problem]:
    """Refuse a sweep of what is no parameter, of one value, or of a method that trains nothing."""
    fields = method.params.model_fields
    if (n := prod(map(len, recipe.sweep.values()))) > _MOST_TRIALS:
        where = tree.where((*keys, "sweep"))
        yield Problem(where, f"a sweep of {n:,} trials", f"at most {_MOST_TRIALS}", "sweep fewer values")
    for name, values in recipe.sweep.items():
        at = (*keys, "sweep", name)
        where = tree.where(at)
        if not method.trains:
            found = f"a sweep with the method {recipe.method}, which trains no language model"
            yield Problem(where, found, "a method that trains", "remove sweep")
        elif method.makes == "reward":
            found = (
                f"a sweep with the method {recipe.method}, which answers nothing that validation could score"
            )
            yield Problem(where, found, "one set of parameters", "choose by its held-out accuracy")
        elif name not in fields and method.params.model_config.get("extra") != "allow":
            yield Problem(where, f"a sweep of {name!r}", "a parameter", did_you_mean(name, fields))
        elif name in recipe.params:
            found = f"{name} in params and in sweep"
            yield Problem(where, found, "it in one of the two", "remove it from params")
        elif len(values) < 2:
            yield Problem(where, f"a sweep of {name} with {len(values)} values", "two values at least")
    yield from _check_points(recipe, method, tree, keys)


def _check_points(recipe: Recipe, method: Method, tree: Tree, keys: Keys) -> Iterator[Problem]:
    """Refuse values of a sweep, then points of it whose values do not go together or with `params`."""
    known = {name: values for name, values in recipe.sweep.items() if name in method.params.model_fields}
    single = [
        problem
        for name, values in known.items()
        for value in values
        for problem in problems_of(
            method.params, {**recipe.params, name: value}, tree, (*keys, "sweep", name)
        )
        if problem.found.startswith(f"{name}:")
    ]
    yield from single
    if single or prod(map(len, known.values())) > _MOST_TRIALS:
        return
    own = set(problems_of(method.params, recipe.params, tree, (*keys, "params")))
    points = (dict(zip(known, values, strict=True)) for values in product(*known.values()))
    together = (
        replace(problem, where=tree.where((*keys, "sweep")))
        for point in points
        for problem in problems_of(method.params, {**recipe.params, **point}, tree, (*keys, "params"))
        if problem not in own
    )
    yield from dict.fromkeys(together)


def _check_regularizers(recipe: Recipe, method: Method, tree: Tree, keys: Keys) -> Iterator[Problem]:
    """Refuse regularisers that a method or its parameters do not take, and missing files of rows."""
    known = plugins.names("regularizers")
    for name, params in recipe.regularize.items():
        where = tree.where((*keys, "regularize", name))
        if name in known and not plugins.takes(method, name):
            able = [m for m in plugins.names("methods") if plugins.takes(plugins.method(m), name)]
            why = "whose training does not take it" if method.trains else "which makes no gradient steps"
            found = f"{name} with the method {recipe.method}, {why}"
            yield Problem(where, found, f"one of the methods {', '.join(able)}", f"remove {name}")
        elif name in known and (found := plugins.refuses(name, recipe.params)):
            expected = "an adapter whose matrices are added to the base's"
            yield Problem(where, f"{name} with {found}", expected, f"remove {name}, or take kl")
        if isinstance(path := params.get("data"), str):
            yield from _general_file(path, where)


def _general_file(path: str | None, where: str) -> Iterator[Problem]:
    """Refuse a file of general rows that is not there."""
    if path is not None and not path.startswith(HUB) and not Path(path).is_file():
        yield missing_file(Path(path), where, "general rows, each with a prompt and its answer")


def _candidate(source: str, name: str, members: Mapping[str, Member]) -> tuple[str, str]:
    grid = [member for member, m in members.items() if m.source == source]
    if grid:
        return "one candidate of that grid", f"one of: {', '.join(grid)}"
    return "the name of another candidate", did_you_mean(source, members.keys() - {name})


def _others(name: str, members: Mapping[str, Member]) -> str:
    return f"one of: {', '.join(sorted(members.keys() - {name}))}" if len(members) > 1 else "give it a method"
