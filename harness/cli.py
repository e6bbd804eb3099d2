"""The verbs of the command line.

Invariant: stdout holds the result, stderr the progress; errors a user can mend are printed
without a traceback and end with exit code 2, and heavy modules load only inside a verb.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.errors import HarnessError, Problem, UserError
from harness.quiet import quiet_environment

if TYPE_CHECKING:
    from harness.estimate import Work
    from harness.experiment.alone import Prepared
    from harness.records import Run
    from harness.report import ExperimentReport
    from harness.run import Bench
    from harness.spec import GatePolicy, Task

_INTERRUPTED = 130  # how typer ends on Ctrl-C

app = typer.Typer(
    help="Know, with evidence, whether to fine-tune.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
runs_app = typer.Typer(help="List, show or remove stored runs.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(runs_app, name="runs")

Config = Annotated[
    Path, typer.Option("--config", "-c", envvar="HARNESS_CONFIG", help="The experiment's file.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[a.b=value …]", help="Overrides of the file's keys.")
]
Json = Annotated[bool, typer.Option("--json", envvar="HARNESS_JSON", help="Print JSON instead of text.")]
Candidates = Annotated[
    list[str] | None,
    typer.Option("--candidates", envvar="HARNESS_CANDIDATES", help="Only these, by name: a,b."),
]
RunsFolder = Annotated[Path, typer.Option("--runs", envvar="HARNESS_RUNS", help="The folder of stored runs.")]


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
            help="At most so many test items of each task.",
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
    as_json: Json = False,
) -> None:
    """Train, evaluate, compare, gate and decide: every candidate of the experiment."""
    from harness import config as configuration
    from harness import experiment, report
    from harness.experiment import Scope
    from harness.terminal import TerminalProgress

    loaded = configuration.load(config, overrides or [], candidates or [])
    progress = TerminalProgress()
    bench = experiment.bench_of(loaded, Scope(limit, quick), progress)
    work = experiment.planned(bench, loaded.selected)
    plan = {name: bench.seconds(one) for name, one in work.items()}
    if dry_run:
        _print_plan(bench, work, plan, as_json)
        return
    _say(experiment.first_line(bench, len(loaded.selected), sum(plan.values())))
    for line in [*experiment.warnings_before(bench), *bench.target.items.removed]:
        _say(line)
    with progress.following(plan):
        found = experiment.run_all(bench, loaded, quick=quick)
    report.write(found, loaded.folder / "reports")
    _print_report(found, as_json)
    raise typer.Exit(_exit_code(found, bench.experiment.gate, by_verdict=gate))


@app.command()
def train(
    candidate: Annotated[str, typer.Argument(help="A candidate of the experiment.")],
    overrides: Overrides = None,
    config: Config = Path("harness.yaml"),
    as_json: Json = False,
) -> None:
    """Make the weights of one candidate, or find them already made."""
    from harness.run import ensure_weights

    bench, names = _bench(config, overrides, candidate)
    recipes = bench.experiment.candidates
    made = {name: ensure_weights(bench, recipes[name], bench.experiment.seeds[0]) for name in names}
    _print(
        {
            name: {"kind": w.kind, "digest": w.digest, "folder": str(w.folder or ""), "training": w.training}
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
    runs: RunsFolder = Path("runs"),
    as_json: Json = False,
) -> None:
    """Evaluate a candidate on the target and all suites, or with --tasks any model on lm-eval's tasks."""
    if tasks and log_samples and output_path is None:
        found = "--log-samples without a folder"
        raise UserError(Problem("harness eval", found, "where to write the rows", "add -o FOLDER"))
    if tasks:
        from harness.experiment import alone

        names = [name.strip() for text in tasks for name in text.split(",") if name.strip()]
        asked = alone.tasks_of(names, limit, num_fewshot, trust_remote_code=trust_remote_code)
        prepared = _prepared(candidate, asked, overrides or [], config, runs)
        _evaluate_alone(prepared, output_path, log_samples, as_json)
        return
    _refuse_without_tasks(
        {
            "--limit": limit,
            "--num-fewshot": num_fewshot,
            "--output-path": output_path,
            "--log-samples": log_samples,
        }
    )
    _evaluate_candidate(candidate, overrides, config, as_json)


