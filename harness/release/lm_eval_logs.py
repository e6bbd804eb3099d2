"""Samples of lm-eval (`--log_samples`): a folder with one file of samples a task, and the results.

`harness eval -s` writes the same, without a date in the names.

Invariant: nothing is read but JSON; of several evaluations of a task the newest counts.
Source: lm-evaluation-harness 0.4, `loggers/evaluation_tracker.py` writes these files.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import inf, isfinite
from pathlib import Path
from typing import Any

from harness.errors import Problem, UserError
from harness.records import parse_json, read_object
from harness.release.eval_logs import LoggedItem, TaskLog, find_text_cluster, is_rate, join_copies

_SAMPLES = re.compile(r"samples_(?P<task>.+?)(?P<date>_\d{4}-\d\d-\d\dT[\d.+\-]+)?\.jsonl$")
_HASHES = ("doc_hash", "prompt_hash", "target_hash")
_SETTINGS = (
    "model_dtype",
    "gen_kwargs",
    "chat_template_sha",
    "system_instruction_sha",
    "fewshot_as_multiturn",
    "precision",
    "engine",
)
_ERROR_RATES = ("wer", "ter")  # errors per word of the reference, which may be more than 1
_LOWER = (*_ERROR_RATES, "perplexity", "bits_per_byte", "brier_score")


def sample_files(folder: Path) -> dict[str, tuple[str, Path]]:
    """Find the newest samples of every task below a folder: its date (or nothing) and file."""
    newest: dict[str, tuple[str, Path]] = {}
    for path in sorted(folder.rglob("samples_*.jsonl")):
        if named := _SAMPLES.match(path.name):
            newest[named["task"]] = max(newest.get(named["task"], ("", path)), (named["date"] or "", path))
    return newest


def read_samples(folder: Path) -> dict[str, TaskLog]:
    """Read the newest samples of every task below a folder, by the task's name.

    The metric is the first rate that lm-eval lists for the task, else a rate of errors per word, which has no
    upper bound. Chance is one over the number of choices. Whether an answer was cut off is not in
    these files.

    Raises:
        UserError: a file is damaged.
    """
    return {
        task: _parse_task(task, path, read_object(path.with_name(f"results{date}.json")))
        for task, (date, path) in sorted(sample_files(folder).items())
    }


def _parse_task(task: str, path: Path, results: Mapping[str, Any]) -> TaskLog:
    samples = _keep_first_filter(path, list(_rows(path)))
    metric = _metric(path, list(samples.values()))
    _refuse_unscored(path, samples, metric)
    direction = results.get("higher_is_better", {}).get(task, {}).get(metric)
    higher = bool(direction) if direction is not None else not _is_named(metric, _LOWER)
    bounds = (0.0, inf) if _is_named(metric, _ERROR_RATES) else (0.0, 1.0)
    config = results.get("config", {})
    settings = {name: _first(results.get(name), config.get(name)) for name in _SETTINGS}
    settings["version"] = results.get("versions", {}).get(task)
    settings["num_fewshot"] = results.get("n-shot", {}).get(task)
    items = join_copies(path, {name: _item(row, metric) for name, row in samples.items()})
    # Kind "choice": whether an answer was unparsable or truncated is not in these files.
    return TaskLog(task, metric, higher, items, settings, "choice", "lm-eval", "use the same --limit", bounds)


def _is_named(metric: str, names: Iterable[str]) -> bool:
    """Tell whether the words of a metric's name hold one of these."""
    words = "_".join(re.findall("[a-z]+", metric.lower()))
    return any(f"_{name}_" in f"_{words}_" for name in names)


def _item(row: Mapping[str, Any], metric: str) -> LoggedItem:
    return LoggedItem(
        score=float(row[metric]),
        digests={name: str(row.get(name, "")) for name in _HASHES},
        cluster=find_text_cluster(row.get("doc")),
        n_choices=len(row.get("resps") or row.get("arguments") or ()),
    )


def _keep_first_filter(path: Path, rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Keep each item once: with several filters an item stands once a filter, and the first one decides."""
    # Versions of lm-eval that do not name the filter write the filters one after the other: of one item the
    # same responses, filtered in other ways.
    kept = [row for row in rows if row.get("filter") == rows[0].get("filter")]
    counts = Counter(str(row["doc_id"]) for row in kept)
    if len(set(counts.values())) > 1:
        found = f"doc_id {counts.most_common(1)[0][0]} more often than others"
        raise UserError(Problem(str(path), found, "every item equally often", "evaluate again"))
    first = {str(row["doc_id"]): row for row in reversed(kept)}
    again = [(row, first[str(row["doc_id"])]) for row in kept[len(first) :]]
    if again and not _are_filters(again):
        times, named = len(kept) // len(first), ", ".join(list(counts)[:5])
        found = f"each of its {len(first)} items {times} times (doc_id {named})"
        step = "keep the lines of one evaluation, or evaluate again"
        raise UserError(Problem(str(path), found, "every item once", step))
    return dict(reversed(first.items()))


def _are_filters(again: Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> bool:
    """Tell whether further lines of items are their first ones' responses, by a filter without a name."""
    pairs = list(again)
    same = all("filter" not in row and row.get("resps") == first.get("resps") for row, first in pairs)
    return same and any(row != first for row, first in pairs)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    empty = True
    for number, line in enumerate(path.read_text("utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
            row["doc_id"]
        except (ValueError, KeyError, TypeError) as error:
            found = f"a line that is no sample ({type(error).__name__})"
            step = "run lm_eval again with --log_samples"
            raise UserError(Problem(f"{path}:{number}", found, "JSON with a doc_id", step)) from error
        empty = False
        yield row
    if empty:
        raise UserError(Problem(str(path), "no samples", "one line an item", "evaluate again"))


def _metric(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    """Name the first metric that is a rate, as margins are losses on a scale from 0 to 1."""
    # Where there is none, a rate of errors per word is compared, which has no upper bound and counts in no
    # mean of tasks.
    row = rows[0]
    listed = row.get("metrics") or [
        k for k, v in row.items() if isinstance(v, int | float) and k not in ("doc_id", "metabench_idx")
    ]
    scored = [name for name in listed if isinstance(row.get(name), int | float)]
    if not scored:
        found = f"metrics without one number an item ({', '.join(map(str, listed)) or 'none'})"
        step = "leave the task out of both folders"
        raise UserError(Problem(str(path), found, "a metric such as acc or exact_match", step))
    errors = [name for name in scored if _is_named(name, _ERROR_RATES)]
    rates = [name for name in scored if name not in errors and is_rate(row.get(name) for row in rows)]
    if not rates + errors:
        found = f"metrics that are no rates in [0, 1] ({', '.join(map(str, scored))})"
        step = "leave the task out of both folders"
        raise UserError(Problem(str(path), found, "a metric such as acc or exact_match", step))
    return str((rates + errors)[0])


def _refuse_unscored(path: Path, samples: Mapping[str, Mapping[str, Any]], metric: str) -> None:
    """Refuse samples without a score: left out on one side only, they would move the other's mean."""
    scores = {item: row.get(metric) for item, row in samples.items()}
    bad = [item for item, x in scores.items() if not isinstance(x, int | float) or not isfinite(x)]
    if bad:
        named = ", ".join(bad[:5])
        found = f"{len(bad)} of {len(scores)} items without a number as {metric} (doc_id {named})"
        raise UserError(Problem(str(path), found, "a finite score of every item", "evaluate again"))


def _first(*values: Any) -> Any:
    return next((value for value in values if value not in (None, "")), None)
