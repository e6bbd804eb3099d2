"""Commands that train, evaluate and ask candidates: compare, its workers, train, eval, ask.

Invariant: models load only inside a command. docs/internals.md lists the files that `compare` passes through.
"""

import os
import sys
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from harness.cli.app import (
    EXPERIMENT,
    app,
    print_document,
    print_json,
    print_report,
    print_result,
    print_scores,
    print_value,
    say,
    write_report,
)
from harness.cli.options import (
    RUNS,
    Argument,
    Candidates,
    ExperimentFile,
    Json,
    Option,
    Precision,
    RunsFolder,
    Verbose,
    verb,
)
from harness.errors import Problem, UserError, refuse
from harness.formatting import UNKNOWN, count, plain, seconds, usd

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from harness.evaluation.costs import Work
    from harness.experiment import PlannedGrades
    from harness.experiment.cost_estimates import Cost
    from harness.experiment.rescue import PreparedRescue
    from harness.report import ExperimentReport
    from harness.spec import GatePolicy


@verb(
    app,
    "--dry-run",
    "",
    "--candidates prompt,lora --seeds 0,1,2",
    "candidates.lora.params.r=8",
    heading=EXPERIMENT,
)
def compare(
    at: ExperimentFile,
    candidates: Candidates = None,
    limit: Annotated[
        int | None, Option("Test items a task; a smoke run.", short="-L", env=True, min=1)
    ] = None,
    quick: Annotated[bool, Option("A smoke run in minutes; its numbers are not evidence.", env=True)] = False,
    dry_run: Annotated[bool, Option("Print what would run, its tokens and its time, and stop.")] = False,
    gate: Annotated[bool, Option("Exit by the verdict of the recommended candidate.", env=True)] = False,
    seeds: Annotated[list[str] | None, Option("Train once for each of these seeds: 0,1,2.", env=True)] = None,
    yes: Annotated[bool, Option("Go on with more than 64 candidates.", short="-y", env=True)] = False,
    learning_curve: Annotated[bool, Option("Train the best one on parts of its rows.", env=True)] = False,
    fewer_items: Annotated[
        bool,
        Option(
            "Sample large tasks only until the verdicts are settled, or evaluate all items.",
            "--sequential/--all-items",
            env=True,
        ),
    ] = False,
    rescue: Annotated[bool, Option("Rescue the best fine-tune if it forgets too much.", env=True)] = False,
    strict: Annotated[bool, Option("Refuse if the items cannot show a margin.", env=True)] = False,
    executor: Annotated[str | None, Option("in_process, local, ray or slurm.", env=True)] = None,
    workers: Annotated[int | None, Option("Workers at once, at most.", env=True, min=1)] = None,
    threads: Annotated[int | None, Option("Threads of each worker.", env=True, min=1)] = None,
    address: Annotated[str | None, Option("Ray's cluster: auto, or a host and port.")] = None,
    precision: Precision = None,
    verbose: Verbose = False,
    as_json: Json = False,
) -> None:
    """Train, evaluate, compare, gate and decide: the main job.

    What is stored is not computed again; after an interrupt the same command goes on.
    """
    from harness import experiment
    from harness.cli.progress_bar import TerminalProgress
    from harness.experiment import Scope
    from harness.models.hardware import memory

    execution = {"executor": executor, "workers": workers, "threads": threads, "address": address}
    at = at.override(
        {"precision": precision, "seeds": f"[{','.join(seeds)}]" if seeds else None}
        | {f"execution.{name}": value for name, value in execution.items()}
    )
    loaded = at.load(candidates or [])
    experiment.refuse_many(loaded, yes=yes or dry_run)
    progress = TerminalProgress(shows_items=not as_json)
    if rescue and fewer_items:  # a rescue chooses on one half of all items, and judges on the other
        expected, step = "all items, in two halves", "--all-items"
        raise UserError("--rescue", "--sequential as well", expected, step)
    scope = Scope(limit, quick, fewer_items, dry_run)
    with progress.stage("reading rows and models"):
        session = experiment.prepare_session(loaded, scope, progress)
    ordered = experiment.in_order(session.candidates, loaded.selected)
    stored = experiment.find_stored_runs(session, ordered)
    if dry_run:
        placed = experiment.place_open(loaded, ordered, stored)
        refuse(experiment.sensitive_endpoints(session.experiment, placed))
    computes = dry_run or learning_curve or rescue or not experiment.are_all_done(stored)
    estimates, extra_work = experiment.Estimates(session), {}
    if learning_curve:
        extra_work["learning curve"] = experiment.plan_curve(session, loaded.selected)
    if rescue:
        extra_work["rescue, at most"] = estimates.largest_rescue(loaded.selected)
    work, missing = extra_work, extra_work
    if computes:
        plan = experiment.make_plan(session, ordered, stored, timed_again=not scope.smoke)
        work, missing = (estimates.work(plan, missing=part) | extra_work for part in (False, True))
    time_by_name, missing_by_name = (estimates.seconds(amounts) for amounts in (work, missing))
    missing_s = sum(missing_by_name.values())
    typed = at.command_line(candidates or [])
    warnings, advice, note = experiment.estimate_power(session.experiment, session.suites, typed)
    if strict and warnings:
        expected = "margins that the items at hand can show"
        raise UserError([Problem("--strict", warning, expected, advice) for warning in warnings])
    if fewer_items and computes:
        say(
            "fewer items: the plan is the most that candidates take; where a task is large enough to sample"
            " from, the base answers the sampled items again"
        )
    notes = experiment.list_plan_notes(session, loaded.selected, computes=computes, dry_run=dry_run)
    if note and not scope.smoke:  # the numbers of a smoke run are not evidence
        notes = [note, *notes]
    if dry_run:
        from harness.evaluation.costs import price_usd

        costs = estimates.costs(loaded.selected, memory(session.machine.device))
        grades = [*experiment.plan_grades(session, [cost.candidate for cost in costs])]
        hour_usd = session.experiment.decide.device_hour_usd
        usd_of = partial(price_usd, device=session.machine.device, device_hour_usd=hour_usd)
        _print_plan(costs, work, time_by_name, grades, usd_of, as_json)
        jobs = experiment.describe_workers(session, ordered, stored, scope)
        stored_note = experiment.describe_stored(session.unknown_bases(), stored, missing_s)
        say(*notes, stored_note, *filter(None, [jobs]))
        say("next: the same command without --dry-run runs it")
        return
    whole_s = sum(time_by_name.values()) if computes else None
    say(experiment.first_line(session.experiment, session.machine, len(loaded.selected), whole_s, missing_s))
    say(*notes)
    with progress.follow(missing_by_name):
        result = experiment.run_all(session, loaded, scope, learning_curve=learning_curve, stored_runs=stored)
    result = write_report(result, at, candidates or [], session)
    if rescue and not scope.smoke:
        from harness.experiment.rescue import prepare_from_report

        prepared = prepare_from_report(session, result)
        _print_with_rescue(prepared, result, loaded.folder / "reports", as_json)
    else:
        print_report(result, as_json, verbose)
    if rescue and scope.smoke:
        say("a smoke run is not evidence of what was forgotten, so nothing is rescued")
    if gate and scope.smoke:
        say("a smoke run is not evidence, so --gate ends as undecided (4); leave out --quick and --limit")
    raise typer.Exit(exit_code(result, session.experiment.gate, by_verdict=gate))


