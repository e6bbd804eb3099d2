"""lm-eval's tasks: their names and files, the task objects, and requests of some documents.

Invariant: lm-eval's scan of its 14,000 task files takes five seconds; it runs once per installed version. A
document is named by its index in the evaluated split and the hash of its content; its few-shot examples are
those of a run over the whole split.
Source: lm_eval/evaluator.py and lm_eval/loggers/evaluation_tracker.py, version 0.4.13.
"""

import inspect
import json
import logging
import os
import random
import tempfile
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from importlib import metadata, util
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from harness.cache import memo
from harness.errors import HarnessError, Problem, UserError, did_you_mean
from harness.evaluation.lm_eval.requests import is_sampled
from harness.progress import quiet_environment, quiet_libraries
from harness.records import canonical_json, digest, pieces

_INSTALL = "pip install 'harness-evals[lm-eval]'"
_CACHE = "cache_dir"  # of datasets; no part of a definition
_GROUP_KEYS = {"group", "group_alias", "task", "aggregate_metric_list", "tag", "metadata", "include"}


class RegisteredTask(NamedTuple):
    """One task of lm-eval: its name, the file that defines it, its data, and a group's changes."""

    name: str
    path: str
    dataset_path: str
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
        raise UserError(where, found, "the name of a task, group or tag of lm-eval", step)
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
        yield RegisteredTask(name, entry["path"], data["dataset_path"], dict(overrides))
        return
    for child in entry["members"]:
        written = {"task": child} if isinstance(child, str) else child
        own_changes = {key: value for key, value in written.items() if key not in ("task", "group")}
        child_name = written.get("task", written.get("group"))
        if not isinstance(child_name, str) or child_name not in _entries():
            found = f"{name}, a group that defines {child_name!r} inside itself"
            raise UserError(where, found, "a group of tasks that have names", "name single tasks")
        changes = {**entry["overrides"], **overrides, **own_changes}
        if "/lm_eval/tasks/" in json.dumps(changes):  # a function, as the scan shows it
            found = f"{name}, a group that changes functions of its tasks"
            raise UserError(where, found, "a group that changes values only", "name single tasks")
        yield from _walk(child_name, changes, where)


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
            path, data = str(entry.yaml_path), config.get("dataset_path")
            entries[name] = {"kind": kind, "path": path, "dataset_path": data}
            continue
        children = sorted(entry.tags) if kind == "tag" else config.get("task") or []
        child_list = children if isinstance(children, list) else [children]
        overrides = {} if kind == "tag" else {k: v for k, v in config.items() if k not in _GROUP_KEYS}
        entries[name] = {"kind": kind, "members": child_list, "overrides": overrides}
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
        raise UserError(where, f"no folder {folder}", expected, "correct the path, or leave it out")
    return folder


# The seeds of lm-eval's simple_evaluate.
_PYTHON_SEED, _NUMPY_SEED, _SHOTS_SEED = 0, 1234, 1234


