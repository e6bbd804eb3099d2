"""Release decisions on stored results: gate, promote, pin; and on results made elsewhere.

Invariant: verdicts come from stored rows alone, so they take a second and no torch. A pinned regression keeps
the wording, answer and settings of its task; pinning it twice changes nothing.
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from harness import config, data, experiment, report, store
from harness.analysis.gate_rules_on_answers import cumulative_of
from harness.analysis.gate_verdict import GateResult, combine_exit_codes, exit_code, worst_result
from harness.analysis.margins import is_relative
from harness.analysis.run_diff import differences
from harness.analysis.significance import list_spare_items
from harness.analysis.verdict import Verdict
from harness.config import CommandLine
from harness.data import load_task
from harness.errors import HarnessError, IncompatibleRuns, Problem, UserError, did_you_mean, one_line, refuse
from harness.experiment.study import Study, is_target_only, load_study
from harness.lifecycle.gate_of_logs import gate_folders
from harness.lifecycle.gate_of_runs import (
    best_run,
    candidate_runs,
    count_members,
    find_run,
    is_sampled,
    judge_run,
    select_seed,
)
from harness.lifecycle.promotion import promote
from harness.progress import Progress, SilentProgress
from harness.records import Example, Run, parse_json
from harness.report import Command, family_text, gate_document, gate_json, junit, markdown
from harness.spec import Task, TaskData, is_path, metric_parts
from harness.store import Champion


def gate(
    path: Path,
    candidate: str,
    overrides: Sequence[str] = (),
    *,
    baseline: str | None = None,
    base: Path | None = None,
    seed: int | None = None,
) -> list[GateResult]:
    """Judge a candidate's stored runs, or with `base` two models' logs of lm-eval or inspect.

    `candidate` is a candidate's name or a run's id. All its seeds are judged, or only `seed`, against the
    `baseline`: by default the champion if there is one, else the base.

    Raises:
        UserError: an option, a file or a name cannot be used.
        IncompatibleRuns: a run or the baseline is missing, the arms must not be compared, or a task's
            files have changed.
    """
    if not candidate:
        step = "--base DIR --candidate DIR"
        if base is None and (candidates := config.load(path, overrides).experiment.candidates):
            step = f"--candidate NAME, {did_you_mean('', candidates)}; or {step}"
        raise UserError("--candidate", "none", "what to judge", step)
    if base is not None and baseline is not None:
        raise UserError(phrase_with_base("--baseline"))
    if base is not None:
        return [gate_folders(base, Path(candidate), config.gate_policy(overrides))]
    if baseline not in (None, "base", "champion"):
        step = did_you_mean(baseline, ("base", "champion"))
        raise UserError("--baseline", repr(baseline), "base or champion", step)
    stored = load_study(config.load(path, overrides))
    target = stored.experiment.target.name
    champion = store.read_champion(stored.folder, target)
    if baseline == "champion" and champion is None:
        found = f"none in {stored.folder / 'baselines'}"
        step = f"{stored.typed.command('promote', 'RUN')}, or --baseline base"
        raise IncompatibleRuns(f"champion of {target}", found, "a promoted run", step)
    runs = candidate_runs(stored, candidate, sampled=True)
    if any(is_target_only(run.method, run.recipe) for run in runs):
        expected, step = "a candidate that is judged", "name another, or leave role out of its recipe"
        raise UserError(candidate, "a baseline, measured on the target alone", expected, step)
    against = None if baseline == "base" else champion
    return [judge_run(stored, run, against) for run in select_seed(runs, candidate, seed)]


def gate_candidate(
    path: str | Path = "harness.yaml",
    overrides: Sequence[str] = (),
    *,
    candidate: str,
    seed: int | None = None,
    baseline: Literal["base", "champion"] | None = None,
) -> Verdict:
    """Return the verdict that sets the exit code of `harness gate`; nothing is computed.

    The stored runs of a candidate, or one run by its id, are judged against the `baseline`: by default the
    champion if there is one, else the base. The worst verdict of several seeds is returned, or that of
    `seed`.

    Raises:
        UserError: with every problem of the files at once, or there is no such candidate.
        IncompatibleRuns: a run or the baseline is missing, or the arms must not be compared.
    """
    return worst_result(gate(Path(path), candidate, overrides, baseline=baseline, seed=seed)).verdict


def advise_more_items(
    path: Path,
    judged: Sequence[GateResult],
    overrides: Sequence[str],
    typed: CommandLine,
    judging: Sequence[str],
) -> Command:
    """Describe how to settle open verdicts; `judging` is the command that would judge by another margin."""
    written, catalogue = experiment.find_lm_eval_tasks(config.load(path, overrides).experiment)

    def count_held(task: Task) -> int:
        if task.lm_eval:
            return catalogue[task.name].n_documents
        return len(data.load_task(task, written.seeds[0]).evaluated["test"])

    return report.advise_more_items(
        [result.verdict for result in judged],
        list_spare_items(written, (t for result in judged for t in result.tasks), count_held),
        typed,
        relative=is_relative(written.gate.macro),
        judging=judging,
    )


def phrase_with_base(option: str) -> Problem:
    """Describe an option for stored runs that was given with --base."""
    found = f"{option} as well, which is for stored runs"
    step = f"leave out {option} or --base"
    return Problem("--base", found, "two folders and the gate's settings alone", step)


def promote_named(
    path: Path,
    name: str,
    overrides: Sequence[str] = (),
    *,
    despite: str = "",
    by: str = "",
    progress: Progress | None = None,
) -> tuple[Path, Champion]:
    """Promote a run, or the seed of a candidate that is best on validation, if the gate passes it.

    `despite` is the reason to promote it although the gate does not pass it; `by` is the promoting person. If
    the gate passes a run of `--sequential`, its weights answer whole tasks, the run of these is judged again,
    and that one becomes the champion.
    """
    loaded = config.load(path, overrides)
    stored = load_study(loaded)
    run = best_run(stored, candidate_runs(stored, name, sampled=True))
    if is_sampled(stored.experiment, run):
        _judge_or_explain(stored, run, None, despite)
        session = experiment.prepare_session(loaded, experiment.Scope(), progress or SilentProgress())
        run = experiment.answer_all_items(session, run)
    with store.hold_champions(stored.store):
        stored = load_study(loaded)
        champion = store.read_champion(stored.folder, stored.experiment.target.name)
        judged = _judge_or_explain(stored, run, champion, despite)
        if isinstance(judged, str):
            return promote(stored, run, judged, despite, by=by)
        rule = cumulative_of(judged.verdict)
        if rule and rule.outcome == "skipped" and not despite:
            step = "--force --reason REASON, which keeps the reason"
            if rule.numbers.get("items_needed"):
                undecided = replace(judged.verdict, rules=(replace(rule, outcome="inconclusive"),))
                open_ = [replace(judged, verdict=undecided)]
                words = ["promote", run.candidate]
                step = f"{advise_more_items(path, open_, overrides, stored.typed, words).text}; or {step}"
            loss = f"a loss against the first base that is not ruled out ({rule.sentence})"
            raise UserError(f"promote {run.run_id}", loss, "less than gate.cumulative shown", step)
        return promote(stored, run, judged.verdict, despite, by=by)


def list_failed_exports(path: Path, run_id: str, overrides: Sequence[str] = ()) -> list[str]:
    """List the artefacts of a run that do not pass the gate, with their verdicts."""
    stored = load_study(config.load(path, overrides))
    runs = store.list_runs(stored.store, stored.experiment.name)
    export_runs = {run.candidate: run for run in runs if run.parity.get("own_run") == run_id}
    verdicts = {name: judge_run(stored, run, None).verdict for name, run in export_runs.items()}
    return [f"its export {name}: {v.sentence}" for name, v in verdicts.items() if v.outcome != "pass"]


def family_note(path: Path, champion: Champion, overrides: Sequence[str] = ()) -> str:
    """Describe how often one of a champion's competing fine-tunes passes by chance."""
    written = config.load(path, overrides).experiment
    return family_text(count_members(written, champion.candidate), written.gate.alpha)


