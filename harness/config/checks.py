"""Validation across keys: names, files, policies and candidates that must fit together; lint of recipes.

Invariant: a check reads only what could be parsed and never stops another check. Lint refuses nothing: it
names settings outside the ranges of `recipe_ranges.toml`, with all sources that cover such a model.
"""

import re
import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from itertools import chain
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from harness import plugins, spec
from harness.config.files import GridMember, describe_missing_file, raw_tasks
from harness.config.recipe_checks import GENERAL_ROWS, WrittenRecipe, check_recipe, check_rows_file
from harness.config.rubrics import endpoint_params, endpoint_settings, is_endpoint, is_judged, try_to_read
from harness.config.yaml_loading import NAME_IN_WORDS, Keys, Tree, problems_of, read_valid
from harness.errors import Problem, UserError, did_you_mean

_LONGEST_NAMES = 150  # bytes: names of a candidate's stored files are longer, and have at most 255 bytes
TABLE = Path(__file__).with_name("recipe_ranges.toml")
BATCH = "batch"  # rows of a step
_RATE = "learning_rate"
_FACTORS = ("per_device_train_batch_size", "gradient_accumulation_steps")
_WARMUP = "warmup_steps"  # below 1 a share of all
SHARE = "warmup_share"
_KEYS = {BATCH: {*_FACTORS}, SHARE: {_WARMUP}}  # by setting, where it is not its own key
_BILLION = 1e9
_LISTED = "one that is listed under suites:"


def check(
    tree: Tree, members: Mapping[str, GridMember], selected: Collection[str] | None
) -> Iterator[Problem]:
    """Yield all inconsistencies between keys; `selected` candidates need their rows, None stands for all."""
    tasks = [(keys, read_valid(spec.Task, task)) for keys, task in raw_tasks(tree)]
    valid_tasks = [(keys, task) for keys, task in tasks if task is not None]
    target = next((task for keys, task in valid_tasks if keys == ("target",)), None)
    for keys, task in valid_tasks:
        yield from _task(task, keys, tree)
    yield from _sensitive(valid_tasks, tree)
    places: dict[str, str] = {}
    labelled_keys = [(f"task {task.name!r}", (*keys, "name")) for keys, task in valid_tasks]
    labelled_keys += [(f"suite {suite.get('name')!r}", ("suites", i, "name")) for i, suite in _suites(tree)]
    for name, keys in labelled_keys:
        where = tree.where(keys)
        if name in places:
            yield Problem(where, f"a second {name}", "every name once", f"the first is at {places[name]}")
        places.setdefault(name, where)
    for i, suite in _suites(tree):
        if suite.get("role", "target") == "target":
            where = tree.where(("suites", i, "role"))
            found = f"suite {suite.get('name')!r} with the role target"
            yield Problem(where, found, "the role capability, safety or regression", "add role: capability")
    yield from _policies(valid_tasks, tree, members, len(valid_tasks) == len(tasks))
    for name, member in members.items():
        recipe = read_valid(spec.Recipe, member.recipe)
        if recipe is not None:
            keys = ("candidates", member.source)
            # Check the recipe as written, and with each value that it tries for its prompt.
            recipes = [recipe]
            for key in spec.PROMPTS:
                for value in recipe.tried.get(key, ()):
                    with suppress(ValidationError):  # reported at its own position
                        recipes.append(recipe.with_prompt({key: value}))
            problems = (_recipe(variant, keys, target, tree) for variant in recipes)
            yield from dict.fromkeys(chain.from_iterable(problems))
            yield from check_recipe(WrittenRecipe(name, recipe, members, tree, selected), target)
    experiment = str(tree.data.get("name"))
    for name, member in members.items():
        where = tree.where(("candidates", member.source))
        if not re.fullmatch(spec.NAME, member.source):
            yield Problem(where, f"candidate {member.source!r}", NAME_IN_WORDS, "rename it")
        elif (n := len(f"{experiment}{name}".encode())) > _LONGEST_NAMES:
            found = f"candidate {name!r}, with the name of the experiment {n} bytes"
            step = "shorten one of the names, or values of a grid"
            yield Problem(where, found, f"{_LONGEST_NAMES} at most", step)