def load(
    member: RegisteredTask, num_fewshot: int | None, datasets_dir: Path | None, *, trusted: bool, where: str
) -> Any:
    """Load one task with its data as before a run; its own `num_fewshot: 0` is kept (lm-eval's rule)."""
    if "ifeval" in Path(member.path).parent.name.lower():  # without nltk's data it would crash when it scores
        import nltk

        try:
            nltk.data.find("tokenizers/punkt_tab")
        except LookupError:
            offline = (os.environ.get(name, "0") for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"))
            if any(value not in ("", "0") for value in offline):
                found = f"{member.name} without the nltk data punkt_tab, and no network to fetch it"
                expected = "punkt_tab in a folder that nltk searches (NLTK_DATA)"
                next_step = "python -m nltk.downloader punkt_tab, on a machine with a network"
                raise UserError(where, found, expected, next_step) from None
    quiet_libraries()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    from datasets import config
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    folder = local_copy(member, datasets_dir)
    changes: dict[str, Any] = {**member.overrides, "task": member.name}
    with tempfile.TemporaryDirectory() as scratch, _fix_seeds():
        options: dict[str, Any] = {}
        with suppress(OSError, ValueError, AttributeError):  # loading the file reports the error
            written = load_yaml(member.path, resolve_func=False) | changes
            options = written.get("dataset_kwargs") or {}
        if folder:  # datasets caches a folder by the names of its files, so it would miss changed rows
            cache = Path(config.HF_DATASETS_CACHE) / "harness" / data_state(folder)
            changes |= {"dataset_path": str(folder), "dataset_kwargs": {**options, _CACHE: str(cache)}}
        path = Path(scratch) / "task.yaml"
        path.write_text(json.dumps({"include": member.path, **changes}))  # JSON is YAML
        if options.get("trust_remote_code") and not trusted:
            found = f"{member.name}, whose data set brings code of its own to run"
            expected = "data without code, or your word that this code may run"
            raise UserError(where, found, expected, "write trust_remote_code: true at this task")
        try:
            task = TaskManager(include_defaults=False).load(str(path))["tasks"][member.name]
        except (OSError, ValueError, KeyError, ImportError, RuntimeError, LookupError) as error:
            raise UserError(_describe_load_error(member, folder, datasets_dir, error, where)) from error
    if getattr(task, "MULTIMODAL", False):
        found = f"{member.name}, which shows images or sound"
        raise UserError(where, found, "a task of text alone", "leave it out")
    if getattr(task, "UNSAFE_CODE", False):
        found = f"{member.name}, which runs the code that the model writes"
        raise UserError(where, found, "a task that runs no generated code", "use lm-eval itself")
    settings = task.get_config("generation_kwargs") or {}
    if task.OUTPUT_TYPE == "generate_until" and is_sampled(settings):
        sampling = ", ".join(f"{k}: {v}" for k, v in settings.items() if k in ("do_sample", "temperature"))
        found = f"{member.name}, whose answers are sampled ({sampling})"
        expected = "greedy answers: a second run has to give the same"
        raise UserError(where, found, expected, "leave it out")
    if task.get_config("num_fewshot") != 0 and num_fewshot is not None:
        task.set_config("num_fewshot", num_fewshot)
    elif task.get_config("num_fewshot") is None:
        task.set_config("num_fewshot", 0)
    return task


def hashes(task: Any) -> list[str]:
    """Return the hash of each document, in the order of the evaluated split (lm-eval's `doc_hash`)."""
    return [_hash(doc) for doc in task.eval_docs]


def texts(doc: Any) -> list[str]:
    """List the texts of a document that identify it: those with at least four words."""
    if isinstance(doc, str):
        return [doc] if len(pieces(doc)) >= 4 else []
    values = doc.values() if isinstance(doc, dict) else doc if isinstance(doc, list | tuple) else ()
    return [text for value in values for text in texts(value)]


def definition(task: Any) -> str:
    """Serialise everything that a task's prompts and scores depend on, except documents and machine paths."""
    config = task.dump_config()
    options = config.pop("dataset_kwargs", None) or {}
    if options := {key: value for key, value in options.items() if key != _CACHE}:
        config["dataset_kwargs"] = options
    for key in ("dataset_path", "metadata", "tag"):
        config.pop(key, None)
    shots = [_hash(doc) for doc in task.fewshot_docs() or ()] if task.get_config("num_fewshot") else []
    return canonical_json(json.loads(json.dumps([config, shots], sort_keys=True, default=_source)))


def requests(task: Any, indices: Collection[int], expected: Sequence[str]) -> dict[int, list[Any]]:
    """Build lm-eval's requests for some documents; HarnessError if their hashes are not as expected."""
    order = sorted(indices)
    with _fix_seeds(), _shots_of_a_whole_run(task, order):
        task.build_all_requests(samples=order)
    requests_by_document: dict[int, list[Any]] = defaultdict(list)
    for instance in task.instances:
        requests_by_document[order[instance.doc_id]].append(instance)  # `samples` renumbers the documents
    for index, instances in requests_by_document.items():
        if _hash(instances[0].doc) != expected[index]:
            raise HarnessError(
                f"{task.task_name}: document {index} differs from the one that was read before; expected the "
                "same data during a run; next: run the same command again"
            )
        instances.sort(key=lambda i: i.idx)
    return dict(requests_by_document)


@contextmanager
def _shots_of_a_whole_run(task: Any, indices: Collection[int]) -> Iterator[None]:
    """Give every document the shots that it would get in a run over the whole split."""
    task.set_fewshot_seed(_SHOTS_SEED)
    if not task.get_config("num_fewshot"):
        yield
        return
    # Every document's shots are drawn in turn, because each draw advances the generator.
    sampler, n, shots_by_turn = task.sampler, task.get_config("num_fewshot"), []
    from_evaluated = task.fewshot_cfg.split == task.config.test_split
    requested = set(indices)
    for index, doc in enumerate(task.eval_docs):
        shots = sampler.sample(n=n, eval_doc=doc if from_evaluated else None)
        if index in requested:
            shots_by_turn.append(shots)
    replayed = iter(shots_by_turn)
    task.sampler = SimpleNamespace(sample=lambda *_, **__: next(replayed))
    try:
        yield
    finally:
        task.sampler = sampler


def _hash(doc: Any) -> str:
    from lm_eval.utils import handle_non_serializable, hash_string

    text = json.dumps(doc, indent=2, default=handle_non_serializable, ensure_ascii=False)
    return str(hash_string(text))[:12]


def _source(value: Any) -> str:
    """Serialise a function as its source, so that no address or path enters a digest."""
    try:
        return inspect.getsource(value)
    except (TypeError, OSError):
        return str(getattr(value, "__qualname__", type(value).__qualname__))


@contextmanager
def _fix_seeds() -> Iterator[None]:
    before = random.getstate(), np.random.get_state()  # noqa: NPY002 (what lm-eval's tasks use)
    random.seed(_PYTHON_SEED)
    np.random.seed(_NUMPY_SEED)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002


def _describe_load_error(
    member: RegisteredTask, folder: Path | None, datasets_dir: Path | None, error: Exception, where: str
) -> Problem:
    message, name = " ".join(str(error).split()), member.name
    source = f"{member.dataset_path} ({folder})" if folder else member.dataset_path
    if isinstance(error, ImportError):
        return Problem(where, f"{name}: {message}", "the packages this task needs", "pip install them")
    if isinstance(error, OSError) and not folder:
        local_text = f"no copy in {datasets_dir}, and " if datasets_dir else ""
        found = f"{name}: {local_text}the hub did not give {source} ({type(error).__name__})"
        expected = "a data set that can be fetched or is cached, or a local copy"
        folder_hint = datasets_dir or "the folder that HARNESS_DATASETS_DIR (or datasets_dir:) names"
        return Problem(where, found, expected, f"put it in {folder_hint}, as {source}/")
    found = f"{name}: {source}: {type(error).__name__}: {message[:200]}"
    return Problem(where, found, "a task that lm-eval can load", "leave it out, or try lm-eval itself")
