"""Evaluation of any model, or a candidate's weights, on lm-eval tasks without an experiment's target.

Invariant: rows are stored and found like those of an experiment, so a second call computes nothing.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from harness import report, store
from harness.analysis import comparison
from harness.config import LoadedExperiment
from harness.errors import UserError, refuse
from harness.evaluation.candidates import base_weights, resolve_candidates
from harness.evaluation.costs import Work
from harness.evaluation.lm_eval import bridge
from harness.evaluation.row_sets import suite_sets, work_of
from harness.evaluation.session import Session
from harness.evaluation.stored_scores import suite_arm
from harness.experiment.candidate_weights import ensure_weights
from harness.experiment.preparation import Scope, join_lm_eval_task, prepare_session
from harness.formatting import pluralize, seconds
from harness.models import vllm
from harness.models.hardware import probe
from harness.models.hub import expect_unpacking_s, resolve, shape
from harness.progress import Progress
from harness.records import SampleResult
from harness.report import ScoreRow
from harness.spec import Engine, Experiment, Precision, Recipe, Suite, Task, VllmPolicy
from harness.store import Store
from harness.training import Weights

_SUITE = "lm-eval"


class Evaluation(NamedTuple):
    """Evaluation of one model: scores, the rows they come from, tasks, and notes."""

    model: str
    device: str
    precision: str
    engine: str
    scores: tuple[ScoreRow, ...]
    rows: dict[str, list[SampleResult]]
    found: dict[str, bridge.LmEvalTask]
    notes: tuple[str, ...]


class PreparedEvaluation(NamedTuple):
    """Evaluation that is ready to start."""

    session: Session
    name: str
    weights: Weights
    found: dict[str, bridge.LmEvalTask]

    @property
    def first_line(self) -> str:
        """Sentence on the tasks, the machine, and the estimated time from nothing."""
        jobs, machine = [s.job() for s in suite_sets(self.session, self.weights)], self.session.machine
        expected = seconds(self.session.seconds(sum(map(work_of, jobs), Work())))
        tasks, n = pluralize(len(jobs), "task"), pluralize(sum(len(job.examples) for job in jobs), "item")
        where = f"{machine.name}, {machine.precision}"
        return f"{self.name}: {tasks} of lm-eval, {n}, on {where}; about {expected} from nothing"


def tasks_of(
    names: Sequence[str], limit: int | None, num_fewshot: int | None, *, trust_remote_code: bool = False
) -> list[Task]:
    """Return the lm-eval tasks named on the command line."""
    if not names or len(set(names)) < len(names):
        found, expected = "no task" if not names else "a task twice", "names of lm-eval tasks, each once"
        raise UserError("--tasks", found, expected, "write -t piqa,arc_easy")
    settings = {"limit": limit, "num_fewshot": num_fewshot, "trust_remote_code": trust_remote_code}
    settings = {key: value for key, value in settings.items() if value is not None}
    return [Task.model_validate({"lm_eval": name, **settings}) for name in names]


def prepare_model(
    model: str,
    tasks: Sequence[Task],
    runs: Path,
    progress: Progress,
    *,
    precision: Precision = "auto",
    engine: Engine = "transformers",
) -> PreparedEvaluation:
    """Prepare a model and tasks without an experiment."""
    if engine == "vllm":
        refuse(vllm.problems(VllmPolicy()))
    lm_eval_tasks = bridge.load(tasks, bridge.datasets_folder(None), gated=False)
    # The first task stands in for the target; it is neither trained on nor evaluated twice.
    experiment = Experiment(
        name="eval",
        base_model=model,
        target=tasks[0],
        suites=(Suite(name=_SUITE, role="capability", tasks=tuple(tasks)),),
        candidates={"base": Recipe()},
        engine=engine,
    )
    measured = tuple(join_lm_eval_task(f, "capability", _SUITE) for f in lm_eval_tasks.values())
    with progress.stage(f"getting {model} ready, once", expect_unpacking_s(model)):
        source = resolve(model)
    machine, bases = probe("auto", precision, shape(source)), {model: source}
    candidates, at = resolve_candidates(experiment, bases), Store(runs)
    session = Session(experiment, at, source, machine, measured[0], measured, progress, bases, candidates)
    return PreparedEvaluation(session, model, base_weights(source), lm_eval_tasks)


def prepare_candidate(
    loaded: LoadedExperiment, name: str, tasks: Sequence[Task], progress: Progress
) -> PreparedEvaluation:
    """Prepare one candidate's weights, training them if missing, for other tasks than its suites'."""
    session = prepare_session(loaded, Scope(), progress)
    lm_eval_tasks = bridge.load(tasks, bridge.datasets_folder(session.experiment.datasets_dir), gated=False)
    session.begin(name, session.first_seed)
    weights = ensure_weights(session, session.candidates[name], session.first_seed)
    if weights.kind == "chat" or not weights.is_language_model:
        refused = f"{name}, {'asked by chat' if weights.is_language_model else 'a classifier'}"
        expected, step = "a language model, which tasks of lm-eval need", "name another candidate"
        raise UserError("harness eval", refused, expected, step)
    measured = tuple(join_lm_eval_task(f, "capability", _SUITE) for f in lm_eval_tasks.values())
    return PreparedEvaluation(replace(session, suites=measured), name, weights, lm_eval_tasks)


def evaluate(prepared: PreparedEvaluation) -> Evaluation:
    """Evaluate all items that are not stored yet, and estimate every score."""
    session = prepared.session
    store.begin(session.store, at_work := f"eval-{Path(prepared.name).name}")
    digests = suite_arm(session, prepared.weights, prepared.name)
    store.end(session.store, at_work)
    how, lm_eval_tasks = suite_sets(session, prepared.weights)[0].identity, prepared.found
    scores, notes, rows = list[ScoreRow](), list[str](), dict[str, list[SampleResult]]()
    for name, task in lm_eval_tasks.items():
        rows[name] = answered = store.read_rows(session.store, digests[name], len(task.items.test))
        scores += _scores(name, task, answered)
        notes += [f"{name}: {sentence}" for sentence in task.left_out]
        if errors := [row for row in answered if row.status == "error"]:
            counted = "score worst, or are left out where a metric has no bounds"
            notes.append(
                f"{name}: {len(errors)} of {len(answered)} items could not be evaluated and {counted}; the "
                f"first one is {errors[0].example_id}: {errors[0].error}"
            )
        if cut := sum(row.status == "truncated" for row in answered):
            max_new_tokens = task.task.max_new_tokens
            notes.append(f"{name}: {cut} of {len(answered)} answers were cut at {max_new_tokens} tokens")
    computed = session.machine.name, how.precision, how.engine
    return Evaluation(prepared.name, *computed, tuple(scores), rows, lm_eval_tasks, tuple(notes))


def write(evaluation: Evaluation, folder: Path, *, log_samples: bool) -> list[Path]:
    """Write `results.json`, and with `log_samples` a `samples_<task>.jsonl` per task in lm-eval's layout."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"results.json": json.dumps(to_json(evaluation), indent=2, ensure_ascii=False) + "\n"}
    samples: dict[str, dict[tuple[int, str], str]] = {}  # tasks also in a group are written once
    for task, rows in evaluation.rows.items() if log_samples else ():
        for sample in evaluation.found[task].samples(rows):
            lines = samples.setdefault(f"samples_{sample['slice'] or task}.jsonl", {})
            lines[sample["doc_id"], sample["filter"]] = json.dumps(sample, ensure_ascii=False) + "\n"
    texts |= {name: "".join(lines.values()) for name, lines in samples.items()}
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in texts]


