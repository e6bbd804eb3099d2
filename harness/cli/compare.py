"""Commands that compute: init, compare, train, eval.

Invariant: models load only inside a command.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli.app import (
    Candidates,
    Config,
    Json,
    Overrides,
    Precision,
    RunsFolder,
    app,
    config_option,
    open_session,
    print_document,
    print_json,
    print_report,
    print_scores,
    print_value,
    say,
    with_precision,
    write_report,
)
from harness.errors import Problem, UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.evaluation.costs import Work
    from harness.evaluation.session import Session
    from harness.experiment.standalone import Prepared
    from harness.report import ExperimentReport
    from harness.spec import GatePolicy, Task


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write.")] = Path(),
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            envvar="HARNESS_DATA",
            help="Your rows: a file, or hub:owner/name. Without it an example to edit is written.",
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option("--task", help="labels, question, preference or text, where the guess is wrong."),
    ] = None,
    base_model: Annotated[
        str,
        typer.Option(
            "--base-model", envvar="HARNESS_BASE_MODEL", help="A hub id, a folder, or the embedded one."
        ),
    ] = "smollm2-135m",
    pairs: Annotated[
        str | None, typer.Option("--pairs", envvar="HARNESS_PAIRS", help="A file of preference pairs.")
    ] = None,
    documents: Annotated[
        str | None,
        typer.Option("--documents", envvar="HARNESS_DOCUMENTS", help="A file of documents to retrieve from."),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="The column that asks, or a template over columns.")
    ] = None,
    reference: Annotated[
        str | None, typer.Option("--reference", help="The column that answers, or a template.")
    ] = None,
    minutes: Annotated[
        float,
        typer.Option(
            "--minutes",
            envvar="HARNESS_MINUTES",
            min=0.1,
            help="Bound of what compare is estimated to take here; rows and sweep are cut to it.",
        ),
    ] = 20.0,
    as_json: Json = False,
) -> None:
    """Look at your rows and write a folder in which compare runs as it is."""
    from harness.experiment import scaffold

    kind = scaffold.kind_named(task)
    rows = data or str(scaffold.write_example(folder))
    request = scaffold.Request(folder, rows, base_model, pairs, documents, prompt, reference, kind, minutes)
    proposal = scaffold.propose(request)
    written = [*([] if data else [rows]), *map(str, scaffold.write(proposal))]
    for line in proposal.warnings:
        say(line)
    if as_json:
        facts = {
            "task": proposal.kind,
            "metrics": proposal.task.metrics,
            "candidates": list(proposal.candidates),
        }
        print_json({**facts, "said": proposal.said, "files": written})
        return
    for line in proposal.said:
        print(line)
    print(f"wrote {' and '.join(written)}")
    config = config_option(folder / "harness.yaml")
    print(f"next: harness compare{config} --dry-run says what would run; without it, it runs")


@app.command()
def compare(
    overrides: Overrides = None,
    config: Config = Path("harness.yaml"),
    candidates: Candidates = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            "-L",
            envvar="HARNESS_LIMIT",
            min=1,
            help="At most so many test items of each task; a smoke run, no evidence.",
        ),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", envvar="HARNESS_QUICK", help="A smoke run in minutes; its numbers are no evidence."
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would run, its tokens and its time.")
    ] = False,
    gate: Annotated[
        bool,
        typer.Option(
            "--gate", envvar="HARNESS_GATE", help="Exit by the verdict of the recommended candidate."
        ),
    ] = False,
    seeds: Annotated[
        list[str] | None,
        typer.Option("--seeds", envvar="HARNESS_SEEDS", help="Train with each of these: 0,1,2."),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", envvar="HARNESS_YES", help="Go on with more than 64 candidates.")
    ] = False,
    learning_curve: Annotated[
        bool,
        typer.Option(
            "--learning-curve",
            envvar="HARNESS_LEARNING_CURVE",
            help="Train the best fine-tune on 1/8, 1/4 and 1/2 of its data too.",
        ),
    ] = False,
    fewer_items: Annotated[
        bool,
        typer.Option(
            "--sequential/--all-items",
            envvar="HARNESS_SEQUENTIAL",
            help="Ask of large tasks the items that the verdicts need, or all of them.",
        ),
    ] = False,
    rescue: Annotated[
        bool,
        typer.Option(
            "--rescue",
            envvar="HARNESS_RESCUE",
            help="Where the best fine-tune gains and forgets too much, try versions that keep more.",
        ),
    ] = False,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict", envvar="HARNESS_STRICT", help="Refuse margins that the items probably cannot show."
        ),
    ] = False,
    precision: Precision = None,
    as_json: Json = False,
) -> None:
    """Train, evaluate, compare, gate and decide: every candidate of the experiment."""
    from harness import config as configuration
    from harness import experiment
    from harness.cli.progress_bar import TerminalProgress
    from harness.experiment import Scope

    settings = with_precision(overrides, precision)
    settings += [f"seeds=[{','.join(seeds)}]"] if seeds else []
    loaded = configuration.load(config, settings, candidates or [])
    experiment.refuse_many(loaded, yes=yes or dry_run)
    progress = TerminalProgress()
    _refuse_rescue_of_few(rescue, fewer_items)
    scope = Scope(limit, quick, fewer_items, dry_run)
    session = experiment.prepare_session(loaded, scope, progress)
    stored = experiment.look_up(session, loaded.selected)
    computes = dry_run or learning_curve or rescue or not experiment.all_done(stored)
    work = _estimate_work(session, loaded.selected, learning_curve, rescue) if computes else {}
    plan = experiment.seconds_planned(session, work)
    warnings = experiment.warnings_before(session)
    if strict:
        _refuse_margins(warnings)
    if fewer_items and computes:
        say(
            "fewer items: the candidates take at most what is planned; where a task is large enough to draw"
            " from, the base answers what is sampled again"
        )
    if dry_run:
        _print_plan(session, loaded.selected, work, plan, as_json)
        say(experiment.stored_sentence(session, stored))
        return
    say(experiment.first_line(session, len(loaded.selected), sum(plan.values()) if computes else None))
    tasks = [measured.task for measured in (session.target, *session.suites)]
    for line in [*brief_warnings(warnings), *metric_warnings(tasks), *session.target.items.notes]:
        say(line)
    with progress.following(plan):
        found = experiment.run_all(
            session,
            loaded,
            smoke=scope.smoke,
            learning_curve=learning_curve,
            fewer_items=fewer_items,
            found=stored,
        )
    found = write_report(found, config, settings, candidates or [])
    if rescue and scope.smoke:
        say("a smoke run is no evidence of what was forgotten, so nothing is rescued")
    if rescue and not scope.smoke:
        _print_with_rescue(session, found, loaded.folder / "reports", as_json)
    else:
        print_report(found, as_json)
    raise typer.Exit(exit_code(found, session.experiment.gate, by_verdict=gate))


def _refuse_rescue_of_few(rescue: bool, fewer_items: bool) -> None:
    """Refuse a rescue on a part of the items: it chooses on one half of them all, and judges on the other."""
    if rescue and fewer_items:
        expected, step = "all items, in two halves", "--all-items"
        raise UserError(Problem("--rescue", "--sequential as well", expected, step))


def _estimate_work(
    session: "Session", selected: "Sequence[str]", learning_curve: bool, rescue: bool
) -> "dict[str, Work]":
    """Estimate what the candidates take, and what is wanted beside them."""
    from harness import experiment
    from harness.rescue import largest_work

    work = experiment.estimate_work(session, selected)
    if learning_curve:
        experiment.refuse_curve(session, selected)
        work["learning curve"] = experiment.estimate_curve_work(session, selected)
    if rescue:
        work["rescue, at most"] = largest_work(session, selected)
    return work


def brief_warnings(warnings: "Sequence[str]") -> list[str]:
    """Say in one line what the items probably cannot show: the first margin, and how many there are."""
    if len(warnings) < 2:
        return list(warnings)
    return [f"power: {warnings[0]} (and {len(warnings) - 1} more margins; --strict lists them all)"]


_MOST_METRICS = 5  # of a task that anybody reads


def metric_warnings(tasks: "Sequence[Task]") -> list[str]:
    """Warn of tasks that show more metrics than anybody reads, with the way to see them when wanted."""
    return [
        f"{task.name}: {len(task.metrics)} metrics are shown, and more than {_MOST_METRICS} are seldom read"
        f" ({task.primary_metric} decides); shorten metrics:, and to show another one again add it there:"
        " stored answers are scored without the model"
        for task in tasks
        if len(task.metrics) > _MOST_METRICS
    ]


def _refuse_margins(warnings: "Sequence[str]") -> None:
    """Refuse what the items probably cannot show."""
    if warnings:
        expected, step = "margins that the items at hand can show", "more items or wider margins"
        raise UserError([Problem("--strict", warning, expected, step) for warning in warnings])


def _print_with_rescue(session: "Session", found: "ExperimentReport", folder: Path, as_json: bool) -> None:
    """Print a report and the rescue of its best fine-tune; JSON holds both in one value."""
    from harness import report
    from harness import rescue as rescuing
    from harness.cli.rescue import run_rescue

    prepared = rescuing.prepare_from_report(session, found)
    if not as_json:
        print_report(found, False)
    rescued_one = run_rescue(prepared, folder) if prepared else None
    if as_json:
        plain = rescuing.to_json(rescued_one) if rescued_one else None
        print_json({**report.to_json(found), "rescue": plain})
    elif rescued_one:
        print()
        print_document(rescuing.rescue_document(rescued_one))
    if rescued_one is None:
        say("nothing to rescue: no fine-tune gains and fails the gate by what it forgot")


@app.command()
def train(
    candidate: Annotated[str, typer.Argument(help="A candidate of the experiment.")],
    overrides: Overrides = None,
    config: Config = Path("harness.yaml"),
    precision: Precision = None,
    as_json: Json = False,
) -> None:
    """Make the weights of one candidate, or find them already made."""
    from harness.experiment.run_candidate import begin, ensure_weights

    session, loaded = open_session(config, with_precision(overrides, precision), candidate)
    candidates, seed = session.candidates, session.experiment.seeds[0]
    for name in loaded.selected:
        begin(session, name, seed)
    made = {name: ensure_weights(session, candidates[name], seed) for name in loaded.selected}
    print_value(
        {
            name: {"kind": w.kind, "digest": w.digest, "folder": str(w.folder or "")}
            | {"training": w.training.stored()}
            for name, w in made.items()
        },
        as_json,
    )


@app.command("eval")
def evaluate(
    candidate: Annotated[
        str, typer.Argument(help="A candidate of the experiment; with --tasks also any model.")
    ],
    overrides: Overrides = None,
    config: Config = Path("harness.yaml"),
    tasks: Annotated[
        list[str] | None,
        typer.Option("--tasks", "-t", envvar="HARNESS_TASKS", help="Tasks of lm-eval, by name: a,b."),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", "-L", min=1, help="At most so many items of each task of --tasks."),
    ] = None,
    num_fewshot: Annotated[
        int | None,
        typer.Option("--num-fewshot", "-f", min=0, help="Shots, where the task itself does not say 0."),
    ] = None,
    output_path: Annotated[
        Path | None, typer.Option("--output-path", "-o", help="A folder to write results.json to.")
    ] = None,
    log_samples: Annotated[
        bool, typer.Option("--log-samples", "-s", help="Write every item's row to the folder as well.")
    ] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let data sets run code of their own.")
    ] = False,
    engine: Annotated[
        str | None,
        typer.Option("--engine", help="What answers --tasks: transformers, or vllm."),
    ] = None,
    precision: Precision = None,
    runs: RunsFolder = Path("runs"),
    as_json: Json = False,
) -> None:
    """Evaluate a candidate on the target and all suites, or with --tasks any model on lm-eval's tasks."""
    if tasks and log_samples and output_path is None:
        found = "--log-samples without a folder"
        raise UserError(Problem("harness eval", found, "where to write the rows", "add -o FOLDER"))
    if tasks:
        from harness.experiment import standalone

        names = [name.strip() for text in tasks for name in text.split(",") if name.strip()]
        asked = standalone.tasks_of(names, limit, num_fewshot, trust_remote_code=trust_remote_code)
        computing = {key: value for key, value in (("engine", engine), ("precision", precision)) if value}
        prepared = _prepare_standalone(candidate, asked, overrides or [], config, runs, computing)
        _evaluate_standalone(prepared, output_path, log_samples, as_json)
        return
    _refuse_without_tasks(
        {
            "--limit": limit,
            "--num-fewshot": num_fewshot,
            "--output-path": output_path,
            "--log-samples": log_samples,
            "--engine": engine,
        }
    )
    _evaluate_candidate(candidate, with_precision(overrides, precision), config, as_json)


