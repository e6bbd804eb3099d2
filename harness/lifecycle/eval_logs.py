"""Evaluation logs of other evaluators, by task: items with scores, prompts and settings; samples of lm-eval.

Invariant: an arm has the evaluations of one model, and each task once. Two arms are comparable only with the
same items, prompts and settings, and different answers; values unknown for one of them are ignored.

lm-eval (`--log_samples`) writes a folder with one file of samples per task, and the results; `harness eval
-s` writes the same without a date in the names. An evaluation has the samples of one date in one folder.
Source: lm-evaluation-harness 0.4, `loggers/evaluation_tracker.py`.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from math import inf, isfinite
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from harness.analysis.admission import Measurement
from harness.data.text_files import open_text
from harness.errors import Problem, UserError, as_argument, refuse_unreadable
from harness.metrics import mean_metric
from harness.records import SampleResult, Status, digest, parse_json, read_object
from harness.spec import Kind, Task, TaskData

_SHARED_TEXTS = ("passage", "article", "story", "paragraph", "context_id")  # several questions may share one
# Words in metrics' names, as alternatives of a regular expression.
ERROR_RATES = "wer|ter"  # errors per reference word, which may exceed 1
HIGHER = "acc|accuracy|exact|em|match|includes|choice|correct|f|bleu|rouge|chrf|mcc|pass"
_LOWER = (
    f"{ERROR_RATES}|cer|perplexity|ppl|bits_per_byte|brier|loss|error|errors|distance|mae|mse|rmse"
    "|toxicity|toxic|hallucination|hallucinations|violation|violations|harm|harmful|unsafe|bias"
)
# By evaluator, advice if the items of two logs differ.
_SAME_ITEMS = {"lm-eval": "use the same --limit", "inspect": "use the same --limit and --sample-id"}
MOST_BYTES = 2**31  # of a file or archive member that is read as a whole
NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.\-]+")


class LoggedItem(NamedTuple):
    """One item: its score, digests of its prompt and of the answer; `n_choices` is 0 without choices."""

    score: float
    digests: Mapping[str, str]
    answer: str
    cluster: str = ""
    n_choices: int = 0
    status: Status = "ok"


class TaskLog(NamedTuple):
    """One task as answered by one model; unknown `settings` are None."""

    task: str
    metric: str
    higher_is_better: bool
    items: dict[str, LoggedItem]
    settings: dict[str, Any]
    kind: Kind
    evaluator: str
    bounds: tuple[float, float] = (0.0, 1.0)
    is_direction_logged: bool = False


class Evaluation(NamedTuple):
    """One evaluation: `identity` is equal for the same model, `tasks` load a log or say why there is none."""

    file: Path
    model: str
    identity: Mapping[str, Any] | None
    tasks: Mapping[str, Callable[[], TaskLog | Problem]]
    unfinished: tuple[str, ...] = ()

    def is_like(self, other: "Evaluation") -> bool:
        """Tell whether both are known to have the same model and configuration."""
        return self is other or (self.identity is not None and self.identity == other.identity)


class Arm(NamedTuple):
    """Logged tasks of one model; `names` are the finished ones, `tasks` those read that can be compared."""

    model: str
    identity: Mapping[str, Any] | None
    names: tuple[str, ...]
    tasks: Mapping[str, TaskLog]
    not_compared: Mapping[str, Problem]
    unfinished: tuple[str, ...]


def read_arm(option: str, path: Path, evaluations: Sequence[Evaluation], tasks: Collection[str] = ()) -> Arm:
    """Read one arm from the path that an option gives; only the named `tasks`, if any."""
    finished = [evaluation for evaluation in evaluations if evaluation.tasks]
    models: list[Evaluation] = []  # the newest evaluation of each model
    for evaluation in reversed(finished):
        if not any(evaluation.is_like(model) for model in models):
            models.insert(0, evaluation)
    if len(models) != 1:
        listing = ", ".join(f"{e.model or 'an unnamed one'} in {e.file.relative_to(path)}" for e in models)
        difference = ""
        if len({model.model for model in models}) < len(models):
            identities = [model.identity or {} for model in models]
            keys = sorted(set[str]().union(*identities))
            differing = [key for key in keys if any(d.get(key) != identities[0].get(key) for d in identities)]
            difference = f"; they differ in {', '.join(differing) or 'nothing that names their model'}"
        found = f"logs of {len(models)} models or configurations ({listing}{difference})"
        others = [model.file for model in models if model.file.resolve() != path.resolve()]
        choices = [f"{option} {as_argument(str(file))}" for file in others]
        step = " or ".join([*choices, "move the files of each, results included, into a folder of its own"])
        raise UserError(f"{option} {path}", found, "those of one model, each task once", step)
    counts = Counter(task for evaluation in finished for task in evaluation.tasks)
    if repeated := [task for task, n in counts.items() if n > 1]:
        files = [evaluation.file for evaluation in finished if repeated[0] in evaluation.tasks]
        found = f"{len(files)} evaluations of {repeated[0]} ({', '.join(file.name for file in files)})"
        step = f"{option} {as_argument(str(files[-1]))} judges the newest; or move the others elsewhere"
        raise UserError(f"{option} {path}", found, "every task once", step)
    newest = finished[-1]
    logged = dict(sorted(task for evaluation in finished for task in evaluation.tasks.items()))
    read_tasks = {name: load() for name, load in logged.items() if not tasks or name in tasks}
    unfinished = {name for e in evaluations if e.is_like(newest) for name in e.unfinished}
    return Arm(
        newest.model,
        newest.identity,
        tuple(logged),
        {name: log for name, log in read_tasks.items() if isinstance(log, TaskLog)},
        {name: problem for name, problem in read_tasks.items() if isinstance(problem, Problem)},
        tuple(sorted(unfinished - logged.keys())),
    )


def refuse_large(path: Path) -> None:
    """Refuse a file that is too large to be read as a whole."""
    if (size := path.stat().st_size) > MOST_BYTES:
        found, expected = f"{size:,} bytes of JSON in one file", f"at most {MOST_BYTES:,}"
        raise UserError(str(path), found, expected, "log fewer tasks or samples to a file")


def refuse_unscored(path: Path, metric: str, unscored: Sequence[str], n: int, step: str) -> None:
    """Refuse items without a score; if one arm alone lacks them, the means are not comparable."""
    if unscored:
        found = f"{len(unscored)} of {n} items without a number as {metric} (id {', '.join(unscored[:5])})"
        raise UserError(str(path), found, "a finite score of every item", step)


def refuse_missing(path: Path, n: int, expected: object, step: str) -> None:
    """Refuse a log with fewer samples than it counts, such as a truncated copy."""
    if isinstance(expected, int) and expected > n:
        raise UserError(str(path), f"{n} of {expected} samples", "all of them", step)


def digest_logged(value: object) -> str:
    """Return the digest of a logged value, which may contain NaN."""
    return digest(json.dumps(value, sort_keys=True))


def differences(old: TaskLog, new: TaskLog) -> list[str]:
    """List the differences that prevent the comparison of a task: settings, items, digests of prompts."""
    problems = []
    for name in dict.fromkeys([*old.settings, *new.settings]):
        a, b = old.settings.get(name), new.settings.get(name)
        if a is not None and b is not None and a != b:
            problems.append(f"{old.task}: the two differ in {name}: {a!r} and {b!r}")
    if old.metric != new.metric:
        problems.append(f"{old.task}: the two differ in the metric: {old.metric} and {new.metric}")
    missing = old.items.keys() ^ new.items.keys()
    if missing:
        ids = ", ".join(sorted(missing)[:5])
        only = f"{len(missing)} items are in one of the two only ({ids})"
        problems.append(f"{old.task}: {only}; {_SAME_ITEMS[old.evaluator]}")
    shared = old.items.keys() & new.items.keys()
    for name in dict.fromkeys(name for i in shared for name in old.items[i].digests):
        n = sum(old.items[i].digests.get(name) != new.items[i].digests.get(name) for i in shared)
        if n:
            problems.append(f"{old.task}: {name} differs on {n} of {len(shared)} items; use the same prompts")
    return problems


def measurement(name: str, old: TaskLog, new: TaskLog) -> Measurement:
    """Return both arms as the measurement of a capability task with this name."""
    metric_name = NOT_IN_NAMES.sub("-", old.metric)
    metric = mean_metric(metric_name, lambda output, example: None, old.higher_is_better, old.bounds)
    n_choices: Sequence[int] = [item.n_choices for item in old.items.values()]
    chance = fmean(1 / n for n in n_choices) if min(n_choices) > 1 else 0.0
    task = Task(name=name, data=TaskData(), kind=old.kind, metrics=(metric_name,), chance=chance)

    def row(position: int, item: str, logged: LoggedItem) -> SampleResult:
        scores: dict[str, tuple[float, ...] | None] = {metric.name: (logged.score,)}
        prompt_hash = logged.digests.get("prompt_hash", "")
        fields = (name, "test", item, position, logged.status, "", "", (), scores, logged.cluster)
        return SampleResult(*fields, prompt_digest=prompt_hash)

    base, now = ([row(i, *entry) for i, entry in enumerate(arm.items.items())] for arm in (old, new))
    documents = {item: logged.digests.get("doc_hash", "") for item, logged in old.items.items()}
    metrics = {metric.name: metric}
    return Measurement(task, "capability", old.evaluator, metrics, base, now, documents=documents)


def join_copies(path: Path, items: Mapping[str, LoggedItem]) -> dict[str, LoggedItem]:
    """Join items with the same document but other ids into one cluster; refuse a log of copies only."""
    documents = {name: item.digests.get("doc_hash", "") for name, item in items.items()}
    counts = Counter(documents.values())
    if min(counts.values()) > 1 and "" not in counts:
        repeated = counts.most_common(1)[0][0]
        copies = ", ".join([name for name, document in documents.items() if document == repeated][:5])
        found = f"each of its {len(counts)} documents several times, such as the items {copies}"
        raise UserError(str(path), found, "every document once", "evaluate each document once")
    joined = dict(items)
    for name, document in documents.items():
        if document and counts[document] > 1:
            joined[name] = items[name]._replace(cluster=items[name].cluster or document)
    return joined


def is_rate(scores: Iterable[object]) -> bool:
    """Tell whether all finite scores are in [0, 1], as the gate's margins require."""
    return all(0 <= x <= 1 for x in scores if isinstance(x, int | float) and isfinite(x))


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