def _print_with_rescue(
    prepared: "PreparedRescue | None", experiment_report: "ExperimentReport", folder: Path, as_json: bool
) -> None:
    from harness import report
    from harness.cli.release import run_rescue
    from harness.experiment import rescue_trials

    if not as_json:
        print_report(experiment_report, False)
    rescued_one = run_rescue(prepared, folder) if prepared else None
    if as_json:
        plain = rescue_trials.to_json(rescued_one) if rescued_one else None
        print_json({**report.to_json(experiment_report), "rescue": plain})
    elif rescued_one:
        print()
        print_document(rescue_trials.rescue_document(rescued_one))
    if rescued_one is None:
        say("nothing to rescue: no fine-tune gains and fails the gate by what it forgot")


@verb(app, "lora", heading=EXPERIMENT)
def train(
    candidate: Annotated[str, Argument("A candidate of the experiment.")],
    at: ExperimentFile,
    precision: Precision = None,
    as_json: Json = False,
) -> None:
    """Train one candidate, or find its weights."""
    from harness.experiment import describe_rewards, ensure_weights

    session, loaded = at.override({"precision": precision}).open_session(candidate)
    candidates, seed = session.candidates, session.first_seed
    for name in loaded.selected:
        session.begin(name, seed)
    weights_by_name = {name: ensure_weights(session, candidates[name], seed) for name in loaded.selected}
    plain = {
        name: {"kind": w.kind, "digest": w.digest, "folder": str(w.folder or "")}
        | {"training": w.training.to_plain()}
        for name, w in weights_by_name.items()
    }
    print_value(plain, as_json)
    for name, w in weights_by_name.items():
        say(*describe_rewards(name, w.training))