def _judge_or_explain(stored: Study, run: Run, champion: Champion | None, despite: str) -> GateResult | str:
    """Return the gate's result on a run, or why it cannot judge it; anything but a pass needs a reason."""
    try:
        judged = judge_run(stored, run, champion)
    except HarnessError as error:
        if not despite:
            raise
        return f"not judged: {one_line(error).partition('; next:')[0]}"
    if judged.verdict.outcome != "pass" and not despite:
        found = f"a verdict that is not a pass against {judged.baseline} ({judged.verdict.sentence})"
        step = "--force --reason REASON promotes it anyway, and keeps the reason"
        raise UserError(f"promote {run.run_id}", found, "a run that the gate passes", step)
    return judged


def write(judged: Sequence[GateResult], junit_file: Path | None, summary: str | None) -> None:
    """Write JUnit XML to a named file, and append to the summary page that CI names."""
    if junit_file is not None:
        junit_file.parent.mkdir(parents=True, exist_ok=True)
        stops = [(j.candidate, j.verdict, exit_code(j.verdict, j.policy) != 0) for j in judged]
        junit_file.write_text(junit(stops, "harness gate"), "utf-8")
    if summary:
        with Path(summary).open("a", encoding="utf-8") as page:
            page.writelines(f"{markdown(gate_document(result), 2)}\n" for result in judged)