def _evaluate_candidate(candidate: str, overrides: list[str], config: Path, as_json: bool) -> None:
    from harness.experiment.run_candidate import make_run
    from harness.experiment.stored_rows import Reader

    try:
        session, loaded = open_session(config, overrides, candidate)
    except UserError as error:
        raise UserError(_name_tasks(error.problems, config)) from error
    out = {}
    for name in loaded.selected:
        run = make_run(session, session.candidates[name], session.experiment.seeds[0])
        out[name] = Reader(session).scores(run)
    print_scores(out, as_json)


def _name_tasks(problems: "Sequence[Problem]", config: Path) -> "list[Problem]":
    """Say where the name is no candidate's, or where there is no experiment, how any model is scored."""
    hint = "(or add -t piqa,arc_easy, which scores any model)"
    return [
        replace(p, next_step=f"{p.next_step} {hint}")
        if p.where == "candidates" or not config.is_file()
        else p
        for p in problems
    ]


def _prepare_standalone(
    name: str,
    tasks: "list[Task]",
    overrides: list[str],
    config: Path,
    runs: Path,
    computing: dict[str, str],
) -> "Prepared":
    """Get a candidate of the experiment ready where the name is one of its, else the model of that name."""
    from harness import config as configuration
    from harness.cli.progress_bar import TerminalProgress
    from harness.experiment import Scope, prepare_session, standalone

    progress = TerminalProgress()
    if config.is_file() and not standalone.looks_like_a_model(name):
        settings = [f"{key}={value}" for key, value in computing.items()]
        loaded = configuration.load(config, [*overrides, *settings])
        if name in loaded.experiment.candidates:
            return standalone.prepare_candidate(prepare_session(loaded, Scope(), progress), name, tasks)
    if overrides:
        found = f"{overrides[0]}, and a model that is no candidate of {config}"
        expected = "overrides for a candidate's experiment only"
        raise UserError(
            Problem("harness eval", found, expected, "leave it out, or use --precision, --engine")
        )
    return standalone.prepare_model(name, tasks, runs, progress, **standalone.check_computing(computing))


