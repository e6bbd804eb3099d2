"""Find and read the files of an experiment, replace their names by their content, and expand its grids.

Invariant: a path is first looked up next to the file that names it; suites and recipes that the package ships
have the same relative path everywhere. A list for a parameter that takes one value is a grid: every
combination gives one candidate, named `few-shot[shots=4]`, or for a long text `prompt[system=2-be-brief]`.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from difflib import get_close_matches
from itertools import product
from pathlib import Path, PurePath
from typing import Any, NamedTuple, get_args, get_origin

from pydantic import BaseModel

from harness import plugins, spec
from harness.config.yaml_loading import Keys, Tree, mapping, parse, problems_of
from harness.errors import Problem, UserError, did_you_mean

_PACKAGE = Path(__file__).parents[1]
_SHIPPED = (_PACKAGE, _PACKAGE.parent)
_CREATE = "create it, or correct the path"
SHIPPED_SUITES = ("general", "safety", "standard", "support")
GRID_KEYS = ("system", "template", "answer")  # keys of a recipe whose lists are grids too
_WORD = re.compile(r"[a-z0-9]+")
_IN_NO_NAME = re.compile(r"[/\\\x00-\x1f\x7f]+")  # so that a path as a value makes no folder
_WORDS = 3  # of a text, in the name of its candidate


def read_file(path: Path, folder: Path, expected: str) -> Tree:
    """Read a suite or a recipe, with absolute paths in its tasks; shown paths are relative to `folder`."""
    shown_path = str(path.relative_to(folder) if path.is_relative_to(folder) else path)
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        found = f"byte 0x{content[error.start]:02x} at offset {error.start}, which is not UTF-8"
        problem = Problem(f"{shown_path}:{line}", found, "text in UTF-8", "save the file as UTF-8")
        raise UserError(problem) from None
    data, marks = parse(text, shown_path)
    if not isinstance(data, dict):
        kinds = {type(None): "an empty file", list: "a list", str: "text"}
        found, step = kinds.get(type(data), f"the value {data}"), "see harness.yaml in the README"
        raise UserError(f"{shown_path}:1", found, f"a mapping with {expected}", step)
    _spell_out_tasks(data)
    for task in (data, *_list(data.get("tasks"))):
        _resolve(mapping(task), path.parent)
    if "method" in data:
        _resolve_recipe(data, path.parent)
    return Tree(data, marks, folder, files=[path])


def suite_files(folder: Path) -> list[Path]:
    """List the suite files of a folder; if it does not exist, those that the package ships."""
    roots = (folder, *(root / "suites" for root in _SHIPPED))
    return sorted(next((root for root in roots if root.is_dir()), folder).resolve().glob("*.yaml"))


def is_shipped(path: Path) -> bool:
    """Tell whether a file holds rows of a suite that the package ships, not of one of the user's."""
    folders = ((root / "suites" / name).resolve() for root in _SHIPPED for name in SHIPPED_SUITES)
    return any(path.resolve().is_relative_to(folder) for folder in folders)