def to_json(evaluation: Evaluation) -> dict[str, Any]:
    """Convert an evaluation to plain types: results by task and metric, under lm-eval's names."""
    results, higher = dict[str, dict[str, Any]](), dict[str, dict[str, bool]]()
    for s in evaluation.scores:
        results.setdefault(s.part or s.task, {})[s.metric] = report.to_plain(s.estimate)
        metric = evaluation.found[s.task].metrics[s.metric]
        higher.setdefault(s.part or s.task, {})[s.metric.partition(",")[0]] = metric.higher_is_better
    return {
        "model": evaluation.model,
        "device": evaluation.device,
        "precision": evaluation.precision,
        "engine": evaluation.engine,
        "results": results,
        "higher_is_better": higher,
        "versions": {s.part or s.task: evaluation.found[s.task].version for s in evaluation.scores},
        "n-shot": {s.part or s.task: s.num_fewshot for s in evaluation.scores},
        "notes": list(evaluation.notes),
    }


def _scores(name: str, lm_eval_task: bridge.LmEvalTask, rows: Sequence[SampleResult]) -> Iterator[ScoreRow]:
    # Groups also get a score for each of their tasks, as slices.
    for part in ("", *sorted({row.slice for row in rows if row.slice})):
        chosen = [row for row in rows if row.slice == part] if part else rows
        for metric in lm_eval_task.metrics.values():
            is_scored = any(row.parts[metric.name] is not None for row in chosen)
            estimate = comparison.estimate(metric, chosen) if is_scored else None
            yield ScoreRow(name, part, lm_eval_task.num_fewshot, metric.name, estimate)