def _evaluate_candidate(candidate: str, overrides: list[str] | None, config: Path, as_json: bool) -> None:
    from harness import comparison
    from harness.experiment.findings import Reader
    from harness.run import make_run

    bench, names = _bench(config, overrides, candidate)
    out: dict[str, Any] = {}
    for name in names:
        run = make_run(bench, name, bench.experiment.candidates[name], bench.experiment.seeds[0])
        reader = Reader(bench)
        out[name] = {
            m.task.name: {
                key: comparison.estimate(metric, reader.of(run, m))._asdict()
                for key, metric in m.metrics.items()
            }
            for m in (bench.target, *bench.suites)
            if f"{m.task.name}/test" in run.rows
        }
    _print(out, as_json)


def _prepared(name: str, tasks: "list[Task]", overrides: list[str], config: Path, runs: Path) -> "Prepared":
    """Get a candidate of the experiment ready where the name is one of its, else the model of that name."""
    from harness import config as configuration
    from harness.experiment import Scope, alone, bench_of
    from harness.terminal import TerminalProgress

    progress = TerminalProgress()
    if config.is_file() and not alone.looks_like_a_model(name):
        loaded = configuration.load(config, overrides)
        if name in loaded.experiment.candidates:
            return alone.prepare_candidate(bench_of(loaded, Scope(), progress), name, tasks)
    if overrides:
        found = f"{overrides[0]}, and a model that is no candidate of {config}"
        expected = "overrides for a candidate's experiment only"
        raise UserError(Problem("harness eval", found, expected, "leave it out"))
    return alone.prepare_model(name, tasks, runs, progress)


def _evaluate_alone(prepared: "Prepared", folder: Path | None, log_samples: bool, as_json: bool) -> None:
    from rich.console import Console

    from harness.experiment import alone
    from harness.report import score_table

    _say(prepared.first_line)
    found_scores = alone.evaluate(prepared)
    for path in alone.write(found_scores, folder, log_samples=log_samples) if folder else ():
        _say(f"wrote {path}")
    for note in found_scores.notes:
        _say(note)
    if as_json:
        _print(alone.to_json(found_scores), True)
    else:
        Console(width=100, highlight=False).print(score_table(found_scores.scores))


def _refuse_without_tasks(given: dict[str, Any]) -> None:
    if wrong := [name for name, value in given.items() if value]:
        found = f"{', '.join(wrong)} without --tasks"
        expected = "the tasks of lm-eval it is for"
        raise UserError(Problem("harness eval", found, expected, "add -t piqa,arc_easy"))


@app.command()
def report(overrides: Overrides = None, config: Config = Path("harness.yaml"), as_json: Json = False) -> None:
    """Write and print the report again from stored runs; computes nothing."""
    from harness import experiment, report

    bench, names = _bench(config, overrides, None)
    found = experiment.stored(bench, names)
    report.write(found, config.parent / "reports")
    _print_report(found, as_json)


@runs_app.command("list")
def runs_list(runs: RunsFolder = Path("runs"), as_json: Json = False) -> None:
    """List stored runs, oldest first."""
    from harness import store

    found = store.list_runs(store.Store(runs))
    _print({run.run_id: _brief(run) for run in found}, as_json)


@runs_app.command("show")
def runs_show(run_id: str, runs: RunsFolder = Path("runs"), as_json: Json = False) -> None:
    """Show all that is stored of one run, without its rows."""
    from dataclasses import asdict

    from harness import store

    _print(asdict(store.get_run(store.Store(runs), run_id)), as_json)


@runs_app.command("rm")
def runs_rm(run_id: str, runs: RunsFolder = Path("runs")) -> None:
    """Remove a run, with the rows and weights that no other run refers to."""
    from harness import store

    store.remove_run(store.Store(runs), run_id)
    _say(f"removed {run_id}")


@app.command("ls")
def ls(
    what: Annotated[
        str, typer.Argument(help="methods, prompting, metrics, suites, tasks or lm-eval")
    ] = "methods",
    as_json: Json = False,
) -> None:
    """List what there is to choose from, each with its purpose."""
    from harness.catalogue import listing

    _print(listing(what), as_json)