def inline(tree: Tree) -> None:
    """Replace the names of suites, of the target and of short recipes by their content."""
    for keys in _targets(tree):
        written = tree.value(keys)
        if isinstance(written, str):
            _inline_file(tree, keys, written, "suite")
        suite = mapping(tree.value(keys))
        if not suite.keys() & {"tasks", "role"}:
            continue
        suite_data = {**suite, "tasks": [{"name": "checked-as-the-target", "data": {}}]}
        tree.problems += problems_of(spec.Suite, suite_data, tree, keys)
        tasks, prefix = suite.get("tasks"), (*keys, "tasks", 0)
        if not isinstance(tasks, list) or len(tasks) != 1 or not isinstance(tasks[0], dict):
            tree.failed.add(keys)
            found = f"{len(tasks)} tasks" if isinstance(tasks, list) else "no list of tasks"
            step = "keep one here and list others as a suite under suites:"
            tree.problems.append(Problem(tree.where(prefix[:-1]), found, "a target of one task", step))
            continue
        n = len(prefix)
        tree.put(keys, tasks[0], {k[n:]: mark for k, mark in tree.marks.items() if k[:n] == prefix})
    suites = tree.data.get("suites")
    for index, suite in enumerate(suites if isinstance(suites, list) else ()):
        if isinstance(suite, str):
            _inline_file(tree, ("suites", index), suite, "suite")
        else:
            _spell_out_tasks(mapping(suite))
    for name, recipe in mapping(tree.data.get("candidates")).items():
        if isinstance(recipe, str):
            _inline_file(tree, ("candidates", name), f"baselines/{recipe}.yaml", "recipe")
        elif recipe is None:
            tree.data["candidates"][name] = {}
        elif "replay" in mapping(recipe) and "replay" in mapping(mapping(recipe).get("regularize")):
            where = tree.where(("candidates", name, "replay"))
            tree.problems.append(Problem(where, "replay twice", "one of the two", "remove `replay:`"))
    _spell_out_recipes(tree)


def finish(tree: Tree) -> None:
    """Expand the short forms that overrides wrote, and make every path absolute."""
    _spell_out_recipes(tree)
    for _, task in raw_tasks(tree):
        _resolve(task, tree.folder)
    for holder in (tree.data, *mapping(tree.data.get("candidates")).values()):
        _resolve_recipe(mapping(holder), tree.folder)
        params = mapping(mapping(holder).get("params"))
        if "run" in params:
            params.setdefault("folder", ".")
            _resolve_file(params, "folder", tree.folder)
    _resolve_file(mapping(tree.data.get("rescue")), "replay", tree.folder)
    if str(tree.data.get("chat_template", "")).endswith(".jinja"):
        _resolve_file(tree.data, "chat_template", tree.folder)
    goal = mapping(mapping(tree.data.get("gate")).get("target"))
    if isinstance(goal.get("by"), str):
        goal["by"] = _resolve_metric(goal["by"], tree.folder)
    copies = tree.data.get("datasets_dir")
    if isinstance(copies, str):
        tree.data["datasets_dir"] = _absolute(copies, tree.folder)


def raw_tasks(tree: Tree) -> Iterator[tuple[Keys, dict[str, Any]]]:
    """Yield every task that is a mapping, as written, with its keys."""
    for keys in _targets(tree):
        if isinstance(task := tree.value(keys), dict):
            yield keys, task
    for i, suite in enumerate(_list(tree.data.get("suites"))):
        for j, task in enumerate(_list(mapping(suite).get("tasks"))):
            if isinstance(task, dict):
                yield ("suites", i, "tasks", j), task


def describe_missing_file(path: Path, where: str, expected: str, otherwise: str = _CREATE) -> Problem:
    """Build the problem of a missing file; the next step is a file of similar name, or `otherwise`."""
    try:
        file_names = {file.name for file in path.parent.iterdir() if file.is_file()}
    except OSError:
        return Problem(where, f"no folder {path.parent}", expected, otherwise)
    return Problem(where, f"no file {path}", expected, _nearest(path.name, file_names) or otherwise)


def _targets(tree: Tree) -> list[Keys]:
    return [("target",), *(("more_targets", i) for i in range(len(_list(tree.data.get("more_targets")))))]


