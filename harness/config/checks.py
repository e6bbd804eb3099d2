"""Validation across keys: names, files and candidates that must fit together.

Invariant: a check looks at what could be read and never stops another check; what is accepted here can
be made.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from harness import plugins, spec
from harness.config.files import describe_missing_file, raw_tasks
from harness.config.grids import GridMember
from harness.config.recipe_checks import WrittenRecipe, check_decoding, check_general_rows, recipes_by_prompt
from harness.config.rubrics import is_judged, judge_problems, pair_judge_problems, public_judges
from harness.config.weight_sources import check_weights
from harness.config.yaml_loading import NAME_IN_WORDS, Keys, Tree, problems_of, read_valid
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
            tree.problems += [*check_weights(written), *check_decoding(written, target)]
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
    """Tell whether a task names such rows; folds test training rows."""
    return task.data.source(part) is not None or (part == "test" and task.data.folds is not None)


def _sensitive(tasks: Iterable[tuple[Keys, spec.Task]], tree: Tree) -> Iterator[Problem]:
    """Refuse judges on somebody else's server where the data are sensitive."""
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
    """Refuse an unknown metric or parameter, a missing file, and a file with the name of one of ours."""
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
        known = plugins.rescue_steps()
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
