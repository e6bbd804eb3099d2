"""Read harness.yaml into an Experiment: overrides, suites, short recipes, grids, checks.

Invariant: either every problem of the files is raised at once, each with its file and line,
or the experiment that comes back is complete, with absolute paths and no grid left in it.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from harness.config import checks, files, grids, overriding, wording
from harness.config.schema import json_schema
from harness.config.tree import Tree
from harness.errors import Problem, UserError, did_you_mean
from harness.records import digest
from harness.spec import Experiment

__all__ = ["Loaded", "json_schema", "load"]

_COMMA = re.compile(r",(?![^\[]*\])")  # a comma that is not inside the brackets of a grid's name


class Loaded(NamedTuple):
    """An experiment, the folder of its file, the digest of all texts it was read from.

    `selected` names the candidates to show, in the order of the file; the others stay in
    the experiment, because a selected one may take their weights.
    """

    experiment: Experiment
    folder: Path
    text_digest: str
    selected: tuple[str, ...]


def load(path: Path, overrides: Sequence[str] = (), candidates: Sequence[str] = ()) -> Loaded:
    """Read an experiment; `candidates` selects by name, or by a grid's name all its members.

    Raises:
        UserError: with every problem of the files, the overrides and the selection.
    """
    tree = files.read_experiment(path)
    settings = overriding.parse(overrides, tree)
    overriding.apply(tree, [s for s in settings if overriding.replaces_a_reference(s)])
    files.inline(tree)
    overriding.apply(tree, [s for s in settings if not overriding.replaces_a_reference(s)])
    files.finish(tree)
    members = grids.expand(tree)
    tree.problems += wording.problems_of(Experiment, tree.data, tree)
    checks.check(tree, members)
    selected = _select(tree, members, candidates)
    if tree.problems:
        raise UserError(dict.fromkeys(tree.problems))
    expanded = {name: member.recipe for name, member in members.items()}
    experiment = Experiment.model_validate({**tree.data, "candidates": expanded})
    return Loaded(experiment, tree.folder, digest([tree.texts, list(overrides)]), selected)


def _select(tree: Tree, members: Mapping[str, Any], wanted: Sequence[str]) -> tuple[str, ...]:
    asked = [name.strip() for text in wanted for name in _COMMA.split(text) if name.strip()]
    known = {*members, *(member.source for member in members.values())}
    tree.problems += [_unknown_candidate(name, known) for name in asked if name not in known]
    return tuple(name for name, m in members.items() if not asked or name in asked or m.source in asked)


def _unknown_candidate(name: str, known: set[str]) -> Problem:
    found = f"unknown candidate {name!r}"
    return Problem("--candidates", found, "names of candidates", did_you_mean(name, known))