@app.command()
def reindex(runs: RunsFolder = Path("runs"), as_json: Json = False) -> None:
    """Rebuild the DuckDB index from the run folders."""
    from harness import store

    _print(store.reindex(store.Store(runs))._asdict(), as_json)


def _bench(
    config: Path, overrides: list[str] | None, candidate: str | None
) -> "tuple[Bench, tuple[str, ...]]":
    from harness import config as configuration
    from harness.experiment import Scope, bench_of
    from harness.terminal import TerminalProgress

    loaded = configuration.load(config, overrides or [], [candidate] if candidate else [])
    return bench_of(loaded, Scope(), TerminalProgress()), loaded.selected


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _print(value: Any, as_json: bool) -> None:
    """Print a mapping as JSON or as indented lines."""
    if as_json:
        print(json.dumps(value, indent=2, ensure_ascii=False))
        return
    for line in _lines(value, ""):
        print(line)


def _lines(value: Any, indent: str) -> Iterator[str]:
    for key, inner in value.items():
        if isinstance(inner, dict):
            yield f"{indent}{key}"
            yield from _lines(inner, indent + "  ")
        else:
            yield f"{indent}{key}: {inner}" if inner != "" else f"{indent}{key}"


def _brief(run: "Run") -> str:
    state = run.error if run.state == "failed" else run.state
    return f"{run.created}  {run.method} × {run.prompting}, seed {run.seed}, {run.base_model}: {state}"


def _print_report(found: "ExperimentReport", as_json: bool) -> None:
    from rich.console import Console

    from harness import report

    if as_json:
        print(json.dumps(report.to_json(found), indent=2, ensure_ascii=False))
    else:
        report.terminal(found, Console(width=100, highlight=False))


def _print_plan(bench: "Bench", work: "dict[str, Work]", plan: dict[str, float], as_json: bool) -> None:
    """Print what each candidate trains, reads and generates, and the sums."""
    from harness.estimate import Work
    from harness.numbers import count, seconds

    total = sum(work.values(), Work())
    if as_json:
        _print({name: {**w._asdict(), "seconds": round(plan[name], 1)} for name, w in work.items()}, True)
        return
    print(f"{'':32} {'trained':>9} {'read':>9} {'generated':>9}  about")
    for name, w in [*work.items(), ("all, in tokens, from nothing", total)]:
        expected = seconds(plan.get(name, sum(plan.values())))
        print(f"{name:32} {count(w.trained):>9} {count(w.read):>9} {count(w.generated):>9}  {expected}")
    _say("nothing was run; the tokens are estimated from the length of the texts, generated ones at most")


def _exit_code(found: "ExperimentReport", policy: "GatePolicy", *, by_verdict: bool) -> int:
    """Return 1 when a candidate failed, else with `by_verdict` what the recommended one's verdict says."""
    from harness import gating

    if any(f.state == "failed" for f in found.facts):
        return 1
    if not by_verdict:
        return 0
    chosen = found.decision.candidate if found.decision else None
    verdict = next((f.verdict for f in found.facts if f.name == chosen), None)
    if verdict is None:
        # A recommended classifier has no general ability to lose; no recommendation at all is undecided.
        return 0 if chosen else 4
    return gating.exit_code(verdict, policy)


def main() -> None:
    """Run the command line; every error that a user can mend ends without a traceback."""
    quiet_environment()
    argv = [
        a if not a.startswith("--") else a.replace("_", "-", a.partition("=")[0].count("_"))
        for a in sys.argv[1:]
    ]
    try:
        app(args=argv, standalone_mode=True)
    except HarnessError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno is None:
            raise
        found = f"found {(error.strerror or '').lower()}; expected room and folders that may be written"
        print(f"error: {error.filename or 'disk'}: {found}; next: mend that and run again", file=sys.stderr)
        sys.exit(2)
    except SystemExit as ended:
        if ended.code == _INTERRUPTED:
            print("interrupted: what is finished is kept; run the same command to go on", file=sys.stderr)
        raise
