"""Metadata of lm-eval's tasks: document hashes, metrics and their digest, cached.

Invariant: a description depends only on the installed lm-eval, the task, its shots and its data, and is
cached under their digest, so that an unchanged run neither imports nor builds a task.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from harness.cache import cache_dir, recall, remember
from harness.errors import Problem, UserError
from harness.evaluation.lm_eval import registry, requests, tasks
from harness.evaluation.lm_eval.requests import limits_of
from harness.provenance import versions_of
from harness.records import digest, reader
from harness.spec import Kind

_KINDS: dict[str, Kind] = {"generate_until": "generate", "loglikelihood_rolling": "bits_per_byte"}


class TaskDocument(NamedTuple):
    """One document: its task within a group, its index in the evaluated split, its hash and its texts."""

    member: int
    position: int
    doc_hash: str
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Description:
    """A task or a group as read: `hashes` of all documents, and the first `documents` of the order."""

    version: str
    kind: Kind
    scores: tuple[requests.Score, ...]
    left_out: tuple[str, ...]
    max_new_tokens: int
    num_fewshot: int
    members: tuple[str, ...]
    hashes: tuple[tuple[str, ...], ...]
    documents: tuple[TaskDocument, ...]

    def place(self, example_id: str) -> tuple[int, int]:
        """Return an example's task within the group, and its index in the evaluated split."""
        member, _, name = example_id.rpartition("/")
        return self.members.index(member) if member else 0, int(name.partition("-")[0])


def description(
    members: Sequence[registry.RegisteredTask],
    num_fewshot: int | None,
    datasets_dir: Path | None,
    limit: int | None,
    task_of: Callable[[int], Any],
    where: str,
) -> Description:
    """Describe a task or a group, with `limit` documents of the seeded order (None: all).

    Raises:
        UserError: a task cannot be loaded, or the tasks of a group are scored differently.
    """
    cache_file = cache_dir() / "lm_eval" / f"task-{_key(members, num_fewshot, datasets_dir)}.json"
    with suppress(OSError, ValueError):
        cached: Description = reader(Description).validate_python(recall(cache_file))
        n = sum(map(len, cached.hashes))
        if len(cached.documents) >= (n if limit is None else min(limit, n)):
            return replace(cached, documents=cached.documents[:limit])
    described = _describe([task_of(i) for i in range(len(members))], [m.name for m in members], limit, where)
    remember(cache_file, {f.name: getattr(described, f.name) for f in fields(described)})
    return described


def _key(
    members: Sequence[registry.RegisteredTask], num_fewshot: int | None, datasets_dir: Path | None
) -> str:
    copies = {folder for m in members if (folder := registry.local_copy(m, datasets_dir))}
    return digest(
        [
            registry.version(),
            versions_of("lm_eval"),
            [[m.name, m.path, m.overrides] for m in members],
            num_fewshot,
            sorted([str(folder), registry.data_state(folder)] for folder in copies),
        ]
    )


def _describe(loaded: Sequence[Any], names: Sequence[str], limit: int | None, where: str) -> Description:
    scores = [requests.scores_of(task) for task in loaded]
    kinds = {task.OUTPUT_TYPE for task in loaded}
    if len(kinds) > 1 or any(task_scores != scores[0][0] for task_scores, _ in scores):
        problem = "a group whose tasks are scored in different ways"
        raise UserError(
            Problem(where, problem, "tasks of one kind and the same metrics", "name single tasks")
        )
    hashes = [tasks.hashes(task) for task in loaded]
    version = digest([[tasks.definition(task) for task in loaded], hashes, registry.version()])
    return Description(
        version=version,
        kind=_KINDS.get(loaded[0].OUTPUT_TYPE, "choice"),
        scores=tuple(scores[0][0]),
        left_out=tuple(scores[0][1]),
        max_new_tokens=limits_of(loaded[0].get_config("generation_kwargs") or {}).max_new_tokens,
        num_fewshot=int(loaded[0].get_config("num_fewshot")),
        members=tuple(names),
        hashes=tuple(map(tuple, hashes)),
        documents=tuple(_draw_documents(loaded, hashes, version, limit)),
    )


def _draw_documents(
    loaded: Sequence[Any], hashes: Sequence[Sequence[str]], version: str, limit: int | None
) -> list[TaskDocument]:
    """Take the first documents of the order seeded by the version, over all tasks of a group."""
    places = [(member, i) for member, known in enumerate(hashes) for i in range(len(known))]
    order = np.random.default_rng(int(version, 16)).permutation(len(places))[:limit]
    docs = [task.eval_docs for task in loaded]
    chosen = [places[k] for k in order]
    return [TaskDocument(m, i, hashes[m][i], tuple(tasks.texts(docs[m][i]))) for m, i in chosen]
