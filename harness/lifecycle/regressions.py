"""Regressions pinned as tasks, and stored answers scored again for them.

Invariant: a pinned item keeps the wording, answer and settings of the task it came from; pinning it twice
changes nothing. The weights are the run's own. Re-scoring by metric loads no model and leaves nothing half
done; in fp32 only the precision of computing differs, which tells a lost item from one that rounding moved.
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness import config, store
from harness.analysis.estimators import Estimate
from harness.data import load_task
from harness.errors import IncompatibleRuns, Problem, did_you_mean, refuse
from harness.evaluation.candidates import base_weights
from harness.evaluation.rescoring import rescore_stored
from harness.evaluation.row_sets import suite_sets
from harness.evaluation.session import EngineSlot, Session
from harness.experiment import Reader, Study, ensure_weights, run_candidate, suite_arm
from harness.records import Example, Run, parse_json
from harness.spec import Recipe, Task, TaskData, is_path, metric_parts

SUITE = "regressions"
_SUFFIX = "-pinned"
_KEPT_BACK = {"name", "data", "fields", "limit", "margin"}  # of the task the item came from


def add_regressions(stored: Study, run: Run, items: Sequence[str]) -> tuple[Path, int]:
    """Pin items of a run's suites, written `task/item`; returns the suite's file and how many are new.

    Raises:
        UserError: an item is unknown, or its task cannot be pinned; all of them at once.
    """
    chosen = _find_items(stored, run, items)
    folder = stored.folder / "suites"
    (folder / SUITE).mkdir(parents=True, exist_ok=True)
    stored_suites = config.read_suites(folder) if (folder / f"{SUITE}.yaml").exists() else ()
    tasks = {task.name: task for suite in stored_suites if suite.name == SUITE for task in suite.tasks}
    added = 0
    for task, examples in chosen.values():
        rows_file = folder / SUITE / f"{task.name}.jsonl"
        rows = _read(rows_file)
        new = [e for e in examples if e.id not in {row["id"] for row in rows}]
        added += len(new)
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in (*rows, *map(_row, new))]
        rows_file.write_text("".join(lines), "utf-8")
        name, shots = f"{task.name}{_SUFFIX}", task.data.train if task.num_fewshot else None
        kept = {k: v for k, v in task.model_dump().items() if k not in _KEPT_BACK}
        kept |= {"name": name, "data": TaskData(train=shots, test=str(rows_file))}
        tasks[name] = Task(**{**kept, "description": f"Items of {task.name} that a release lost once."})
    path = folder / f"{SUITE}.yaml"
    lines = [f"  - {json.dumps(_plain(task, folder), ensure_ascii=False)}\n" for task in tasks.values()]
    path.write_text(f"name: {SUITE}\nrole: regression\ntasks:\n{''.join(lines)}", "utf-8")
    return path, added


def _find_items(stored: Study, run: Run, items: Iterable[str]) -> dict[str, tuple[Task, list[Example]]]:
    """Find each item in the data of its task, and refuse at once all that cannot be pinned."""
    tasks = {
        t.name: t for suite in stored.experiment.suites if suite.role != "regression" for t in suite.tasks
    }
    chosen: dict[str, tuple[Task, list[Example]]] = {}
    problems: list[Problem] = []
    for item in dict.fromkeys(items):
        name, slash, ident = item.partition("/")
        task = tasks.get(name)
        if not slash or task is None or f"{name}/test" not in run.rows:
            hint = did_you_mean(name, tasks) if tasks else "list a suite under suites:"
            problems.append(Problem("ITEM", repr(item), "task/item of a suite that the run answered", hint))
            continue
        if task.kind == "bits_per_byte":
            expected, step = "an item that is right or wrong, not a text", "pin an item of another task"
            problems.append(Problem("ITEM", repr(item), expected, step))
            continue
        known = {e.id: e for e in load_task(task, stored.experiment.seeds[0]).test}
        if ident not in known:
            problems.append(Problem("ITEM", repr(item), f"an item of {name}", did_you_mean(ident, known)))
        else:
            chosen.setdefault(name, (task, []))[1].append(known[ident])
    refuse(problems)
    return chosen


def _plain(task: Task, folder: Path) -> dict[str, Any]:
    """Write a task without its defaults, with paths relative to the suite's folder."""
    plain = task.model_dump(mode="json", exclude_defaults=True)
    plain["data"] = {
        name: os.path.relpath(path, folder) if Path(path).exists() else path
        for name, path in plain.get("data", {}).items()
    }
    metrics = list(task.metrics)
    for at, (prefix, path, key) in enumerate(map(metric_parts, metrics)):
        if is_path(path):  # also behind a prefix; a name stays
            relative = os.path.relpath(path, folder)
            metrics[at] = f"{prefix}{relative if relative.startswith('.') else f'./{relative}'}{key}"
    return {"name": plain.pop("name"), **plain, "metrics": metrics}


def _row(e: Example) -> dict[str, Any]:
    row: dict[str, Any] = {"id": e.id, "messages": list(e.messages), "references": list(e.references)}
    row |= {"choices": list(e.choices)} if e.choices else {}
    row |= {"constraints": [dict(c) for c in e.constraints]} if e.constraints else {}
    return row | {"cluster": e.cluster, **({"slice": e.slice} if e.slice else {})}


def _read(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return [parse_json(line) for line in lines if line.strip()]


def rescore_run(session: Session, run_before: Run) -> tuple[Run, dict[str, dict[str, Estimate]]]:
    """Score a run again, and on the suites its base and the champion; returns it with its scores by task.

    Raises:
        IncompatibleRuns: some of its rows answer another task, prompt or model than the file's now.
    """
    candidate = session.candidates.get(run_before.candidate)
    if candidate is None or Recipe.model_validate(run_before.recipe) != candidate.recipe:
        raise IncompatibleRuns(
            f"{run_before.run_id}: the recipe of {run_before.candidate} in the file differs; expected the "
            "one that the run was made with; next: harness compare"
        )
    again, lacking = run_candidate.rescore_run(session, candidate, run_before)
    if again is None:
        raise IncompatibleRuns(
            f"{run_before.run_id}: found no stored answers to {', '.join(lacking)} as prompted now; expected "
            "that only their scoring has changed; next: harness compare evaluates again"
        )
    gated_against = [base_weights(base) for base in candidate.bases]
    champion = store.read_champion(session.store.folder.parent, session.experiment.target.name)
    if champion is not None:
        gated_against.append(gated_against[0]._replace(digest=champion.weights_digest))
    for weights in gated_against:
        rescore_stored(session, suite_sets(session, weights))
    return again, Reader(session).scores(again)


def rescore_pinned(session: Session, run: Run) -> list[str]:
    """Answer the regression suites in fp32 with a run's weights; returns the tasks now stored so.

    Raises:
        HarnessError: the weights cannot be opened.
    """
    weights = ensure_weights(session, session.candidates[run.candidate], run.seed)
    exact = replace(
        session,
        machine=session.machine._replace(precision="fp32"),
        suites=tuple(m for m in session.suites if m.role == "regression"),
        slot=EngineSlot(),  # a base in fp32 must not answer for one in the run's precision
    )
    session.unload()
    return list(suite_arm(exact, weights, f"{run.candidate} in fp32"))