_SAMPLES = re.compile(r"samples_(?P<task>.+?)(?P<date>_\d{4}-\d\d-\d\dT[\d.+\-]+)?\.jsonl$")
_RESULTS = re.compile(r"(?:results|(?!samples_).+?(?=_\d{4}-))(?P<date>_\d{4}-\d\d-\d\dT[\d.+\-]+)?\.json$")
_HASHES = {"doc_hash": "doc", "prompt_hash": "arguments", "target_hash": "target"}  # and the hashed fields
_WHO = ("model_name", "model_source", "model", "precision", "engine")
_MACHINE = ("batch_size", "batch_sizes", "device", "use_cache", "bootstrap_iters")
_OF_TASKS = ("limit", "gen_kwargs", "random_seed", "numpy_seed", "torch_seed", "fewshot_seed")
_SETTINGS = (
    *("model_dtype", "gen_kwargs", "chat_template_sha", "system_instruction_sha"),
    *("fewshot_as_multiturn", "precision", "engine"),
)


def find_lm_eval(path: Path) -> list[Evaluation]:
    """List the evaluations below a folder, the newest last, or the one in a file of results or samples."""
    results = _RESULTS.match(path.name) if path.is_file() else None
    if path.is_dir():
        files = sorted(path.rglob("samples_*.jsonl"))
    elif path.is_file() and path.suffix == ".jsonl":
        files = [path]
    else:
        files = sorted(path.parent.glob("samples_*.jsonl")) if results else []
    samples: dict[tuple[str, Path], dict[str, Path]] = {}
    for file in files:
        if (match := _SAMPLES.match(file.name)) and (not results or results["date"] == match["date"]):
            samples.setdefault((match["date"] or "", file.parent), {})[match["task"]] = file
    return [_evaluation(path, folder, date, samples[date, folder]) for date, folder in sorted(samples)]