SUITE = "regressions"
_SUFFIX = "-pinned"
_KEPT_BACK = {"name", "data", "fields", "limit", "margin"}  # keys of the item's task that are not copied


def pin(path: Path, name: str, items: Sequence[str]) -> tuple[Path, int, bool]:
    """Pin items of a run's suites, given as `task/item`.

    Returns the suite's file, the number of new items, and whether the experiment lists the suite.
    """
    stored = load_study(config.load(path))
    run = candidate_runs(stored, name)[0]
    tasks = {t.name: t for s in stored.experiment.suites if s.role != "regression" for t in s.tasks}
    chosen: dict[str, tuple[Task, list[Example]]] = {}
    problems: list[Problem] = []
    for item in dict.fromkeys(items):
        name, slash, ident = item.partition("/")
        listed_task = tasks.get(name)
        if not slash or listed_task is None or f"{name}/test" not in run.rows:
            hint = did_you_mean(name, tasks) if tasks else "list a suite under suites:"
            problems.append(Problem("ITEM", repr(item), "task/item of a suite that the run answered", hint))
            continue
        if listed_task.kind == "bits_per_byte":
            expected, step = "an item that is right or wrong, not a text", "pin an item of another task"
            problems.append(Problem("ITEM", repr(item), expected, step))
            continue
        items_of_task = {e.id: e for e in load_task(listed_task, stored.experiment.seeds[0]).test}
        if ident not in items_of_task:
            hint = did_you_mean(ident, items_of_task)
            problems.append(Problem("ITEM", repr(item), f"an item of {name}", hint))
        else:
            chosen.setdefault(name, (listed_task, []))[1].append(items_of_task[ident])
    refuse(problems)
    folder = stored.folder / "suites"
    (folder / SUITE).mkdir(parents=True, exist_ok=True)
    stored_suites = config.read_suites(folder) if (folder / f"{SUITE}.yaml").exists() else ()
    tasks = {task.name: task for suite in stored_suites if suite.name == SUITE for task in suite.tasks}
    added = 0
    for task, examples in chosen.values():
        rows_file = folder / SUITE / f"{task.name}.jsonl"
        lines = rows_file.read_text("utf-8").splitlines() if rows_file.exists() else []
        rows = [parse_json(line) for line in lines if line.strip()]
        row_ids = {row["id"] for row in rows}
        for e in (e for e in examples if e.id not in row_ids):
            row: dict[str, Any] = {"id": e.id, "messages": list(e.messages), "references": list(e.references)}
            row |= {"choices": list(e.choices)} if e.choices else {}
            row |= {"constraints": [dict(c) for c in e.constraints]} if e.constraints else {}
            rows.append(row | {"cluster": e.cluster, **({"slice": e.slice} if e.slice else {})})
            added += 1
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        rows_file.write_text("".join(lines), "utf-8")
        name, shots = f"{task.name}{_SUFFIX}", task.data.train if task.num_fewshot else None
        fields = {k: v for k, v in task.model_dump().items() if k not in _KEPT_BACK}
        fields |= {"name": name, "data": TaskData(train=shots, test=str(rows_file))}
        tasks[name] = Task(**{**fields, "description": f"Items of {task.name} that a release lost once."})
    file = folder / f"{SUITE}.yaml"
    lines = [f"  - {json.dumps(_plain(task, folder), ensure_ascii=False)}\n" for task in tasks.values()]
    file.write_text(f"name: {SUITE}\nrole: regression\ntasks:\n{''.join(lines)}", "utf-8")
    return file, added, any(suite.name == SUITE for suite in stored.experiment.suites)


def _plain(task: Task, folder: Path) -> dict[str, Any]:
    plain = task.model_dump(mode="json", exclude_defaults=True)
    plain["data"] = {
        name: os.path.relpath(path, folder) if Path(path).exists() else path
        for name, path in plain.get("data", {}).items()
    }
    metrics = list(task.metrics)
    for i, (prefix, path, key) in enumerate(map(metric_parts, metrics)):
        if is_path(path):  # also after a prefix; names stay
            relative = os.path.relpath(path, folder)
            metrics[i] = f"{prefix}{relative if relative.startswith('.') else f'./{relative}'}{key}"
    return {"name": plain.pop("name"), **plain, "metrics": metrics}