@verb(app, "", "/shared/project/runs", heading=EXPERIMENT)
def worker(
    runs: Annotated[Path, Argument("Runs folder of a comparison that has workers.", "RUNS")] = Path("runs"),
    until_input_ends: Annotated[bool, Option("End as soon as standard input ends.")] = False,
) -> None:
    """Help a comparison: make steps of its plan until none is left.

    `harness compare --executor …` starts workers itself; others can join where the folder is seen.
    """
    from harness.experiment import step_worker

    if until_input_ends:
        threading.Thread(target=_end_with_input, daemon=True).start()
    if runs.name == step_worker.ASSIGNMENT:  # of the command that started this worker
        step_worker.work(runs)
    else:
        step_worker.work(step_worker.find_assignment(runs), reports=False)


def _end_with_input() -> None:
    """End this process when its standard input closes, because the process that started it has ended."""
    sys.stdin.buffer.read()
    os._exit(0)


def _print_plan(
    costs: "Sequence[Cost]",
    work: "dict[str, Work]",
    plan: dict[str, float],
    grades: "Sequence[PlannedGrades]",
    usd_of: "Callable[[float], float]",
    as_json: bool,
) -> None:
    from harness.report import ResultDocument, to_plain

    if as_json:
        cost_by_name = {cost.candidate: to_plain(cost) for cost in costs}
        times = {name: round(plan[name], 1) if name in plan else None for name in work}
        planned = {name: {**w._asdict(), "seconds": times[name]} for name, w in work.items()}
        judged = {f"{grade.metric} of {grade.task} by {grade.judge}": grade._asdict() for grade in grades}
        print_json({**{name: {**w, **cost_by_name.get(name, {})} for name, w in planned.items()}, **judged})
        return
    from harness.cli.setup import memory_texts
    from harness.evaluation.costs import Work
    from harness.report import Section

    memory_by_name = {cost.candidate: memory_texts(cost) for cost in costs}

    def row(label: str, work_of: "Work", took_s: float | None) -> list[str]:
        tokens = map(count, (work_of.trained, work_of.read, work_of.generated))
        price = None if took_s is None else usd_of(took_s)
        return [label, *tokens, seconds(took_s), usd(price), *memory_by_name.get(label, (UNKNOWN, UNKNOWN))]

    rows = [row(label, work_of, plan.get(label)) for label, work_of in work.items()]
    total = row("all, from nothing", sum(work.values(), Work()), sum(plan.values()))
    lead = (
        "device time; what several candidates share (the same weights and their suites) is counted once, with"
        " the one that is made first; memory estimated / measured"
    )
    knobs = [f"{cost.candidate} does not fit; try {cost.knob}" for cost in costs if cost.knob]
    columns = ("candidate", "trained", "read", "generated", "about", "cost USD", "memory GiB", "fits")
    section = Section(columns=columns, rows=[*rows, [*total[:-2], "", ""]], lead=lead, notes=knobs)
    print_document(ResultDocument("", [section], ""))
    for grade in grades:
        price = "" if grade.cost_usd is None else f", {usd(grade.cost_usd)} USD"
        grades_text = f"{grade.metric}: at most {count(grade.grades)} grades of {grade.task} by {grade.judge}"
        say(f"{grades_text}, about {count(grade.read)} tokens read{price}")
    say("nothing was run; the tokens are estimated from the length of the texts, generated ones at most")


def exit_code(experiment_report: "ExperimentReport", policy: "GatePolicy", *, by_verdict: bool) -> int:
    """Return 1 if a candidate failed, else with `by_verdict` the code of the recommended one's verdict.

    A smoke run is not evidence, so its verdict is always undecided.
    """
    from harness.analysis import gate_verdict

    if any(f.state == "failed" for f in experiment_report.facts):
        return 1
    if not by_verdict:
        return 0
    if experiment_report.smoke:
        return 4
    chosen = experiment_report.decision.candidate if experiment_report.decision else None
    verdict = next((f.verdict for f in experiment_report.facts if f.name == chosen), None)
    if verdict is None:
        # A recommended classifier has no capability to lose; no recommendation at all is undecided.
        return 0 if chosen else 4
    return gate_verdict.exit_code(verdict, policy)


