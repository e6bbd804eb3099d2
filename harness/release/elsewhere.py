"""Results that others computed: two folders of lm-eval's `--log_samples` output, paired by item.

Invariant: items are paired by their id and only where document, prompt and target have the same
hashes in both folders; nothing is read but JSON.
Source: lm-evaluation-harness 0.4, `loggers/evaluation_tracker.py` writes these files.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from harness import gating
from harness.errors import IncompatibleRuns, Problem, UserError
from harness.gating import Measurement
from harness.metrics import Metric, mean_metric
from harness.records import SampleResult, digest
from harness.release.judged import Judged
from harness.spec import GatePolicy, Task, TaskData

_SAMPLES = re.compile(r"samples_(?P<task>.+?)_(?P<date>\d{4}-\d\d-\d\dT[\d.+\-]+)\.jsonl$")
_HASHES = ("doc_hash", "prompt_hash", "target_hash")
_SETTINGS = (
    "model_dtype",
    "gen_kwargs",
    "chat_template_sha",
    "system_instruction_sha",
    "fewshot_as_multiturn",
)
_LOWER = ("perplexity", "bits_per_byte", "wer", "ter", "brier_score")
_SHARED_TEXTS = ("passage", "article", "story", "paragraph", "context_id")  # several questions have one


class Logged(NamedTuple):
    """One task of one folder: its samples by id, and what the results file says of it."""

    task: str
    metric: str
    higher_is_better: bool
    samples: dict[str, dict[str, Any]]
    settings: dict[str, Any]


def gate_folders(base: Path, candidate: Path, policy: GatePolicy) -> Judged:
    """Judge one model's logged samples against another's, over the tasks that both folders hold.

    Every task is a capability task; chance is one over the mean number of choices, 0 where answers
    are generated. The metric is the first that lm-eval lists for the task.

    Raises:
        UserError: a folder holds no samples, or a file is damaged.
        IncompatibleRuns: no task is in both, or items, prompts, versions or precision differ.
    """
    old, new = read_folder(base), read_folder(candidate)
    shared = [name for name in old if name in new]
    if not shared:
        raise IncompatibleRuns(
            f"found no task in both folders ({', '.join(old)} and {', '.join(new)}); expected the same; "
            "next: evaluate both models with the same --tasks"
        )
    problems = [problem for name in shared for problem in _differences(old[name], new[name])]
    if problems:
        raise IncompatibleRuns("\n".join(problems))
    alone = [name for name in (*old, *new) if name not in shared]
    notes = (f"only in one of the folders, left out: {', '.join(alone)}",) if alone else ()
    measured = [_measurement(old[name], new[name]) for name in shared]
    compared = gating.compare_measurements(measured, policy.alpha, identical=False)
    verdict = gating.judge_measurements(measured, compared, policy, target=None, identical=False)
    return Judged(candidate.name, base.name, tuple(compared), verdict, policy, notes)


def read_folder(folder: Path) -> dict[str, Logged]:
    """Read the newest samples of every task below a folder, by the task's name.

    Raises:
        UserError: there is no such folder, it holds no samples, or a file is damaged.
    """
    newest: dict[str, tuple[str, Path]] = {}
    for path in sorted(folder.rglob("samples_*.jsonl")) if folder.is_dir() else ():
        if named := _SAMPLES.match(path.name):
            newest[named["task"]] = max(newest.get(named["task"], ("", path)), (named["date"], path))
    if not newest:
        found = "no samples_<task>_<date>.jsonl" if folder.is_dir() else "no such folder"
        step = "run lm_eval with --log_samples --output_path DIR"
        raise UserError(Problem(str(folder), found, "what lm-eval writes with --log_samples", step))
    return {task: _logged(task, path, _results(path, date)) for task, (date, path) in sorted(newest.items())}


def _logged(task: str, path: Path, results: Mapping[str, Any]) -> Logged:
    samples = _first_filter(path, list(_rows(path)))
    metric = _metric(path, next(iter(samples.values())))
    _refuse_unscored(path, samples, metric)
    direction = results.get("higher_is_better", {}).get(task, {}).get(metric)
    higher = bool(direction) if direction is not None else not any(word in metric for word in _LOWER)
    config = results.get("config", {})
    settings = {name: _first(results.get(name), config.get(name)) for name in _SETTINGS}
    settings["version"] = results.get("versions", {}).get(task)
    settings["num_fewshot"] = results.get("n-shot", {}).get(task)
    return Logged(task, metric, higher, samples, settings)


def _first_filter(path: Path, rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Keep each item once: with several filters an item stands once a filter, and the first one decides.

    Versions of lm-eval that do not name the filter write the filters one after the other.
    """
    kept = [row for row in rows if row.get("filter") == rows[0].get("filter")]
    counts = Counter(str(row["doc_id"]) for row in kept)
    if len(set(counts.values())) > 1:
        found = f"doc_id {counts.most_common(1)[0][0]} more often than others"
        raise UserError(Problem(str(path), found, "every item equally often", "evaluate again"))
    first = {str(row["doc_id"]): row for row in reversed(kept)}
    return dict(reversed(first.items()))


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    empty = True
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            row["doc_id"]
        except (ValueError, KeyError, TypeError) as error:
            found = f"a line that is no sample ({type(error).__name__})"
            raise UserError(Problem(f"{path}:{number}", found, "JSON with a doc_id")) from error
        empty = False
        yield row
    if empty:
        raise UserError(Problem(str(path), "no samples", "one line an item", "evaluate again"))


