"""Validation across keys: names, files and candidates that must fit together, and where weights come from.

Invariant: a check looks at what could be read and never stops another check; what is accepted can be made.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from harness import plugins, spec
from harness.config.files import GridMember, describe_missing_file, raw_tasks
from harness.config.recipe_checks import (
    WrittenRecipe,
    check_decoding,
    check_general_rows,
    check_regularizers,
    check_sweep,
    recipes_by_prompt,
)
from harness.config.rubrics import is_judged, judge_problems, pair_judge_problems, public_judges
from harness.config.yaml_loading import NAME_IN_WORDS, Keys, Tree, mapping, problems_of, read_valid
from harness.errors import Problem, UserError, did_you_mean

_LONGEST_NAMES = 150  # characters: what is stored of a candidate has a longer name, in 255 bytes


def check(tree: Tree, members: Mapping[str, GridMember]) -> None:
    """Add to the tree's problems whatever does not fit together."""
    tasks = [(keys, read_valid(spec.Task, task)) for keys, task in raw_tasks(tree)]
    known = [(keys, task) for keys, task in tasks if task is not None]
    target = next((task for keys, task in known if keys == ("target",)), None)
    for keys, task in known:
        tree.problems += _task(task, keys, tree)
    tree.problems += _sensitive(known, tree)
    tree.problems += _names_and_roles(known, tree)
    if len(known) == len(tasks):  # else a name may be that of a task that is refused
        tree.problems += _gate_problems(known, tree)
    tree.problems += _rescue_and_nightly(tree, members)
    for name, member in members.items():
        recipe = read_valid(spec.Recipe, member.recipe)
        if recipe is not None:
            keys = ("candidates", member.source)
            # What is wrong with the recipe as written, and with each value that it tries for its prompt.
            tried = (_recipe(each, keys, target, tree) for each in (recipe, *recipes_by_prompt(recipe)))
            tree.problems += dict.fromkeys(chain.from_iterable(tried))
            written = WrittenRecipe(name, recipe, members, tree)
            checks = [_check_weights_of_and_role]
            if recipe.method in plugins.names("methods"):
                checks += [_check_init_from, _check_reward, _check_merges, _check_quantization, _check_files]
                checks += [check_sweep, check_regularizers]
            tree.problems += [problem for check_recipe in checks for problem in check_recipe(written)]
            tree.problems += check_decoding(written, target)
    experiment = str(tree.data.get("name"))
    for name, member in members.items():
        where = tree.where(("candidates", member.source))
        if not re.fullmatch(spec.NAME, member.source):
            tree.problems += [Problem(where, f"candidate {member.source!r}", NAME_IN_WORDS, "rename it")]
        elif (n := len(f"{experiment}{name}".encode())) > _LONGEST_NAMES:
            found = f"candidate {name!r}, with the name of the experiment {n} characters"
            step = "shorten one of the names, or values of a grid"
            tree.problems += [Problem(where, found, f"{_LONGEST_NAMES} at most", step)]


def _task(task: spec.Task, keys: Keys, tree: Tree) -> Iterator[Problem]:
    if task.lm_eval:
        if keys[0] != "suites":
            found = f"{task.lm_eval}, a task of lm-eval, as {'the' if keys == ('target',) else 'a'} target"
            step = "list it in a suite under suites:"
            yield Problem(tree.where(keys), found, "a task with data of its own", step)
        return
    for name in spec.DATA_FILES:
        path, at = getattr(task.data, name), tree.where((*keys, "data", name))
        if path is not None and not path.startswith(spec.HUB) and not Path(path).exists():
            yield describe_missing_file(Path(path), at, f"the {name} rows of task {task.name}")
    for index, name in enumerate(task.metrics):
        at = tree.where((*keys, "metrics", index))
        yield from judge_problems(task, name, tree.folder, at) if is_judged(name) else _metric(name, at, tree)
    where = tree.where((*keys, "data"))
    if not _names_rows(task, "test"):
        found = f"task {task.name} without test rows"
        yield Problem(where, found, "`test:` in its data", "add test: test.jsonl")
    if task.num_fewshot and not _names_rows(task, "train"):
        at = tree.where((*keys, "num_fewshot"))
        found, expected = "shots without rows to take them from", "`train:` in the data of the task"
        yield Problem(at, found, expected, "add train: train.jsonl, or leave num_fewshot out")


def _names_rows(task: spec.Task, part: str) -> bool:
    return task.data.source(part) is not None or (part == "test" and task.data.folds is not None)


def _sensitive(tasks: Iterable[tuple[Keys, spec.Task]], tree: Tree) -> Iterator[Problem]:
    policy = read_valid(spec.DecidePolicy, tree.data.get("decide", {}))
    if policy is None or "sensitive_data" not in policy.needs:
        return
    gate = read_valid(spec.GatePolicy, tree.data.get("gate", {}))
    listed = [((*keys, "metrics", i), one) for keys, task in tasks for i, one in enumerate(task.metrics)]
    listed += [(("gate", "target", "by"), gate.target.by)] if gate else []
    for place, written in listed:
        if is_judged(written):
            yield from public_judges(written, tree.where(place))


