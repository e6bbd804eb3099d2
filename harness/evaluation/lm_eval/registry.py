"""Registry of lm-eval's tasks: their names, the files that define them, and local copies of their data.

Invariant: lm-eval's scan of its 14,000 task files takes five seconds; it runs once per installed version.
"""

import json
import os
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import metadata, util
from pathlib import Path
from typing import Any, NamedTuple

from harness.cache import memo
from harness.errors import Problem, UserError, did_you_mean
from harness.progress import quiet_environment
from harness.records import digest

_INSTALL = "pip install 'harness-evals[lm-eval]'"
_GROUP_KEYS = {"group", "group_alias", "task", "aggregate_metric_list", "tag", "metadata", "include"}


class RegisteredTask(NamedTuple):
    """One task of lm-eval: its name, the file that defines it, its data, and a group's changes."""

    name: str
    path: str
    dataset_path: str
    dataset_name: str | None
    overrides: dict[str, Any]


def version() -> str:
    """Return the installed version of lm-eval; UserError if it is not installed."""
    try:
        return metadata.version("lm_eval")
    except metadata.PackageNotFoundError:
        problem = Problem("lm-eval's tasks", "no package lm-eval", "the package that defines them", _INSTALL)
        raise UserError(problem) from None


def names() -> dict[str, str]:
    """Map every name that lm-eval knows to its kind: task, group or tag."""
    return {name: entry["kind"] for name, entry in _entries().items()}


def members(name: str, where: str) -> list[RegisteredTask]:
    """List the tasks that a name refers to: itself, or all tasks of a group or tag."""
    if name not in _entries():
        found = f"unknown lm-eval task {name!r}"
        nearest = did_you_mean(name, _entries())
        hint = nearest if nearest.startswith("did you mean") else "check the spelling"
        step = f"{hint}; `harness ls lm-eval` lists them all"
        raise UserError(Problem(where, found, "the name of a task, group or tag of lm-eval", step))
    return list({member.name: member for member in _walk(name, {}, where)}.values())


def local_copy(member: RegisteredTask, datasets_dir: Path | None) -> Path | None:
    """Return the folder <datasets_dir>/<org>/<name> of a task's data, if it exists."""
    folder = datasets_dir / member.dataset_path if datasets_dir and member.dataset_path else None
    return folder.resolve() if folder and folder.is_dir() else None


@cache
def data_state(folder: Path) -> str:
    """Digest the names, sizes and times of the files of a local copy."""
    files = (p for p in folder.rglob("*") if p.is_file())
    return digest(sorted([str(p.relative_to(folder)), p.stat().st_size, p.stat().st_mtime_ns] for p in files))


def _walk(name: str, overrides: Mapping[str, Any], where: str) -> Iterator[RegisteredTask]:
    entry = _entries()[name]
    if entry["kind"] == "task":
        data = {**entry, **overrides}
        yield RegisteredTask(name, entry["path"], data["dataset_path"], data["dataset_name"], dict(overrides))
        return
    for child in entry["members"]:
        own = {} if isinstance(child, str) else {k: v for k, v in child.items() if k not in ("task", "group")}
        below = child if isinstance(child, str) else child.get("task", child.get("group"))
        if not isinstance(below, str) or below not in _entries():
            found = f"{name}, a group that defines {below!r} inside itself"
            raise UserError(Problem(where, found, "a group of tasks that have names", "name single tasks"))
        changes = {**entry["overrides"], **overrides, **own}
        if "/lm_eval/tasks/" in json.dumps(changes):  # a function, as the scan shows it
            found = f"{name}, a group that changes functions of its tasks"
            raise UserError(Problem(where, found, "a group that changes values only", "name single tasks"))
        yield from _walk(below, changes, where)


@cache
def _entries() -> dict[str, dict[str, Any]]:
    spec = util.find_spec("lm_eval")
    root = str(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else ""
    key = digest([version(), root, sorted(_GROUP_KEYS)])
    entries: dict[str, dict[str, Any]] = memo("lm_eval", f"index-{key}", _scan)
    return entries


def _scan() -> dict[str, dict[str, Any]]:
    quiet_environment()
    from lm_eval.tasks import TaskManager

    entries = {}
    for name, entry in TaskManager().task_index.items():
        config, kind = entry.cfg or {}, entry.kind.name.lower().replace("py_task", "task")
        if kind == "task":
            dataset = {key: config.get(key) for key in ("dataset_path", "dataset_name")}
            entries[name] = {"kind": kind, "path": str(entry.yaml_path), **dataset}
            continue
        children = sorted(entry.tags) if kind == "tag" else config.get("task") or []
        listed = children if isinstance(children, list) else [children]
        overrides = {} if kind == "tag" else {k: v for k, v in config.items() if k not in _GROUP_KEYS}
        entries[name] = {"kind": kind, "members": listed, "overrides": overrides}
    return entries


def datasets_folder(written: str | None) -> Path | None:
    """Return the folder of local copies: `HARNESS_DATASETS_DIR`, else the setting in harness.yaml."""
    requested = os.environ.get("HARNESS_DATASETS_DIR") or written
    if not requested:
        return None
    folder = Path(requested).expanduser().absolute()
    if not folder.is_dir():
        where = "HARNESS_DATASETS_DIR" if os.environ.get("HARNESS_DATASETS_DIR") else "datasets_dir"
        expected = "a folder with a data set in each <org>/<name>, laid out as on the hub"
        raise UserError(Problem(where, f"no folder {folder}", expected, "correct the path, or leave it out"))
    return folder