def _task(task: spec.Task, keys: Keys, tree: Tree) -> Iterator[Problem]:
    if task.lm_eval:
        if keys[0] != "suites":
            found = f"{task.lm_eval}, a task of lm-eval, as {'the' if keys == ('target',) else 'a'} target"
            step = "list it in a suite under suites:"
            yield Problem(tree.where(keys), found, "a task with data of its own", step)
        return
    for name in spec.DATA_FILES:
        path, at = getattr(task.data, name), tree.where((*keys, "data", name))
        if path is not None and not Path(path).is_dir():
            yield from check_rows_file(path, at, f"the {name} rows of task {task.name}")
    for index, name in enumerate(task.metrics):
        at = tree.where((*keys, "metrics", index))
        if not is_judged(name):
            yield from _metric(name, at, tree)
            continue
        judge = spec.metric_name(name)
        if task.kind != "generate":
            found = f"{judge} on a task of kind {task.kind}"
            step = "kind: generate, or a metric such as accuracy"
            yield Problem(at, found, "answers in text to be graded", step)
        if [spec.metric_name(metric) for metric in task.metrics].count(judge) > 1:
            yield Problem(at, f"{judge} twice", "each name of a rubric once", "rename one of the files")
        if isinstance(rubric := try_to_read(name, tree.folder, at), list):
            yield from rubric
    if not _names_rows(task, "test"):
        found, where = f"task {task.name} without test rows", tree.where((*keys, "data"))
        yield Problem(where, found, "`test:` in its data", "add test: test.jsonl")
    if task.num_fewshot and not _names_rows(task, "train"):
        at = tree.where((*keys, "num_fewshot"))
        found, expected = "shots without rows to take them from", "`train:` in the data of the task"
        yield Problem(at, found, expected, "add train: train.jsonl, or leave num_fewshot out")


def _names_rows(task: spec.Task, split: str) -> bool:
    return task.data.source(split) is not None or (split == "test" and task.data.folds is not None)


def _sensitive(tasks: Iterable[tuple[Keys, spec.Task]], tree: Tree) -> Iterator[Problem]:
    policy = read_valid(spec.DecidePolicy, tree.data.get("decide", {}))
    if policy is None or "sensitive_data" not in policy.needs:
        return
    gate = read_valid(spec.GatePolicy, tree.data.get("gate", {}))
    metrics = [((*keys, "metrics", i), m) for keys, task in tasks for i, m in enumerate(task.metrics)]
    metrics += [(("gate", "target", "by"), gate.target.by)] if gate else []
    for metric_keys, written in metrics:
        rubric = try_to_read(written, tree.folder, "") if is_judged(written) else []
        for judge in () if isinstance(rubric, list) else rubric.judges:
            server = endpoint_settings()(**endpoint_params(judge)) if is_endpoint(judge) else None
            if server and server.leaves_machine:
                found = f"{spec.metric_name(written)}: a judge on an external server, {server.name}"
                expected = "sensitive data to stay here, as decide.needs: [sensitive_data] says"
                step = "a judge that runs here or in your network, or remove sensitive_data"
                yield Problem(tree.where(metric_keys), found, expected, step)


def _metric(written: str, where: str, tree: Tree) -> Iterator[Problem]:
    prefix, name, _ = spec.metric_parts(written)
    path = Path(name)
    if spec.is_path(name) and not path.exists():
        expected_file = "the file of a metric" if prefix != spec.ENTAILMENT else "a model"
        yield describe_missing_file(path, where, expected_file)
    elif prefix:
        return
    elif name.endswith(".py"):
        if path.stem in plugins.names("metrics"):
            found = f"a file of the name of our own metric {path.stem}"
            yield Problem(where, found, "a name of its own", "rename the file")
    elif name not in plugins.names("metrics"):
        yield plugins.unknown("metrics", name, where)
    elif params := spec.metric_params(written):
        params_model = getattr(plugins.load("metrics", name), "Params", spec.Spec)
        yield from (replace(problem, where=where) for problem in problems_of(params_model, params, tree))


def _policies(
    tasks: Sequence[tuple[Keys, spec.Task]], tree: Tree, members: Mapping[str, GridMember], all_valid: bool
) -> Iterator[Problem]:
    """Yield the problems of gate, rescue and nightly: unknown names and unusable files."""
    named: list[tuple[Keys, str, Sequence[str], Collection[str]]] = []  # keys, kind, names, known names
    gate = read_valid(spec.GatePolicy, tree.data.get("gate", {}))
    if gate and all_valid and not tree.failed:  # else an unknown name may be that of a refused task
        suite_tasks = {task.name for keys, task in tasks if keys[0] == "suites"}
        with_suites = suite_tasks | {str(suite.get("name")) for _, suite in _suites(tree)}
        named.append((("gate", "critical"), "task or suite", gate.critical, with_suites))
        named.append((("gate", "tasks"), "task", gate.tasks, suite_tasks))
        if gate.target.by != spec.PEOPLE:
            where = tree.where(("gate", "target", "by"))
            rubric = try_to_read(gate.target.by, tree.folder, where)
            if isinstance(rubric, list):
                yield from rubric
            elif rubric.mode != "pairwise":
                found = f"{spec.metric_name(gate.target.by)}, whose mode is {rubric.mode}"
                expected, step = "mode: pairwise, which compares two answers", "write another rubric"
                yield Problem(where, found, expected, step)
    if rescue := read_valid(spec.RescuePolicy, tree.data.get("rescue", {})):
        yield from check_rows_file(rescue.replay, tree.where(("rescue", "replay")), GENERAL_ROWS)
        if rescue.steps:  # known ones load all methods
            named.append((("rescue", "steps"), "step", rescue.steps, plugins.rescue_steps()))
    nightly = read_valid(spec.NightlyPolicy, tree.data.get("nightly", {}))
    if nightly and members:
        named.append((("nightly", "candidates"), "candidate", nightly.candidates, members))
    for keys, kind, names, known_names in named:
        expected = {"step": "a step of a rescue", "candidate": "a candidate"}.get(kind, _LISTED)
        for index, name in enumerate(names):
            if name not in known_names:
                where, hint = tree.where((*keys, index)), did_you_mean(name, known_names)
                yield Problem(where, f"unknown {kind} {name!r}", expected, hint)


