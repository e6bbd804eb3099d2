"""Samples of lm-eval (`--log_samples`): a folder with one file of samples per task, and the results.

`harness eval -s` writes the same files, without a date in their names. An evaluation consists of the samples
of one date in one folder. Source: lm-evaluation-harness 0.4, `loggers/evaluation_tracker.py`.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from math import inf, isfinite
from pathlib import Path
from typing import Any

from harness.data.text_files import open_text
from harness.errors import Problem, UserError, refuse_unreadable
from harness.lifecycle import eval_logs
from harness.lifecycle.eval_logs import Evaluation, LoggedItem, TaskLog
from harness.records import parse_json, read_object

_SAMPLES = re.compile(r"samples_(?P<task>.+?)(?P<date>_\d{4}-\d\d-\d\dT[\d.+\-]+)?\.jsonl$")
_RESULTS = re.compile(r"(?:results|(?!samples_).+?(?=_\d{4}-))(?P<date>_\d{4}-\d\d-\d\dT[\d.+\-]+)?\.json$")
_HASHES = {"doc_hash": "doc", "prompt_hash": "arguments", "target_hash": "target"}  # and the hashed fields
_WHO = ("model_name", "model_source", "model", "precision", "engine")
_WANTED = ("a metric such as acc or exact_match", "leave the task out")
_MACHINE = ("batch_size", "batch_sizes", "device", "use_cache", "bootstrap_iters")
_OF_TASKS = ("limit", "gen_kwargs", "random_seed", "numpy_seed", "torch_seed", "fewshot_seed")
_SETTINGS = (
    *("model_dtype", "gen_kwargs", "chat_template_sha", "system_instruction_sha"),
    *("fewshot_as_multiturn", "precision", "engine"),
)


def find_evaluations(path: Path) -> list[Evaluation]:
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
        if (named := _SAMPLES.match(file.name)) and (not results or results["date"] == named["date"]):
            samples.setdefault((named["date"] or "", file.parent), {})[named["task"]] = file
    return [_evaluation(path, folder, date, samples[date, folder]) for date, folder in sorted(samples)]


def _evaluation(path: Path, folder: Path, date: str, samples: Mapping[str, Path]) -> Evaluation:
    named = [file for file in sorted(folder.glob(f"*{date}.json")) if _RESULTS.match(file.name)]
    results_file = next((file for file in named if date or file.name == "results.json"), None)
    results = {}
    if results_file:
        eval_logs.refuse_large(results_file)
        results = read_object(results_file) or {}
        if not results:
            found, step = "no results that can be read", "copy the file again, or evaluate again"
            expected = "what lm-eval wrote next to the samples, as JSON"
            raise UserError(Problem(str(results_file), found, expected, step))
    # The model's configuration without device and request settings.
    others = (*_MACHINE, *_OF_TASKS)
    configuration = {key: value for key, value in _dict(results, "config").items() if key not in others}
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
        samples = _keep_first_filter(path, rows)
        metric = _deciding_metric(path, list(samples.values()))
        if isinstance(metric, Problem):
            return metric
        # If left out on one side only, items without a score would change the other's mean.
        scores = {item: row.get(metric) for item, row in samples.items()}
        unscored = [item for item, x in scores.items() if not isinstance(x, int | float) or not isfinite(x)]
        if unscored:
            named = ", ".join(unscored[:5])
            lacking = f"{len(unscored)} of {len(scores)} items without a number as {metric} (doc_id {named})"
            raise UserError(Problem(str(path), lacking, "a finite score of every item", "evaluate again"))
        expected = _dict(_dict(results, "n-samples"), task).get("effective")
        if isinstance(expected, int) and expected > len(samples):  # the copy was truncated
            advice = "copy the file again, or evaluate again"
            raise UserError(
                Problem(str(path), f"{len(samples)} of {expected} samples", "all of them", advice)
            )
        direction = _dict(_dict(results, "higher_is_better"), task).get(metric)
        higher = bool(direction) if direction is not None else not eval_logs.is_lower_better(metric)
        bounds = (0.0, inf) if eval_logs.is_named(metric, eval_logs.ERROR_RATES) else (0.0, 1.0)
        config = _dict(results, "config")
        settings = {}
        for name in _SETTINGS:
            logged = (value for value in (results.get(name), config.get(name)) if value not in (None, ""))
            settings[name] = next(logged, None)
        settings["version"] = _dict(results, "versions").get(task)
        settings["num_fewshot"] = _dict(results, "n-shot").get(task)
        settings["filter"] = rows[0].get("filter")
        items = eval_logs.join_copies(path, {name: _item(row, metric) for name, row in samples.items()})
        # Kind "choice": whether an answer was unparsable or truncated is not in these files.
        return TaskLog(
            task,
            metric,
            higher,
            items,
            settings,
            "choice",
            "lm-eval",
            "use the same --limit",
            bounds,
            direction is not None,
        )


def _item(row: Mapping[str, Any], metric: str) -> LoggedItem:
    return LoggedItem(
        score=float(row[metric]),
        digests={
            name: str(row.get(name) or eval_logs.digest_logged(row[field]))
            for name, field in _HASHES.items()
            if name in row or field in row
        },
        answer=eval_logs.digest_logged([row.get("resps"), row[metric]]),
        cluster=eval_logs.find_text_cluster(row.get("doc")),
        n_choices=len(row.get("resps") or row.get("arguments") or ()),
    )


def _keep_first_filter(path: Path, rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Keep each item once: there is one line per filter, and the first filter decides."""
    kept = [row for row in rows if row.get("filter") == rows[0].get("filter")]
    counts = Counter(str(row["doc_id"]) for row in kept)
    if len(set(counts.values())) > 1:
        found = f"doc_id {counts.most_common(1)[0][0]} more often than others"
        raise UserError(Problem(str(path), found, "every item equally often", "evaluate again"))
    first = {str(row["doc_id"]): row for row in reversed(kept)}
    again = [(row, first[str(row["doc_id"])]) for row in kept[len(first) :]]
    # Old versions of lm-eval name no filter: further lines hold the same responses, filtered in other ways.
    same = all("filter" not in row and row.get("resps") == of.get("resps") for row, of in again)
    if again and not (same and any(row != of for row, of in again)):
        times, named = len(kept) // len(first), ", ".join(list(counts)[:5])
        found = f"each of its {len(first)} items {times} times (doc_id {named})"
        step = "keep the lines of one evaluation, or evaluate again"
        raise UserError(Problem(str(path), found, "every item once", step))
    return dict(reversed(first.items()))


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
                raise UserError(Problem(f"{path}:{number}", found, "JSON with a doc_id", step)) from error
            rows.append(row)
    if not rows:
        raise UserError(Problem(str(path), "no samples", "one line an item", "evaluate again"))
    return rows


def _deciding_metric(path: Path, rows: Sequence[Mapping[str, Any]]) -> str | Problem:
    """Return the first rate, else an error rate per word, or the reason why neither can be compared."""
    # Margins are losses from 0 to 1. Errors per word have no upper bound and count in no mean of tasks.
    row = rows[0]
    listed = row.get("metrics") or [
        k for k, v in row.items() if isinstance(v, int | float) and k not in ("doc_id", "metabench_idx")
    ]
    scored = [name for name in listed if isinstance(row.get(name), int | float)]
    if not scored:
        found = f"metrics without one number an item ({', '.join(map(str, listed)) or 'none'})"
        return Problem(str(path), found, *_WANTED)
    errors = [name for name in scored if eval_logs.is_named(name, eval_logs.ERROR_RATES)]
    rates = [
        name for name in scored if name not in errors and eval_logs.is_rate(row.get(name) for row in rows)
    ]
    if not rates + errors:
        found = f"metrics that are not rates in [0, 1] ({', '.join(map(str, scored))})"
        return Problem(str(path), found, *_WANTED)
    return str((rates + errors)[0])


def _dict(value: Mapping[str, Any], key: str) -> dict[str, Any]:
    return found if isinstance(found := value.get(key), dict) else {}
