"""harness.yaml as an Experiment: overrides, suites, short recipes, grids, checks; and its JSON schema.

Invariant: either the problems of the files are raised together, each with its file and line, or the
experiment is complete, with absolute paths and no grid left in it. Settings `a.b=value` of different keys
give the same experiment in any order; of two with the same key the later wins.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from shlex import join
from typing import Any, NamedTuple

from ruamel.yaml.error import YAMLError

from harness import plugins
from harness.config import checks, files
from harness.config.checks import lint
from harness.config.files import is_shipped
from harness.config.rubrics import (
    YES_NO,
    Rubric,
    current_labels,
    digest_question,
    is_judged,
    read_rubric,
    rubric_of,
)
from harness.config.yaml_loading import Keys, Tree, load_yaml, mapping, plain, problems_of, short_repr
from harness.errors import Problem, UserError, did_you_mean, refuse
from harness.spec import BASE, PLUGINS, Experiment, GatePolicy, Recipe, Spec, Suite

_COMMA = re.compile(r",(?![^\[]*\])")  # a comma that is not inside the brackets of a grid's name
_DEFAULT = Path("harness.yaml")
_NEXT = re.compile(r"(next|try): .*")
_FORM, _CHOICE = "KEY.KEY=VALUE", "a candidate is chosen by --candidates, or --candidate of gate"
_SUCH_AS = f"such as candidates.lora.params.r=8; {_CHOICE}"
_OVERRIDE = "override "  # prefix of the position of a value from the command line


Setting = tuple[str, tuple[str, ...], Any]  # one `a.b=value`: as written, its keys, its value read as YAML
_PATH = {"type": "string", "description": "a file, relative to harness.yaml"}


class CommandLine(NamedTuple):
    """Options of a command that the next one repeats; `config` is empty for ./harness.yaml."""

    config: str = ""
    overrides: tuple[str, ...] = ()
    candidates: tuple[str, ...] = ()
    runs: str = ""

    @classmethod
    def from_options(
        cls, config: Path, overrides: Sequence[str] = (), candidates: Sequence[str] = ()
    ) -> "CommandLine":
        """Keep the typed options that the next commands need."""
        return cls("" if config == _DEFAULT else str(config), tuple(overrides), tuple(candidates))

    def with_settings(self, settings: Sequence[str]) -> "CommandLine":
        """Add settings; they replace those of the same keys."""
        keys = {setting.partition("=")[0] for setting in settings}
        kept_overrides = [setting for setting in self.overrides if setting.partition("=")[0] not in keys]
        return self._replace(overrides=(*kept_overrides, *settings))

    def command(self, *words: str) -> str:
        """Format a command for a shell; only `compare` gets the settings of `execution`."""
        config = ("-c", self.config) if self.config else ()
        overrides = [o for o in self.overrides if words[0] == "compare" or not o.startswith("execution.")]
        return join(["harness", *words, *config, *overrides])

    def complete(self, text: str) -> str:
        """Add the options to each command without them in a text's next steps."""
        reindex = self._replace(overrides=()).command("reindex")
        if self.runs:
            reindex = join(["harness", "reindex", "--runs", self.runs])
        lines = {"harness compare": self.command("compare"), "harness reindex": reindex}
        options = {bare: line.removeprefix(bare) for bare, line in lines.items()}
        alone = "|".join(rf"{bare}(?![^;\n]*{re.escape(tail)})" for bare, tail in options.items() if tail)
        if not alone:
            return text
        return _NEXT.sub(lambda match: re.sub(alone, lambda command: lines[command[0]], match[0]), text)


class LoadedExperiment(NamedTuple):
    """An experiment and the folder of its file.

    `selected` names the candidates to show, in the order of the file; the others stay in the experiment,
    because a selected one may take their weights. `places` maps every candidate to its file and line; `files`
    are the experiment's file and the suites and recipes that it names.
    """

    experiment: Experiment
    folder: Path
    selected: tuple[str, ...]
    places: Mapping[str, str]
    typed: CommandLine = CommandLine()
    files: tuple[Path, ...] = ()