def _inline_file(tree: Tree, keys: Keys, relative: str, kind: str) -> None:
    # A recipe keeps the position of its name in harness.yaml, and so do all values of a shipped recipe,
    # because the user cannot fix that file.
    where = tree.where(keys)
    names = (relative, f"suites/{relative}.yaml") if _is_bare(relative) else (relative,)
    possible_paths = (root / Path(name).expanduser() for root in (tree.folder, *_SHIPPED) for name in names)
    path = next((path.resolve() for path in possible_paths if path.is_file()), None)
    if path is None:
        tree.failed.add(keys)
        if kind == "suite" and not _is_bare(relative):
            yaml_files = [*tree.folder.glob("*.yaml"), *tree.folder.glob("*/*.yaml")]
            own_files = [file.relative_to(tree.folder).as_posix() for file in yaml_files]
            expected = f"a suite file, relative to {tree.folder}"
            missing = describe_missing_file(tree.folder / relative, where, expected)
            step = _nearest(relative, [*own_files, *SHIPPED_SUITES]) or _CREATE
            tree.problems.append(replace(missing, next_step=step))
            return
        name, subfolder, expected = relative, "suites", "a suite file, or the name of one in suites/"
        if kind == "recipe":
            name, subfolder = Path(relative).stem, "baselines"
            expected = "a recipe of baselines/, or a mapping such as {method: lora}"
        stems = {file.stem for root in (tree.folder, *_SHIPPED) for file in (root / subfolder).glob("*.yaml")}
        tree.problems.append(Problem(where, f"unknown {kind} {name!r}", expected, did_you_mean(name, stems)))
        return
    try:
        loaded = read_file(path, tree.folder, f"the keys of a {kind}")
    except UserError as error:
        tree.failed.add(keys)
        tree.problems += error.problems
        return
    tree.files.append(path)
    is_own = path.is_relative_to(tree.folder)
    marks = loaded.marks if kind == "suite" else {k: mark for k, mark in loaded.marks.items() if k and is_own}
    tree.put(keys, loaded.data, marks)


def _spell_out_tasks(suite: dict[str, Any]) -> None:
    tasks = suite.get("tasks")
    if isinstance(tasks, list):
        suite["tasks"] = [{"lm_eval": t} if isinstance(t, str) else t for t in tasks]


def _spell_out_recipes(tree: Tree) -> None:
    for name, recipe in mapping(tree.data.get("candidates")).items():
        if isinstance(recipe, dict):
            short: Keys = ("candidates", name, "replay")
            full: Keys = ("candidates", name, "regularize", "replay")
            tree.marks |= {(*full, *k[3:]): mark for k, mark in tree.marks.items() if k[:3] == short}
            tree.data["candidates"][name] = spec.spell_out(recipe)


def _resolve(task: dict[str, Any], folder: Path) -> None:
    data = mapping(task.get("data"))
    for split in spec.DATA_FILES:
        _resolve_file(data, split, folder)
    metrics = task.get("metrics")
    if isinstance(metrics, list):
        task["metrics"] = [
            {_resolve_metric(name, folder): params for name, params in metric.items()}
            if isinstance(metric, dict)
            else _resolve_metric(metric, folder)
            for metric in metrics
        ]


def resolve_model(holder: dict[str, Any], key: str, folder: Path) -> None:
    """Make the folder of a model absolute; a hub id or the name of an embedded model stays."""
    name = holder.get(key)
    if isinstance(name, str) and (name.startswith(("./", "../", "~")) or (folder / name).is_dir()):
        holder[key] = _absolute(name, folder)


def _resolve_metric(written: Any, folder: Path) -> Any:
    if not isinstance(written, str):
        return written
    prefix, name, key = spec.metric_parts(written)
    if prefix != spec.JUDGE and not spec.is_path(name):
        return written
    return f"{prefix}{_absolute(name, folder)}{key}"


def _resolve_recipe(recipe: dict[str, Any], folder: Path) -> None:
    resolve_model(recipe, "base_model", folder)
    params = mapping(recipe.get("params"))
    for key in ("encoder", "teacher"):
        resolve_model(params, key, folder)
    if "run" in params:
        _resolve_file(params, "config", folder)
    for params in mapping(recipe.get("prompting")).values():
        for key in ("model", "rerank"):
            resolve_model(mapping(params), key, folder)
    _resolve_file(recipe, "path", folder)
    if spec.is_path(str(recipe.get("reward", ""))):
        _resolve_file(recipe, "reward", folder)
    for params in mapping(recipe.get("regularize")).values():
        _resolve_file(mapping(params), "data", folder)
    for key in ("train", "mix"):
        if key in recipe:
            recipe[key] = _resolve_row_files(recipe[key], folder)