@verb(app, "lora", "smollm2-135m -t piqa,arc_easy -L 300", name="eval", heading=EXPERIMENT)
def evaluate(
    candidate: Annotated[str, Argument("A candidate of the experiment; with --tasks also any model.")],
    at: ExperimentFile,
    tasks: Annotated[list[str] | None, Option("Tasks of lm-eval: a,b.", short="-t", env=True)] = None,
    limit: Annotated[int | None, Option("Items of each task of --tasks, at most.", short="-L", min=1)] = None,
    num_fewshot: Annotated[int | None, Option("Few-shot examples, at most.", short="-f", min=0)] = None,
    output_path: Annotated[Path | None, Option("A folder to write results.json to.", short="-o")] = None,
    log_samples: Annotated[bool, Option("Write every item's row to the folder as well.", short="-s")] = False,
    trust_remote_code: Annotated[bool, Option("Let data sets run code of their own.")] = False,
    engine: Annotated[Literal["transformers", "vllm"] | None, Option("Engine for --tasks.")] = None,
    precision: Precision = None,
    runs: RunsFolder = RUNS,
    as_json: Json = False,
) -> None:
    """Evaluate one candidate, or any model on tasks of lm-eval.

    Without --tasks a candidate answers the target and all suites of the experiment.
    """
    if tasks and log_samples and output_path is None:
        found = "--log-samples without a folder"
        raise UserError("harness eval", found, "where to write the rows", "add -o FOLDER")
    if tasks:
        from harness.cli.progress_bar import TerminalProgress
        from harness.experiment import standalone
        from harness.models.hub import NAMES
        from harness.report import ResultDocument, score_section

        names = [name.strip() for text in tasks for name in text.split(",") if name.strip()]
        evaluated = standalone.tasks_of(names, limit, num_fewshot, trust_remote_code=trust_remote_code)
        options = (("engine", engine), ("precision", precision))
        computing: dict[str, Any] = {key: str(value) for key, value in options if value}
        progress = TerminalProgress()
        is_model = candidate in NAMES or "/" in candidate or Path(candidate).expanduser().is_dir()
        loaded = at.override(computing).load() if at.config.is_file() and not is_model else None
        if loaded and candidate in loaded.experiment.candidates:
            prepared = standalone.prepare_candidate(loaded, candidate, evaluated, progress)
        elif at.settings:
            found = f"{at.settings[0]}, and a model that is not a candidate of {at.config}"
            expected = "overrides for a candidate's experiment only"
            raise UserError("harness eval", found, expected, "leave it out, or use --precision, --engine")
        else:
            prepared = standalone.prepare_model(candidate, evaluated, runs, progress, **computing)
        say(prepared.first_line)
        scores = standalone.evaluate(prepared)
        written = standalone.write(scores, output_path, log_samples=log_samples) if output_path else ()
        say(*(f"wrote {path}" for path in written), *scores.notes)
        document = ResultDocument("", [score_section(scores.scores)], "")
        print_result(standalone.to_json(scores), document, as_json)
        return
    given_options: dict[str, object] = {"--limit": limit, "--num-fewshot": num_fewshot}
    given_options |= {"--output-path": output_path, "--log-samples": log_samples, "--engine": engine}
    if wrong := [name for name, value in given_options.items() if value]:
        found, expected = f"{', '.join(wrong)} without --tasks", "the tasks of lm-eval it is for"
        raise UserError("harness eval", found, expected, "add -t piqa,arc_easy")
    at = at.override({"precision": precision})
    from harness.experiment import Reader
    from harness.experiment.run_candidate import make_run

    session, loaded = at.open_session(candidate)
    scores_by_candidate = {}
    for name in loaded.selected:
        run = make_run(session, session.candidates[name], session.first_seed)
        scores_by_candidate[name] = Reader(session.store, session.tasks).scores(run)
    print_scores(scores_by_candidate, as_json)


@verb(app, 'lora "Where is my parcel?"', "prompt --item support-012", name="ask", heading=EXPERIMENT)
def ask_one(
    candidate: Annotated[str, Argument("A candidate of the experiment.")],
    text: Annotated[str, Argument("A question, as a row of the target would ask it.")] = "",
    *,
    item: Annotated[str, Option("An item of any task by its id, or TASK/ID, instead of a text.")] = "",
    at: ExperimentFile,
    as_json: Json = False,
) -> None:
    """Ask one question, and show the prompt as it is sent.

    Its weights have to be stored; nothing is trained, and nothing is kept.
    """
    if bool(text) == bool(item):
        found = "a text and --item" if text else "neither a text nor --item"
        step = f'harness ask {candidate} "a question", or harness ask {candidate} --item ID'
        raise UserError("harness ask", found, "one of the two", step)
    from harness import experiment
    from harness.report import to_plain
    from harness.report.escape import clean_lines

    session, _ = at.open_candidate(candidate, "harness ask")
    answer = experiment.ask(session, candidate, text, item)
    prompt, row = answer.prompt, answer.row
    lines = [
        f"prompt, {count(prompt.n_tokens)} tokens:",
        clean_lines(prompt.text),
        f"answer, {row.status}, {count(row.n_output_tokens)} tokens, {seconds(row.compute_s)}:",
        clean_lines(row.text or row.error),
    ]
    if answer.is_item:
        lines.append(f"reference: {clean_lines(' | '.join(row.references[:3]))}")
        for metric, parts in row.parts.items():
            lines.append(f"{metric}: {', '.join(map(plain, parts)) if parts else 'not scored'}")
    print_result(to_plain(answer), lines, as_json)