def _recipe(recipe: spec.Recipe, keys: Keys, target: spec.Task | None, tree: Tree) -> Iterator[Problem]:
    if recipe.template is not None and "{prompt}" not in recipe.template:
        where, expected = tree.where((*keys, "template")), "a template with {prompt} in it"
        yield Problem(where, f"template {recipe.template!r}", expected, "add {prompt}")
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
            # The data files that a plugin reads.
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


class Range(NamedTuple):
    """Published range of a setting: kind of training, size of the model in billions, and source.

    `training` is the kind that methods declare as `published_as`, empty for every training that has the
    setting; `only` holds other settings it requires.
    """

    setting: str
    source: str
    training: str = ""
    low: float = -inf
    high: float = inf
    from_b: float = 0.0
    to_b: float = inf
    only: Mapping[str, Any] = {}

    def speaks_of(self, method: str, params: Mapping[str, Any], n_parameters: float) -> bool:
        """Tell whether the range applies to a training."""
        fits_size = self.from_b <= n_parameters / _BILLION <= self.to_b
        fits_training = self.training in ("", plugins.method(method).published_as)
        return fits_training and fits_size and all(params.get(k) == v for k, v in self.only.items())


@cache
def ranges() -> tuple[Range, ...]:
    """Read the table."""
    return tuple(Range(**row) for row in tomllib.loads(TABLE.read_text("utf-8"))["range"])


def lint(
    method: str, params: Mapping[str, Any], n_parameters: float, written: Collection[str] = ()
) -> Iterator[str]:
    """Yield settings of a training outside the published ranges, with sources; `params` are complete.

    Settings that are not `written` are marked as defaults. A default learning rate is also named if all
    published ranges are for models of other sizes.
    """
    rows, steps = (params.get(name) for name in _FACTORS)
    warmup = params.get(_WARMUP) or None  # no warm-up is a valid choice
    settings = {**params, BATCH: rows * steps if rows and steps else None}
    settings |= {SHARE: warmup, _WARMUP: None} if warmup and warmup < 1 else {_WARMUP: warmup}
    applicable = [r for r in ranges() if r.speaks_of(method, params, n_parameters)]
    for setting in dict.fromkeys(r.setting for r in applicable):
        value, sources = settings.get(setting), [r for r in applicable if r.setting == setting]
        low, high = min(r.low for r in sources), max(r.high for r in sources)
        if value is None or low <= value <= high:
            continue
        direction = "below" if value < low else "above"
        published = "; ".join(f"{_span(r)} ({r.source})" for r in sources)
        name = {BATCH: "rows of a step", SHARE: "share of warm-up steps"}.get(setting, setting)
        default = ", the default," if _KEYS.get(setting, {setting}).isdisjoint(written) else ""
        where = f"{direction} what was published for {_size(n_parameters)}"
        yield f"{name} {value:g}{default} is {where}: {published}"
    training = plugins.method(method).published_as
    rate_ranges = [r for r in ranges() if r.setting == _RATE and r.training == training]
    if rate_ranges and _RATE not in {*written, *(r.setting for r in applicable)}:
        sizes = f"{min(r.from_b for r in rate_ranges):g} to {max(r.to_b for r in rate_ranges):g} B"
        assumed = f"is assumed for {_size(n_parameters)}: what was published is of models of {sizes}"
        yield f"{_RATE} {params[_RATE]:g}, the default, {assumed}"


def _span(r: Range) -> str:
    if r.low == r.high:
        return f"{r.low:g}"
    if r.low == -inf:
        return f"at most {r.high:g}"
    return f"at least {r.low:g}" if r.high == inf else f"{r.low:g} to {r.high:g}"


def _size(n_parameters: float) -> str:
    size = f"{n_parameters / _BILLION:.3g} B" if n_parameters >= _BILLION else f"{n_parameters / 1e6:.3g} M"
    return f"a model of {size} parameters"