def _metric(written: str, where: str, tree: Tree) -> Iterator[Problem]:
    prefix, name, _ = spec.metric_parts(written)
    path = Path(name)
    if spec.is_path(name) and not path.exists():
        what = "the file of a metric" if prefix != spec.ENTAILMENT else "a model"
        yield describe_missing_file(path, where, what)
    elif prefix:
        return
    elif name.endswith(".py"):
        if path.stem in plugins.names("metrics"):
            found = f"a file of the name of our own metric {path.stem}"
            yield Problem(where, found, "a name of its own", "rename the file")
    elif name not in plugins.names("metrics"):
        yield plugins.unknown("metrics", name, where)
    elif params := spec.metric_params(written):
        taken = getattr(plugins.load("metrics", name), "Params", spec.Spec)
        yield from (replace(problem, where=where) for problem in problems_of(taken, params, tree))


def _names_and_roles(tasks: Iterable[tuple[Keys, spec.Task]], tree: Tree) -> Iterator[Problem]:
    seen: dict[str, str] = {}
    suites = _suites(tree)
    named = [(f"task {task.name!r}", (*keys, "name")) for keys, task in tasks]
    named += [(f"suite {suite.get('name')!r}", ("suites", i, "name")) for i, suite in suites]
    for name, keys in named:
        where = tree.where(keys)
        if name in seen:
            yield Problem(where, f"a second {name}", "every name once", f"the first is at {seen[name]}")
        seen.setdefault(name, where)
    for i, suite in suites:
        if suite.get("role", "target") == "target":
            where = tree.where(("suites", i, "role"))
            found = f"suite {suite.get('name')!r} with the role target"
            yield Problem(where, found, "the role capability, safety or regression", "add role: capability")


def _rescue_and_nightly(tree: Tree, members: Mapping[str, GridMember]) -> Iterator[Problem]:
    if rescue := read_valid(spec.RescuePolicy, tree.data.get("rescue", {})):
        yield from check_general_rows(rescue.replay, tree.where(("rescue", "replay")))
        known = plugins.rescue_steps() if rescue.steps else ()  # asking loads all methods
        for index, step in enumerate(rescue.steps or ()):
            if step not in known:
                where, hint = tree.where(("rescue", "steps", index)), did_you_mean(step, known)
                yield Problem(where, f"unknown step {step!r}", "a step of a rescue", hint)
    nightly = read_valid(spec.NightlyPolicy, tree.data.get("nightly", {}))
    for index, name in enumerate(nightly.candidates if nightly and members else ()):
        if name not in members:
            where, hint = tree.where(("nightly", "candidates", index)), did_you_mean(name, members)
            yield Problem(where, f"unknown candidate {name!r}", "a candidate", hint)


def _gate_problems(tasks: Iterable[tuple[Keys, spec.Task]], tree: Tree) -> Iterator[Problem]:
    gate = read_valid(spec.GatePolicy, tree.data.get("gate", {}))
    suites = _suites(tree)
    if tree.failed or gate is None:
        return
    of_suites = {task.name for keys, task in tasks if keys[0] == "suites"}
    named = (
        ("critical", "task or suite", gate.critical, of_suites | {str(s.get("name")) for _, s in suites}),
        ("tasks", "task", gate.tasks, of_suites),
    )
    if gate.target.by != spec.PEOPLE:
        yield from pair_judge_problems(gate.target.by, tree.folder, tree.where(("gate", "target", "by")))
    for key, what, names, known in named:
        for index, name in enumerate(names):
            if name not in known:
                where = tree.where(("gate", key, index))
                hint = did_you_mean(name, known) if known else "list its suite under suites:"
                yield Problem(where, f"unknown {what} {name!r}", "one that is listed under suites:", hint)


def _recipe(recipe: spec.Recipe, keys: Keys, target: spec.Task | None, tree: Tree) -> Iterator[Problem]:
    if recipe.template is not None and "{prompt}" not in recipe.template:
        where = tree.where((*keys, "template"))
        found = f"template {recipe.template!r}"
        yield Problem(where, found, "a template with {prompt} in it", "add {prompt}")
    used = [("methods", recipe.method, recipe.params, (*keys, "params"), tree.where((*keys, "method")))]
    for key, kind in spec.PLUGINS.items():
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
            # The files of the data that a plugin reads.
            needs = getattr(plugin, "NEEDS", ())
            if kind == "methods":
                needs = () if recipe.train or recipe.mix else filter(None, [plugin.METHOD.draws_from])
            for need in needs:
                if target is not None and not _names_rows(target, need):
                    found, expected = f"{name} without {need} rows", f"`{need}:` in the data of the target"
                    step = f"add {need}: {need}.jsonl, or leave {name} out"
                    yield Problem(where, found, expected, step)