def _evaluation(path: Path, folder: Path, date: str, samples: Mapping[str, Path]) -> Evaluation:
    results_files = [file for file in sorted(folder.glob(f"*{date}.json")) if _RESULTS.match(file.name)]
    results_file = next((file for file in results_files if date or file.name == "results.json"), None)
    results = {}
    if results_file:
        refuse_large(results_file)
        results = read_object(results_file) or {}
        if not results:
            found, step = "no results that can be read", "copy the file again, or evaluate again"
            raise UserError(str(results_file), found, "what lm-eval wrote next to the samples, as JSON", step)
    # The model's configuration without device and request settings.
    other_keys = (*_MACHINE, *_OF_TASKS)
    configuration = {key: value for key, value in _dict(results, "config").items() if key not in other_keys}
    if isinstance(args := configuration.get("model_args"), dict):
        configuration["model_args"] = ",".join(f"{key}={value}" for key, value in args.items())
    names = (results.get("model_name"), results.get("model"), configuration.get("model_args"))
    model = next((str(name) for name in names if name), "")
    identity = {key: results[key] for key in _WHO if key in results} | configuration
    tasks = {task: partial(_score_items, task, file, results) for task, file in sorted(samples.items())}
    (first, *more) = samples.values()
    unfinished = () if path == first else tuple(_dict(results, "configs").keys() - samples.keys())
    file = results_file or (folder if more else first)
    return Evaluation(file, model, identity if model else None, tasks, unfinished)


