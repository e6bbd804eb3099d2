"""harness.yaml as an Experiment: overrides, suites, short recipes, grids, checks; and its JSON schema.

Invariant: either the problems of the files are raised together, each with its file and line,
or the experiment that comes back is complete, with absolute paths and no grid left in it. What depends
on a value that is refused is checked when that value is right. The schema describes what may be written,
short forms included.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from harness import plugins
from harness.config import checks, files
from harness.config import overrides as overriding
from harness.config.files import is_shipped
from harness.config.overrides import CommandLine
from harness.config.recipe_checks import lint
from harness.config.rubrics import (
    YES_NO,
    Rubric,
    current_labels,
    digest_question,
    is_judged,
    read_rubric,
    rubric_of,
)
from harness.config.yaml_loading import Tree, mapping, problems_of
from harness.errors import Problem, UserError, did_you_mean, refuse
from harness.spec import PLUGINS, Experiment, GatePolicy, Recipe, Spec, Suite

_COMMA = re.compile(r",(?![^\[]*\])")  # a comma that is not inside the brackets of a grid's name


class LoadedExperiment(NamedTuple):
    """An experiment and the folder of its file.

    `selected` names the candidates to show, in the order of the file; the others stay in the experiment,
    because a selected one may take their weights. What answers nothing is selected only by its name. `places`
    maps every candidate to the file and line where it is written. `typed` is what the next commands repeat.
    """

    experiment: Experiment
    folder: Path
    selected: tuple[str, ...]
    places: Mapping[str, str]
    typed: CommandLine = CommandLine()


def load(path: Path, overrides: Sequence[str] = (), candidates: Sequence[str] = ()) -> LoadedExperiment:
    """Read an experiment; `candidates` selects by name, or by a grid's name all its members.

    Raises:
        UserError: with the problems of the files, the overrides and the selection.
    """
    tree = files.read_experiment(path)
    settings = overriding.parse(overrides, tree)
    overriding.apply(tree, [s for s in settings if overriding.replaces_a_reference(s)])
    files.inline(tree)
    overriding.apply(tree, [s for s in settings if not overriding.replaces_a_reference(s)])
    files.finish(tree)
    members = files.expand_grids(tree)
    shown = tree.data
    if isinstance(written := tree.data.get("candidates"), dict):
        # The first candidate stands in place of each grid, whose lists are not what a key takes.
        first = {member.source: member.recipe for member in reversed(list(members.values()))}
        shown = {**shown, "candidates": {source: first.get(source, of) for source, of in written.items()}}
    tree.problems += problems_of(Experiment, shown, tree)
    for member in members.values():
        if isinstance(member.recipe, dict):
            tree.problems += problems_of(Recipe, member.recipe, tree, ("candidates", member.source))
    checks.check(tree, members)
    selected = _select(tree, members, candidates)
    if tree.problems:
        raise UserError(sorted(dict.fromkeys(tree.problems), key=_place))
    expanded = {}
    for name, member in members.items():
        # A recipe without a role has that of the candidate whose weights it takes.
        source = members.get(mapping(member.recipe).get("weights_of") or "")
        role = mapping(source.recipe).get("role") if source else None
        expanded[name] = {"role": role, **member.recipe} if role else member.recipe
    experiment = Experiment.model_validate({**tree.data, "candidates": expanded})
    written = {name: ("candidates", member.source) for name, member in members.items()}
    places = {name: overriding.place_of(tree, keys) for name, keys in written.items()}
    typed = CommandLine.from_options(path, overrides)
    return LoadedExperiment(experiment, tree.folder, selected, places, typed)


class _GateAlone(Spec):
    """Settings of a gate without an experiment."""

    gate: GatePolicy = GatePolicy()


def gate_policy(overrides: Sequence[str]) -> GatePolicy:
    """Read a gate's policy from settings such as `gate.macro=0.03` alone.

    Raises:
        UserError: with every setting that cannot be used.
    """
    tree = Tree({"gate": {}}, {(): "the command line"}, Path())
    overriding.apply(tree, overriding.parse(overrides, tree))
    tree.problems += problems_of(_GateAlone, tree.data, tree)
    if tree.problems:
        raise UserError(tree.problems)
    return _GateAlone.model_validate(tree.data).gate


def read_suites(folder: Path) -> list[Suite]:
    """Read every suite file of a folder, or where it is none the suites that the package ships.

    Raises:
        UserError: with every problem of every file.
    """
    trees = [files.read_file(path, path.parent, "the keys of a suite") for path in files.suite_files(folder)]
    problems = [problem for tree in trees for problem in problems_of(Suite, tree.data, tree)]
    refuse(problems)
    return [Suite.model_validate(tree.data) for tree in trees]


def _select(tree: Tree, members: Mapping[str, Any], wanted: Sequence[str]) -> tuple[str, ...]:
    requested = [name.strip() for text in wanted for name in _COMMA.split(text) if name.strip()]
    if wanted and not requested:
        requested = [""]  # refused below: to leave the selection out is what means all
    known = {*members, *(member.source for member in members.values())}
    for name in requested:
        if name not in known:
            found = f"unknown candidate {name!r}" if name else "an empty name"
            hint = did_you_mean(name, known)
            tree.problems.append(Problem("candidates", found, "names of candidates", hint))
    if requested:
        return tuple(name for name, m in members.items() if name in requested or m.source in requested)
    return tuple(name for name, member in members.items() if checks.answers(member.recipe))


def _place(problem: Problem) -> tuple[str, int]:
    file, _, line = problem.where.rpartition(":")
    return (file, int(line)) if line.isdigit() else (problem.where, 0)


_PATH = {"type": "string", "description": "a file, relative to harness.yaml"}


@cache
def json_schema() -> dict[str, Any]:
    """Return the schema of what harness.yaml may hold."""
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
    drawn = definitions["Decoding"]["properties"]
    for around, names in ((keys, files.GRID_KEYS), (drawn, tuple(drawn))):
        around |= {n: {"anyOf": [around[n], {"type": "array", "items": around[n]}]} for n in names}
    keys["train"] = {"anyOf": [_PATH, keys["train"]]}
    shares = {"type": "object", "additionalProperties": {"type": "number"}, "minProperties": 2}
    keys["mix"] = {"anyOf": [*keys["mix"]["anyOf"], shares]}
    keys["replay"] = {"anyOf": [{"type": "number"}, {"type": "object"}]}
    steps, known = definitions["RescuePolicy"]["properties"]["steps"], list(plugins.rescue_steps())
    steps |= {**steps.pop("anyOf")[0], "items": {"enum": sorted(known)}, "default": known}
    properties["rescue"]["default"]["steps"] = known
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/$defs/{name}"}