def _suites(tree: Tree) -> list[tuple[int, dict[str, Any]]]:
    suites = tree.data.get("suites")
    listed = enumerate(suites) if isinstance(suites, list) else ()
    return [(i, suite) for i, suite in listed if isinstance(suite, dict)]


def _check_weights_of_and_role(written: WrittenRecipe) -> Iterator[Problem]:
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
    made_by = mapping(lender.recipe).get("method", spec.BASE) if lender else recipe.method
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
    elif not {*wanted.split(plugins.OR)} & {*(made := _makes(source, members)).split(plugins.OR)}:
        found = f"{source}, which makes {_article(made)}"
        trained = (plugins.methods(trains_on_rows=True, makes=kind) for kind in wanted.split(plugins.OR))
        makers = [maker for of_a_kind in trained for maker in of_a_kind]
        step = f"name a candidate with the method {' or '.join(makers)}"
        yield Problem(where, found, f"a candidate that makes {_article(wanted)}", step)
    elif shape := sorted(recipe.params.keys() & set(method.adapter.fixed)):
        found = f"{', '.join(shape)} of an adapter that {source} has made already"
        yield Problem(written.where("params"), found, "its shape as it is", f"remove {', '.join(shape)}")


def _check_reward(written: WrittenRecipe) -> Iterator[Problem]:
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
    elif spec.is_path(reward):
        if not Path(reward).is_file():
            what = "a Python file with a function reward, or metric"
            yield describe_missing_file(Path(reward), where, what)
    elif reward in members:
        if (made := _makes(reward, members)) != "reward":
            able = " or ".join(plugins.methods(makes="reward"))
            found = f"{reward}, which makes {_article(made)}"
            step = f"one with the method {able}"
            yield Problem(where, found, "a candidate that makes a reward model", step)
    elif spec.metric_plugin(reward) not in (known := plugins.names("metrics")):
        makers = {one for one in members if _makes(one, members) == "reward"}
        yield Problem(where, f"unknown reward {reward!r}", expected, did_you_mean(reward, {*known, *makers}))


def _ancestors(name: str, members: Mapping[str, GridMember]) -> set[str]:
    found: set[str] = set()
    ahead = [name]
    while ahead:
        recipe = read_valid(spec.Recipe, members[ahead.pop()].recipe)
        named = (recipe.init_from, *recipe.merges) if recipe else ()
        parents = {one for one in named if one is not None and one in members} - found
        found |= parents
        ahead += parents
    return found


def _check_merges(written: WrittenRecipe) -> Iterator[Problem]:
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
        elif method.makes not in (made := _makes(source, members)).split(plugins.OR):
            found = f"{source}, which makes {_article(made)}"
            yield Problem(where, found, f"a candidate that makes {_article(method.makes)}", "name another")


def _makes(name: str, members: Mapping[str, GridMember]) -> str:
    recipe = mapping(members[name].recipe)
    method = recipe.get("method", spec.BASE)
    if recipe.get("weights_of") or method not in plugins.names("methods"):
        return ""
    made, init = plugins.method(method).makes, str(recipe.get("init_from"))
    takes_any = plugins.OR in made and init in members and name not in _ancestors(name, members)
    return (_makes(init, members) if takes_any else "") or made


def _article(made: str) -> str:
    named = {
        "adapter": "an adapter",
        "delta": "a delta of a form of its own",
        "model": "a whole model",
        "adapter or model": "an adapter or a whole model",
        "adapter or delta or model": "an adapter, a delta or a whole model",
        "reward": "a reward model",
        **dict.fromkeys(("classifier", "head", "embedding"), "a classifier"),
        "endpoint": "no weights here",
        "artefact": "a file that is served",
    }
    return named.get(made, "no weights of its own")


def _check_files(written: WrittenRecipe) -> Iterator[Problem]:
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
        elif recipe.path.startswith(spec.HUB) and method.makes != "model":
            step = "download it, or merge it and name method: model"
            yield Problem(where, f"{recipe.method} of the hub", "the folder of the weights", step)
        elif not recipe.path.startswith(spec.HUB) and not (
            Path(recipe.path).is_dir() or (method.makes == "artefact" and Path(recipe.path).is_file())
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
            if not path.startswith(spec.HUB) and not Path(path).is_file():
                yield describe_missing_file(Path(path), written.where(key), "rows to train on")


def _check_quantization(written: WrittenRecipe) -> Iterator[Problem]:
    recipe, members, method = written.recipe, written.members, written.method
    if recipe.quantization and not (method.trains and method.makes == "adapter"):
        found = f"quantization with the method {recipe.method}, which trains no adapter"
        where = written.where("quantization")
        yield Problem(where, found, "a method that trains an adapter on the base", "remove quantization")
    source = recipe.weights_of if recipe.weights_of in members else None
    made = _makes(source or written.name, members)
    if recipe.serve_on is not None and "adapter" not in made.split(plugins.OR):
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