def _results(path: Path, date: str) -> dict[str, Any]:
    """Read the results file of the same evaluation; empty where it was not kept."""
    results = path.with_name(f"results_{date}.json")
    try:
        found = json.loads(results.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _metric(path: Path, row: Mapping[str, Any]) -> str:
    listed = row.get("metrics") or [
        k for k, v in row.items() if isinstance(v, int | float) and k not in ("doc_id", "metabench_idx")
    ]
    scored = [name for name in listed if isinstance(row.get(name), int | float)]
    if not scored:
        found = f"metrics without one number an item ({', '.join(map(str, listed)) or 'none'})"
        step = "leave the task out of both folders"
        raise UserError(Problem(str(path), found, "a metric such as acc or exact_match", step))
    return str(scored[0])


def _refuse_unscored(path: Path, samples: Mapping[str, Mapping[str, Any]], metric: str) -> None:
    """Refuse samples without a score: left out on one side only, they would move the other's mean."""
    scores = {item: row.get(metric) for item, row in samples.items()}
    bad = [item for item, x in scores.items() if not isinstance(x, int | float) or not isfinite(x)]
    if bad:
        named = ", ".join(bad[:5])
        found = f"{len(bad)} of {len(scores)} items without a number as {metric} (doc_id {named})"
        raise UserError(Problem(str(path), found, "a finite score of every item", "evaluate again"))


def _differences(old: Logged, new: Logged) -> list[str]:
    """Name what forbids comparing a task: settings, items, and the hashes of what was asked."""
    out = []
    for name in old.settings:
        a, b = old.settings[name], new.settings[name]
        if a is not None and b is not None and a != b:
            out.append(f"{old.task}: the folders differ in {name}: {a!r} and {b!r}")
    if old.metric != new.metric:
        out.append(f"{old.task}: the folders differ in the metric: {old.metric} and {new.metric}")
    missing = old.samples.keys() ^ new.samples.keys()
    if missing:
        shown = ", ".join(sorted(missing)[:5])
        out.append(f"{old.task}: {len(missing)} items are in one folder only ({shown}); use the same --limit")
    both = old.samples.keys() & new.samples.keys()
    for name in _HASHES:
        n = sum(old.samples[i].get(name) != new.samples[i].get(name) for i in both)
        if n:
            out.append(f"{old.task}: {name} differs on {n} of {len(both)} items; ask both models the same")
    return out


def _measurement(old: Logged, new: Logged) -> Measurement:
    name = re.sub(r"[^A-Za-z0-9_.\-]", "-", old.task)
    metric = mean_metric(old.metric, lambda output, example: None, old.higher_is_better, _bounds(old, new))
    # Kind "choice": whether an answer was unparsable or truncated is not in these files.
    task = Task(name=name, data=TaskData(), kind="choice", metrics=(old.metric,), chance=_chance(old))
    arms = (_as_rows(name, metric, arm) for arm in (old, new))
    return Measurement(task, "capability", "lm-eval", {metric.name: metric}, *arms)


def _bounds(*arms: Logged) -> tuple[float, float]:
    """Return [0, 1] where all scores lie there, else a range without upper end."""
    scores = [float(row[arm.metric]) for arm in arms for row in arm.samples.values()]
    return (0.0, 1.0) if min(scores) >= 0 and max(scores) <= 1 else (min(0.0, *scores), float("inf"))


def _chance(logged: Logged) -> float:
    """Return one over the mean number of choices; 0 where there is one response an item."""
    counts = [len(row.get("resps") or row.get("arguments") or ()) for row in logged.samples.values()]
    return 1 / fmean(counts) if counts and min(counts) > 1 else 0.0


def _as_rows(task: str, metric: Metric, logged: Logged) -> list[SampleResult]:
    return [
        SampleResult(
            task=task,
            split="test",
            example_id=item,
            position=at,
            status="ok",
            text="",
            prompt="",
            references=(),
            parts={metric.name: (float(row[metric.name]),)},
            cluster=_cluster(row),
            prompt_digest=str(row.get("prompt_hash", "")),
        )
        for at, (item, row) in enumerate(logged.samples.items())
    ]


def _cluster(row: Mapping[str, Any]) -> str:
    """Return what items about one text share; empty where an item stands alone."""
    doc = row.get("doc")
    shared = next((doc[key] for key in _SHARED_TEXTS if doc.get(key)), "") if isinstance(doc, dict) else ""
    return digest(str(shared)) if shared else ""


def _first(*values: Any) -> Any:
    return next((value for value in values if value not in (None, "")), None)
