"""Evaluation logs of other evaluators, task by task: items by id with their scores, prompts and settings.

Invariant: two arms are comparable only where they hold the same items and prompts under the same
settings; what is not known of either is not compared.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from harness.errors import Problem, UserError
from harness.gating import Measurement
from harness.metrics import Metric, mean_metric
from harness.records import SampleResult, Status, digest
from harness.spec import Kind, Task, TaskData

_SHARED_TEXTS = ("passage", "article", "story", "paragraph", "context_id")  # several questions have one
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.\-]+")


class LoggedItem(NamedTuple):
    """One item: its score within the task's bounds, digests of the prompt by their names, cluster, choices.

    `n_choices` is 0 where nothing was to be chosen.
    """

    score: float
    digests: Mapping[str, str]
    cluster: str = ""
    n_choices: int = 0
    status: Status = "ok"


class TaskLog(NamedTuple):
    """One task as one model answered it; `settings` that are None are not known.

    `kind` is "generate" where the items say which answers were cut off or refused.
    """

    task: str
    metric: str
    higher_is_better: bool
    items: dict[str, LoggedItem]
    settings: dict[str, Any]
    kind: Kind
    evaluator: str
    same_items: str  # what to do where the items differ
    bounds: tuple[float, float] = (0.0, 1.0)


def differences(old: TaskLog, new: TaskLog) -> list[str]:
    """Name what forbids comparing a task: settings, items, and the digests of prompts."""
    out = []
    for name in dict.fromkeys([*old.settings, *new.settings]):
        a, b = old.settings.get(name), new.settings.get(name)
        if a is not None and b is not None and a != b:
            out.append(f"{old.task}: the two differ in {name}: {a!r} and {b!r}")
    if old.metric != new.metric:
        out.append(f"{old.task}: the two differ in the metric: {old.metric} and {new.metric}")
    missing = old.items.keys() ^ new.items.keys()
    if missing:
        shown = ", ".join(sorted(missing)[:5])
        out.append(f"{old.task}: {len(missing)} items are in one of the two only ({shown}); {old.same_items}")
    both = old.items.keys() & new.items.keys()
    for name in dict.fromkeys(name for i in both for name in old.items[i].digests):
        n = sum(old.items[i].digests.get(name) != new.items[i].digests.get(name) for i in both)
        if n:
            out.append(f"{old.task}: {name} differs on {n} of {len(both)} items; use the same prompts")
    return out


def task_names(logged: Iterable[str]) -> dict[str, str]:
    """Map each logged name to the one it bears as a task, which ends in a digest where two would be alike."""
    plain = {name: _NOT_IN_NAMES.sub("-", name) for name in logged}
    counts = Counter(plain.values())
    return {name: own if counts[own] == 1 else f"{own}-{digest(name)[:8]}" for name, own in plain.items()}


def measurement(name: str, old: TaskLog, new: TaskLog) -> Measurement:
    """Put both arms beside each other as a capability task of this name."""
    metric_name = _NOT_IN_NAMES.sub("-", old.metric)
    metric = mean_metric(metric_name, lambda output, example: None, old.higher_is_better, old.bounds)
    task = Task(name=name, data=TaskData(), kind=old.kind, metrics=(metric_name,), chance=_chance(old))
    base, now = (_sample_results(name, metric, arm) for arm in (old, new))
    documents = {item: logged.digests.get("doc_hash", "") for item, logged in old.items.items()}
    metrics = {metric.name: metric}
    return Measurement(task, "capability", old.evaluator, metrics, base, now, documents=documents)


def join_copies(path: Path, items: Mapping[str, LoggedItem]) -> dict[str, LoggedItem]:
    """Make one cluster of items that are the same document under other ids.

    Raises:
        UserError: every document is there several times.
    """
    documents = {name: item.digests.get("doc_hash", "") for name, item in items.items()}
    counts = Counter(documents.values())
    if min(counts.values()) > 1 and "" not in counts:
        most = counts.most_common(1)[0][0]
        copies = ", ".join([name for name, document in documents.items() if document == most][:5])
        found = f"each of its {len(counts)} documents several times, such as the items {copies}"
        raise UserError(Problem(str(path), found, "every document once", "evaluate each document once"))
    return {
        name: item._replace(cluster=item.cluster or documents[name])
        if documents[name] and counts[documents[name]] > 1
        else item
        for name, item in items.items()
    }


def is_rate(scores: Iterable[object]) -> bool:
    """Tell whether all scores that are finite numbers lie in [0, 1], where the gate's margins are meant."""
    known = [x for x in scores if isinstance(x, int | float) and isfinite(x)]
    return all(0 <= x <= 1 for x in known)


def find_text_cluster(fields: object) -> str:
    """Return what items about one text share, from an item's own fields; empty where it stands alone."""
    if not isinstance(fields, dict):
        return ""
    shared = next((fields[key] for key in _SHARED_TEXTS if fields.get(key)), "")
    return digest(str(shared)) if shared else ""


def _chance(logged: TaskLog) -> float:
    """Return one over the mean number of choices; 0 where some item has no choices."""
    counts: Sequence[int] = [item.n_choices for item in logged.items.values()]
    return 1 / fmean(counts) if min(counts) > 1 else 0.0


def _sample_results(task: str, metric: Metric, logged: TaskLog) -> list[SampleResult]:
    return [
        SampleResult(
            task=task,
            split="test",
            example_id=name,
            position=at,
            status=item.status,
            text="",
            prompt="",
            references=(),
            parts={metric.name: (item.score,)},
            cluster=item.cluster,
            prompt_digest=item.digests.get("prompt_hash", ""),
        )
        for at, (name, item) in enumerate(logged.items.items())
    ]