def load(
    path: Path, overrides: Sequence[str] = (), candidates: Sequence[str] | None = ()
) -> LoadedExperiment:
    """Read an experiment; `candidates` selects by name, or by a grid's name all its members.

    Only selected candidates need their own training rows; without a name all do, with None no candidate does.
    """
    file = path.absolute()
    if file.is_dir():
        raise UserError(str(file), "a folder", "an experiment file", f"-c {file / 'harness.yaml'}")
    if not file.is_file():
        step = "write one: harness init DIR --data FILE; or name another with -c"
        for kept in sorted(file.parent.glob(f"runs/inputs/*/{file.name}")):
            copy = join(["cp", "-rn", f"{os.path.relpath(kept.parent)}/.", os.path.relpath(file.parent)])
            step = f"{copy}, which brings back what was compared as {kept.parent.name}"
        raise UserError(files.describe_missing_file(file, str(file), "an experiment file", step))
    folder = file.parent.resolve()
    tree = files.read_file(folder / file.name, folder, "name:, target: and candidates:")
    settings = _parse_settings(overrides, tree)
    # Settings that replace the name of a file apply before the file is read.
    list_keys = ("candidates", "suites", "more_targets")
    early_settings = [s for s in settings if len(s[1]) == 1 or (len(s[1]) == 2 and s[1][0] in list_keys)]
    _apply_settings(tree, early_settings)
    files.inline(tree)
    _apply_settings(tree, [s for s in settings if s not in early_settings])
    files.finish(tree)
    members = files.expand_grids(tree)
    data = tree.data
    if isinstance(written := tree.data.get("candidates"), dict):
        # Each grid is checked as its first member, because keys do not accept the lists of a grid.
        by_source = {member.source: member.recipe for member in reversed(list(members.values()))}
        data = {**data, "candidates": {source: by_source.get(source, r) for source, r in written.items()}}
    tree.problems += problems_of(Experiment, data, tree)
    for member in members.values():
        if isinstance(member.recipe, dict):
            tree.problems += problems_of(Recipe, member.recipe, tree, ("candidates", member.source))
    selected = () if candidates is None else _select(tree, members, candidates)
    tree.problems += checks.check(tree, members, selected if candidates or candidates is None else None)
    if tree.problems:
        raise UserError(sorted(dict.fromkeys(tree.problems), key=_place))
    expanded = {}
    for name, member in members.items():
        # A recipe without a role inherits that of the candidate whose weights it takes.
        source = members.get(mapping(member.recipe).get("weights_of") or "")
        role = mapping(source.recipe).get("role") if source else None
        expanded[name] = {"role": role, **member.recipe} if role else member.recipe
    experiment = Experiment.model_validate({**tree.data, "candidates": expanded})
    places = {}  # `file:line` of each candidate, with the settings that changed it
    for name, member in members.items():
        keys = ("candidates", member.source)
        inner_marks = (mark for at, mark in tree.marks.items() if at[: len(keys)] == keys and at != keys)
        changed_by = (mark for mark in inner_marks if mark.startswith(_OVERRIDE))
        places[name] = ", ".join(dict.fromkeys([tree.where(keys), *changed_by]))
    typed = CommandLine.from_options(path, overrides)
    return LoadedExperiment(experiment, tree.folder, selected, places, typed, tuple(tree.files))


class _GateAlone(Spec):
    """Settings of a gate without an experiment."""

    gate: GatePolicy = GatePolicy()


def gate_policy(overrides: Sequence[str]) -> GatePolicy:
    """Read a gate's policy from settings such as `gate.macro=0.03` alone."""
    tree = Tree({"gate": {}}, {(): "the command line"}, Path())
    _apply_settings(tree, _parse_settings(overrides, tree))
    tree.problems += problems_of(_GateAlone, tree.data, tree)
    if tree.problems:
        raise UserError(tree.problems)
    return _GateAlone.model_validate(tree.data).gate


def read_suites(folder: Path) -> list[Suite]:
    """Read every suite file of a folder; if it does not exist, those that the package ships."""
    trees = [files.read_file(path, path.parent, "the keys of a suite") for path in files.suite_files(folder)]
    refuse([problem for tree in trees for problem in problems_of(Suite, tree.data, tree)])
    return [Suite.model_validate(tree.data) for tree in trees]


def _parse_settings(texts: Iterable[str], tree: Tree) -> list[Setting]:
    settings = []
    for text in texts:
        key, equals, value = text.partition("=")
        keys = tuple(key.strip().split("."))
        try:
            parsed = plain(load_yaml(value, "safe"))
        except YAMLError:
            found = f"no YAML: {short_repr(value)}"
            tree.problems.append(Problem(f"{_OVERRIDE}{text[:60]}", found, _FORM, "quote the value"))
            continue
        if not equals or not all(keys):
            step = f"-c {text}" if text.endswith((".yaml", ".yml")) else _SUCH_AS
            tree.problems.append(Problem(f"{_OVERRIDE}{text}", repr(text), _FORM, step))
        else:
            settings.append((text, keys, parsed))
    return sorted(settings, key=lambda setting: len(setting[1]))