def _score_items(task: str, path: Path, results: Mapping[str, Any]) -> TaskLog | Problem:
    with refuse_unreadable(path, "samples of lm-eval", "copy the file again, or evaluate again"):
        rows = _rows(path)
        kept_rows = [row for row in rows if row.get("filter") == rows[0].get("filter")]
        counts = Counter(str(row["doc_id"]) for row in kept_rows)
        if len(set(counts.values())) > 1:
            found = f"doc_id {counts.most_common(1)[0][0]} more often than others"
            raise UserError(str(path), found, "every item equally often", "evaluate again")
        first = {str(row["doc_id"]): row for row in reversed(kept_rows)}
        repeats = [(row, first[str(row["doc_id"])]) for row in kept_rows[len(first) :]]
        # Old versions of lm-eval name no filter: further lines hold the same responses under another filter.
        same = all("filter" not in row and row.get("resps") == orig.get("resps") for row, orig in repeats)
        if repeats and not (same and any(row != orig for row, orig in repeats)):
            times, kept_name = len(kept_rows) // len(first), ", ".join(list(counts)[:5])
            found = f"each of its {len(first)} items {times} times (doc_id {kept_name})"
            step = "keep the lines of one evaluation, or evaluate again"
            raise UserError(str(path), found, "every item once", step)
        samples = dict(reversed(first.items()))
        # The first rate decides, else errors per word. These have no upper bound and are left out of means of
        # tasks, for margins are losses from 0 to 1.
        sample = next(iter(samples.values()))
        numbers = [name for name, value in sample.items() if isinstance(value, int | float)]
        unrated = ("doc_id", "metabench_idx")
        listed_names = sample.get("metrics") or [name for name in numbers if name not in unrated]
        scored_names = [name for name in listed_names if isinstance(sample.get(name), int | float)]
        errors = [name for name in scored_names if is_named(name, ERROR_RATES)]
        rates = [name for name in scored_names if is_rate(row.get(name) for row in samples.values())]
        deciding = [*(name for name in rates if name not in errors), *errors]
        if not deciding:
            found = f"metrics that are not rates in [0, 1] ({', '.join(map(str, scored_names))})"
            if not scored_names:
                found = f"metrics without one number an item ({', '.join(map(str, listed_names)) or 'none'})"
            return Problem(str(path), found, "a metric such as acc or exact_match", "leave the task out")
        metric = str(deciding[0])
        scores = {item: row.get(metric) for item, row in samples.items()}
        unscored = [item for item, x in scores.items() if not isinstance(x, int | float) or not isfinite(x)]
        refuse_unscored(path, metric, unscored, len(scores), "evaluate again")
        expected = _dict(_dict(results, "n-samples"), task).get("effective")
        refuse_missing(path, len(samples), expected, "copy the file again, or evaluate again")
        direction = _dict(_dict(results, "higher_is_better"), task).get(metric)
        higher = bool(direction) if direction is not None else not is_lower_better(metric)
        bounds = (0.0, inf) if is_named(metric, ERROR_RATES) else (0.0, 1.0)
        config = _dict(results, "config")
        settings = {}
        for name in _SETTINGS:
            logged = (value for value in (results.get(name), config.get(name)) if value not in (None, ""))
            settings[name] = next(logged, None)
        settings["version"] = _dict(results, "versions").get(task)
        settings["num_fewshot"] = _dict(results, "n-shot").get(task)
        settings["filter"] = rows[0].get("filter")
        items = join_copies(path, {name: _item(row, metric) for name, row in samples.items()})
        is_logged = direction is not None
        # Kind "choice": whether an answer was unparsable or truncated is not in these files.
        return TaskLog(task, metric, higher, items, settings, "choice", "lm-eval", bounds, is_logged)


def _item(row: Mapping[str, Any], metric: str) -> LoggedItem:
    logged = ((name, field) for name, field in _HASHES.items() if name in row or field in row)
    return LoggedItem(
        score=float(row[metric]),
        digests={name: str(row.get(name) or digest_logged(row[field])) for name, field in logged},
        answer=digest_logged([row.get("resps"), row[metric]]),
        cluster=find_text_cluster(row.get("doc")),
        n_choices=len(row.get("resps") or row.get("arguments") or ()),
    )


def _rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    with open_text(path, str(path), "\n") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = parse_json(line)
                row["doc_id"]
            except (ValueError, KeyError, TypeError) as error:
                found = f"a line that is not a sample ({type(error).__name__})"
                step = "run lm_eval again with --log_samples"
                raise UserError(f"{path}:{number}", found, "JSON with a doc_id", step) from error
            rows.append(row)
    if not rows:
        raise UserError(str(path), "no samples", "one line an item", "evaluate again")
    return rows


def _dict(value: Mapping[str, Any], key: str) -> dict[str, Any]:
    return entry if isinstance(entry := value.get(key), dict) else {}