def _evaluate_standalone(prepared: "Prepared", folder: Path | None, log_samples: bool, as_json: bool) -> None:
    from harness.cli.progress_bar import console
    from harness.experiment import standalone
    from harness.report import score_table

    say(prepared.first_line)
    found_scores = standalone.evaluate(prepared)
    for path in standalone.write(found_scores, folder, log_samples=log_samples) if folder else ():
        say(f"wrote {path}")
    for note in found_scores.notes:
        say(note)
    if as_json:
        print_json(standalone.to_json(found_scores))
    else:
        console(100).print(score_table(found_scores.scores))


def _refuse_without_tasks(given: dict[str, Any]) -> None:
    if wrong := [name for name, value in given.items() if value]:
        found = f"{', '.join(wrong)} without --tasks"
        expected = "the tasks of lm-eval it is for"
        raise UserError(Problem("harness eval", found, expected, "add -t piqa,arc_easy"))


def _print_plan(
    session: "Session", names: "Sequence[str]", work: "dict[str, Work]", plan: dict[str, float], as_json: bool
) -> None:
    """Print what each candidate trains, reads and generates, the sums, and what each takes alone."""
    from harness.cli.doctor import cost_section
    from harness.evaluation.costs import Work
    from harness.experiment.preflight import estimate_costs
    from harness.formatting import count, seconds
    from harness.models.hardware import memory
    from harness.report import ResultDocument, Section, to_plain

    total = sum(work.values(), Work())
    found = estimate_costs(session, names, memory(session.machine.device))
    if as_json:
        alone = {cost.candidate: to_plain(cost) for cost in found}
        times = {name: round(plan[name], 1) if name in plan else None for name in work}
        planned = {name: {**w._asdict(), "seconds": times[name]} for name, w in work.items()}
        print_json({name: {**w, **alone.get(name, {})} for name, w in planned.items()})
        return
    lines = [*((name, w, plan.get(name)) for name, w in work.items())]
    lines.append(("all, in tokens, from nothing", total, sum(plan.values())))
    rows = [[name, *map(count, (w.trained, w.read, w.generated)), seconds(s)] for name, w, s in lines]
    tokens = Section(columns=("candidate", "trained", "read", "generated", "about"), rows=rows)
    print_document(ResultDocument("", [tokens, *([cost_section(found)] if found else [])], ""))
    say("nothing was run; the tokens are estimated from the length of the texts, generated ones at most")


def exit_code(found: "ExperimentReport", policy: "GatePolicy", *, by_verdict: bool) -> int:
    """Return 1 when a candidate failed, else with `by_verdict` what the recommended one's verdict says."""
    from harness import gating

    if any(f.state == "failed" for f in found.facts):
        return 1
    if not by_verdict:
        return 0
    chosen = found.decision.candidate if found.decision else None
    verdict = next((f.verdict for f in found.facts if f.name == chosen), None)
    if verdict is None:
        # A recommended classifier has no capability to lose; no recommendation at all is undecided.
        return 0 if chosen else 4
    return gating.exit_code(verdict, policy)
