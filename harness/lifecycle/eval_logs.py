"""Evaluation logs of other evaluators, by task: items with scores, prompts and settings.

Invariant: an arm has the evaluations of one model, and each task once. Two arms are comparable only with the
same items, prompts and settings, and different answers; values unknown for one of them are ignored.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from harness.analysis.admission import Measurement
from harness.errors import Problem, UserError, as_argument
from harness.metrics import mean_metric
from harness.records import SampleResult, Status, digest
from harness.spec import Kind, Task, TaskData

_SHARED_TEXTS = ("passage", "article", "story", "paragraph", "context_id")  # several questions may share one
# Words in metrics' names, as alternatives of a regular expression.
ERROR_RATES = "wer|ter"  # errors per reference word, which may exceed 1
HIGHER = "acc|accuracy|exact|em|match|includes|choice|correct|f|bleu|rouge|chrf|mcc|pass"
_LOWER = (
    f"{ERROR_RATES}|cer|perplexity|ppl|bits_per_byte|brier|loss|error|errors|distance|mae|mse|rmse"
    "|toxicity|toxic|hallucination|hallucinations|violation|violations|harm|harmful|unsafe|bias"
)
MOST_BYTES = 2**31  # of a file or archive member that is read as a whole
NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.\-]+")


class LoggedItem(NamedTuple):
    """One item: its score within the task's bounds, and named digests of its prompt.

    `answer` is the digest of the model's answer; `n_choices` is 0 if there are no choices.
    """

    score: float
    digests: Mapping[str, str]
    answer: str
    cluster: str = ""
    n_choices: int = 0
    status: Status = "ok"


class TaskLog(NamedTuple):
    """One task as answered by one model; `settings` are None if unknown.

    `kind` is "generate" if the items say which answers were truncated or refused. If the direction is not
    logged, the metric's name decides it.
    """

    task: str
    metric: str
    higher_is_better: bool
    items: dict[str, LoggedItem]
    settings: dict[str, Any]
    kind: Kind
    evaluator: str
    same_items: str  # advice if the items differ
    bounds: tuple[float, float] = (0.0, 1.0)
    is_direction_logged: bool = False


class Evaluation(NamedTuple):
    """One evaluation logged by another evaluator; `file` names it unless it is a whole folder.

    `identity` is equal for evaluations of the same model, None if the model is not named. `tasks` maps each
    task to a reader of its samples, or of the reason why it cannot be compared; `unfinished` have no samples.
    """

    file: Path
    model: str
    identity: Mapping[str, Any] | None
    tasks: Mapping[str, Callable[[], TaskLog | Problem]]
    unfinished: tuple[str, ...] = ()

    def is_like(self, other: "Evaluation") -> bool:
        """Tell whether both are known to have the same model and configuration."""
        return self is other or (self.identity is not None and self.identity == other.identity)


class Arm(NamedTuple):
    """Logged tasks of one model, over all its evaluations; other fields are those of the newest one.

    `names` are the finished tasks; `tasks` has those that were read and can be compared.
    """

    model: str
    identity: Mapping[str, Any] | None
    names: tuple[str, ...]
    tasks: Mapping[str, TaskLog]
    not_compared: Mapping[str, Problem]
    unfinished: tuple[str, ...]


def read_arm(option: str, path: Path, evaluations: Sequence[Evaluation], wanted: Collection[str] = ()) -> Arm:
    """Read one arm from the path that an option gives; only the `wanted` tasks, if any are named."""
    finished = [evaluation for evaluation in evaluations if evaluation.tasks]
    _refuse_several_models(option, path, finished)
    counts = Counter(task for evaluation in finished for task in evaluation.tasks)
    if repeated := [task for task, n in counts.items() if n > 1]:
        files = [evaluation.file for evaluation in finished if repeated[0] in evaluation.tasks]
        found = f"{len(files)} evaluations of {repeated[0]} ({', '.join(file.name for file in files)})"
        step = f"{option} {as_argument(str(files[-1]))} judges the newest; or move the others elsewhere"
        raise UserError(Problem(f"{option} {path}", found, "every task once", step))
    newest = finished[-1]
    logged = dict(sorted(task for evaluation in finished for task in evaluation.tasks.items()))
    read_tasks = {name: read() for name, read in logged.items() if not wanted or name in wanted}
    begun = {name for one in evaluations if one.is_like(newest) for name in one.unfinished}
    return Arm(
        newest.model,
        newest.identity,
        tuple(logged),
        {name: log for name, log in read_tasks.items() if isinstance(log, TaskLog)},
        {name: problem for name, problem in read_tasks.items() if isinstance(problem, Problem)},
        tuple(sorted(begun - logged.keys())),
    )


def _refuse_several_models(option: str, path: Path, evaluations: Sequence[Evaluation]) -> None:
    models: list[Evaluation] = []  # the newest evaluation of each model
    for evaluation in reversed(evaluations):
        if not any(evaluation.is_like(model) for model in models):
            models.append(evaluation)
    if len(models) == 1:
        return
    models.reverse()
    named = ", ".join(f"{e.model or 'an unnamed one'} in {e.file.relative_to(path)}" for e in models)
    difference = ""
    if len({model.model for model in models}) < len(models):
        identities = [model.identity or {} for model in models]
        keys = sorted({key for identity in identities for key in identity})
        differing = [key for key in keys if any(one.get(key) != identities[0].get(key) for one in identities)]
        difference = f"; they differ in {', '.join(differing) or 'nothing that names their model'}"
    found = f"logs of {len(models)} models or configurations ({named}{difference})"
    choices = [f"{option} {as_argument(str(e.file))}" for e in models if e.file.resolve() != path.resolve()]
    step = " or ".join([*choices, "move the files of each, results included, into a folder of its own"])
    raise UserError(Problem(f"{option} {path}", found, "those of one model, each task once", step))


def refuse_large(path: Path) -> None:
    """Refuse a file that is too large to be read as a whole."""
    if (size := path.stat().st_size) > MOST_BYTES:
        found, expected = f"{size:,} bytes of JSON in one file", f"at most {MOST_BYTES:,}"
        raise UserError(Problem(str(path), found, expected, "log fewer tasks or samples to a file"))


def digest_logged(value: object) -> str:
    """Return the digest of a logged value, which may contain NaN."""
    return digest(json.dumps(value, sort_keys=True))


def differences(old: TaskLog, new: TaskLog) -> list[str]:
    """List the differences that forbid comparing a task: settings, items, digests of prompts."""
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


def measurement(name: str, old: TaskLog, new: TaskLog) -> Measurement:
    """Return both arms as the measurement of a capability task with this name."""
    metric_name = NOT_IN_NAMES.sub("-", old.metric)
    metric = mean_metric(metric_name, lambda output, example: None, old.higher_is_better, old.bounds)
    n_choices: Sequence[int] = [item.n_choices for item in old.items.values()]
    chance = 1 / fmean(n_choices) if min(n_choices) > 1 else 0.0
    task = Task(name=name, data=TaskData(), kind=old.kind, metrics=(metric_name,), chance=chance)
    base, now = (
        [
            SampleResult(
                task=name,
                split="test",
                example_id=item,
                position=at,
                status=logged.status,
                text="",
                prompt="",
                references=(),
                parts={metric.name: (logged.score,)},
                cluster=logged.cluster,
                prompt_digest=logged.digests.get("prompt_hash", ""),
            )
            for at, (item, logged) in enumerate(arm.items.items())
        ]
        for arm in (old, new)
    )
    documents = {item: logged.digests.get("doc_hash", "") for item, logged in old.items.items()}
    metrics = {metric.name: metric}
    return Measurement(task, "capability", old.evaluator, metrics, base, now, documents=documents)


def join_copies(path: Path, items: Mapping[str, LoggedItem]) -> dict[str, LoggedItem]:
    """Join items with the same document but other ids into one cluster; refuse a log of copies only."""
    documents = {name: item.digests.get("doc_hash", "") for name, item in items.items()}
    counts = Counter(documents.values())
    if min(counts.values()) > 1 and "" not in counts:
        most = counts.most_common(1)[0][0]
        copies = ", ".join([name for name, document in documents.items() if document == most][:5])
        found = f"each of its {len(counts)} documents several times, such as the items {copies}"
        raise UserError(Problem(str(path), found, "every document once", "evaluate each document once"))
    joined = dict(items)
    for name, document in documents.items():
        if document and counts[document] > 1:
            joined[name] = items[name]._replace(cluster=items[name].cluster or document)
    return joined


def is_rate(scores: Iterable[object]) -> bool:
    """Tell whether all finite scores are in [0, 1], as the gate's margins require."""
    known = [x for x in scores if isinstance(x, int | float) and isfinite(x)]
    return all(0 <= x <= 1 for x in known)


def is_lower_better(metric: str) -> bool:
    """Tell by a metric's name whether a lower value is better."""
    return is_named(metric, _LOWER)


def is_named(metric: str, names: str) -> bool:
    """Tell whether a metric's name contains one of these words."""
    words = "_".join(re.findall("[a-z]+", metric.lower()))
    return re.search(f"_({names})_", f"_{words}_") is not None


def find_text_cluster(fields: object) -> str:
    """Return the name of the text that an item shares with others, from its fields; empty if none."""
    if not isinstance(fields, dict):
        return ""
    shared = next((fields[key] for key in _SHARED_TEXTS if fields.get(key)), "")
    return digest(str(shared)) if shared else ""