def _apply_settings(tree: Tree, settings: Iterable[Setting]) -> None:
    for text, names, value in settings:
        where = f"{_OVERRIDE}{text}"
        try:
            tree.put(_walk(tree, names, where), value, {(): where})
        except UserError as error:
            tree.problems += error.problems


def _walk(tree: Tree, names: Sequence[str], where: str) -> Keys:
    parent: Any = tree.data
    keys: Keys = ()
    for depth, key in enumerate(names, 1):
        entry: str | int = key
        if isinstance(parent, list):
            entries = [(i, e) for i, e in enumerate(parent) if isinstance(e, dict)]
            index_by_name = {e["name"]: i for i, e in entries if "name" in e}
            if key not in index_by_name and not (key.isdigit() and int(key) < len(parent)):
                hint = did_you_mean(key, map(str, index_by_name))
                raise UserError(where, f"no entry {key!r}", "the name or index of an entry", hint)
            entry = int(key) if key.isdigit() and int(key) < len(parent) else index_by_name[key]
        elif not isinstance(parent, dict):
            found = f"{'.'.join(map(str, keys))}: {parent!r}, which has no keys"
            raise UserError(where, found, "a mapping", "set it as a whole")
        keys = (*keys, entry)
        if depth == len(names):
            return keys
        if isinstance(parent, dict) and parent.get(entry) is None:
            if keys[:-1] == ("candidates",) and key not in parent:
                problem, hint = f"unknown candidate {key!r}", did_you_mean(key, parent)
                raise UserError(where, problem, "a candidate of the experiment", hint)
            parent[entry] = {}
            tree.marks[keys] = where
        parent = parent[entry]
    return keys


def _select(tree: Tree, members: Mapping[str, Any], texts: Sequence[str]) -> tuple[str, ...]:
    requested = [name.strip() for text in texts for name in _COMMA.split(text) if name.strip()]
    known_names = {*members, *(member.source for member in members.values())}
    for name in requested or ([""] if texts else []):
        if name not in known_names:
            found = f"unknown candidate {name!r}" if name else "an empty name"
            hint = did_you_mean(name, known_names)
            tree.problems.append(Problem("candidates", found, "names of candidates", hint))
    if requested:
        return tuple(name for name, m in members.items() if name in requested or m.source in requested)
    methods = {name: mapping(member.recipe).get("method", BASE) for name, member in members.items()}
    names = plugins.names("methods")
    return tuple(name for name, m in methods.items() if m not in names or plugins.method(m).answers)


def _place(problem: Problem) -> tuple[str, int]:
    file, _, line = problem.where.rpartition(":")
    return (file, int(line)) if line.isdigit() else (problem.where, 0)


@cache
def json_schema() -> dict[str, Any]:
    """Return the JSON schema of harness.yaml."""
    schema = Experiment.model_json_schema()
    definitions, properties = schema["$defs"], schema["properties"]
    definitions["Suite"] = definitions.get("Suite") or Suite.model_json_schema()
    properties["target"] = {"anyOf": [_PATH, _ref("Task"), _ref("Suite")]}
    properties["more_targets"]["items"] = properties["target"]
    properties["suites"]["items"] = {"anyOf": [_PATH, _ref("Suite")]}
    recipe = {"type": "string", "description": "the name of a recipe in baselines/"}
    properties["candidates"]["additionalProperties"] = {"anyOf": [recipe, _ref("Recipe"), {"type": "null"}]}
    params = {"anyOf": [{"type": "object"}, {"type": "null"}]}
    keys = definitions["Recipe"]["properties"]
    for name in PLUGINS:
        keys[name]["anyOf"] = [{"type": "string"}, {"type": "object", "additionalProperties": params}]
        keys[name].pop("type"), keys[name].pop("additionalProperties")
    decoding_keys = definitions["Decoding"]["properties"]
    for schemas, names in ((keys, files.GRID_KEYS), (decoding_keys, tuple(decoding_keys))):
        schemas |= {n: {"anyOf": [schemas[n], {"type": "array", "items": schemas[n]}]} for n in names}
    keys["train"] = {"anyOf": [_PATH, keys["train"]]}
    shares = {"type": "object", "additionalProperties": {"type": "number"}, "minProperties": 2}
    keys["mix"] = {"anyOf": [*keys["mix"]["anyOf"], shares]}
    keys["replay"] = {"anyOf": [{"type": "number"}, {"type": "object"}]}
    steps, step_names = definitions["RescuePolicy"]["properties"]["steps"], list(plugins.rescue_steps())
    steps |= {**steps.pop("anyOf")[0], "items": {"enum": sorted(step_names)}, "default": step_names}
    properties["rescue"]["default"]["steps"] = step_names
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/$defs/{name}"}