def _resolve_row_files(written: Any, folder: Path) -> Any:
    if isinstance(written, str):
        return written if written.startswith(spec.HUB) else _absolute(written, folder)
    if isinstance(written, list):
        return [_resolve_row_files(entry, folder) for entry in written]
    if isinstance(written, dict) and "files" in written:
        return {**written, "files": _resolve_row_files(written["files"], folder)}
    if isinstance(written, dict):
        return {_resolve_row_files(file, folder): share for file, share in written.items()}
    return written


def _resolve_file(holder: dict[str, Any], key: str, folder: Path) -> None:
    path = holder.get(key)
    if isinstance(path, str) and not path.startswith(spec.HUB):
        holder[key] = _absolute(path, folder)


def _absolute(path: str, folder: Path) -> str:
    return str((folder / Path(path).expanduser()).resolve())


def _is_bare(name: str) -> bool:
    return "/" not in name and not name.endswith((".yaml", ".yml"))


def _nearest(name: str, files: Iterable[str]) -> str:
    by_stem = {PurePath(file).stem: file for file in sorted(files)}
    close = get_close_matches(PurePath(name).stem, by_stem, n=1, cutoff=0.5)
    return f"did you mean {by_stem[close[0]]!r}?" if close else ""


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else ()


class GridMember(NamedTuple):
    """One candidate of a grid: the name it was written under, and its recipe as written."""

    source: str
    recipe: Any


def expand_grids(tree: Tree) -> dict[str, GridMember]:
    """Return every candidate by name, with grids expanded."""
    members = {}
    for source, recipe in mapping(tree.data.get("candidates")).items():
        grids: dict[Keys, list[Any]] = {}
        if isinstance(recipe, dict):
            grids |= _grids_of("methods", recipe.get("method", spec.BASE), recipe.get("params"), ("params",))
            grids |= {(key,): recipe[key] for key in GRID_KEYS if isinstance(recipe.get(key), list)}
            for key, value in mapping(recipe.get("decoding")).items():
                if key in spec.Decoding.model_fields and isinstance(value, list):
                    grids["decoding", key] = value
            for key, kind in spec.PLUGINS.items():
                for name, params in mapping(recipe.get(key)).items():
                    grids |= _grids_of(kind, name, params, (key, name))
        for keys, grid_values in grids.items():
            if not grid_values:
                where = tree.where(("candidates", source, *keys))
                found = f"an empty grid for {keys[-1]}"
                step = f"write values between the brackets, or remove {keys[-1]}"
                tree.problems.append(Problem(where, found, "at least one value", step))
        for values in product(*grids.values()):
            point = dict(zip(grids, values, strict=True))
            label = ",".join(f"{keys[-1]}={_label(keys, grids[keys], v)}" for keys, v in point.items())
            name = f"{source}[{label}]" if label else source
            members[name] = GridMember(source, _choose_from_grids(recipe, point))
    return members


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
    heads = {keys[0] for keys in point}
    nested = {key: {keys[1:]: value for keys, value in point.items() if keys[0] == key} for key in heads}
    chosen = {k: v[()] if () in v else _choose_from_grids(recipe[k], v) for k, v in nested.items()}
    return {**recipe, **chosen}


def _label(keys: Keys, values: list[Any], value: Any) -> str:
    if keys not in (("system",), ("template",)):
        texts = [_short(v) for v in values]
        text = _short(value)
        return text if texts.count(text) == 1 else f"{values.index(value) + 1}-{text}"
    words = "-".join(_WORD.findall(str(value).casefold())[:_WORDS])
    return "-".join(filter(None, (str(values.index(value) + 1), "none" if value is None else words)))


def _short(value: Any) -> str:
    if isinstance(value, list):
        return "+".join(map(_short, value))
    return str(value).lower() if isinstance(value, bool) else _IN_NO_NAME.sub("-", str(value))
