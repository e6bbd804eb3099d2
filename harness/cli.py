"""The verbs of the command line.

Invariant: stdout holds the result, stderr the progress; errors a user can mend are printed
without a traceback and end with exit code 2, and heavy modules load only inside a verb.
"""

import json
import os
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
regressions_app = typer.Typer(
    help="Pin items that must never be lost again.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(regressions_app, name="regressions")

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
def init(
    data: Annotated[
        str, typer.Option("--data", envvar="HARNESS_DATA", help="Your rows: a file, or hub:owner/name.")
    ],
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Where to write.")] = Path(),
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
    as_json: Json = False,
) -> None:
    """Look at your rows and write a folder in which compare runs as it is."""
    from harness import starting

    request = starting.Request(folder, data, base_model, pairs, documents, prompt, reference)
    proposal = starting.propose(request)
    written = [str(path) for path in starting.write(proposal)]
    config = "" if folder == Path() else f" -c {folder / 'harness.yaml'}"
    if as_json:
        facts = {
            "task": proposal.kind,
            "metrics": proposal.task.metrics,
            "candidates": list(proposal.candidates),
        }
        _print({**facts, "said": proposal.said, "files": written}, True)
        return
    for line in proposal.said:
        print(line)
    print(f"wrote {' and '.join(written)}")
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
    seeds: Annotated[
        list[str] | None,
        typer.Option("--seeds", envvar="HARNESS_SEEDS", help="Train with each of these: 0,1,2."),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", envvar="HARNESS_YES", help="Go on with more than 64 candidates.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train, evaluate, compare, gate and decide: every candidate of the experiment."""
    from harness import config as configuration
    from harness import experiment, report
    from harness.experiment import Scope
    from harness.terminal import TerminalProgress

    settings = [*(overrides or []), *([f"seeds=[{','.join(seeds)}]"] if seeds else [])]
    loaded = configuration.load(config, settings, candidates or [])
    experiment.refuse_many(loaded, yes=yes or dry_run)
    progress = TerminalProgress()
    bench = experiment.bench_of(loaded, Scope(limit, quick), progress)
    work = experiment.planned(bench, loaded.selected)
    plan = experiment.seconds_planned(bench, work)
    if dry_run:
        _print_plan(bench, work, plan, as_json)
        return
    _say(experiment.first_line(bench, len(loaded.selected), sum(plan.values())))
    for line in [*experiment.warnings_before(bench), *bench.target.items.notes]:
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


@app.command()
def decide(overrides: Overrides = None, config: Config = Path("harness.yaml"), as_json: Json = False) -> None:
    """Say from stored runs what to ship, with the reasons and every number behind them."""
    from harness import experiment
    from harness.report import arithmetic_lines, to_plain

    bench, names = _bench(config, overrides, None)
    found = experiment.stored(bench, names).decision
    if found is None:
        raise HarnessError("no decision: found no finished candidate; next: harness compare")
    if as_json:
        print(json.dumps(to_plain(found), indent=2, ensure_ascii=False))
        return
    for line in [*found.reasons, *arithmetic_lines(found), found.sentence]:
        print(line)


@app.command()
def gate(
    overrides: Overrides = None,
    candidate: Annotated[
        str,
        typer.Option(
            "--candidate",
            envvar="HARNESS_CANDIDATE",
            help="A candidate, a run's id, or with --base a folder of lm-eval samples.",
        ),
    ] = "",
    baseline: Annotated[
        str | None,
        typer.Option(
            "--baseline", envvar="HARNESS_BASELINE", help="champion or base; the champion where there is one."
        ),
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option("--base", envvar="HARNESS_BASE", help="A folder of lm-eval samples to compare with."),
    ] = None,
    config: Config = Path("harness.yaml"),
    junit: Annotated[
        Path | None,
        typer.Option("--junit", envvar="HARNESS_JUNIT", help="Write JUnit XML, one test case a rule."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Judge stored runs, or two folders of lm-eval samples; exit by the verdict."""
    from harness import release

    judged = release.gate(config, candidate, overrides or [], baseline=baseline, base=base)
    code = release.exit_code(judged)
    release.write(judged, junit, os.environ.get("GITHUB_STEP_SUMMARY"))
    if as_json:
        print(json.dumps([release.to_json(j) for j in judged], indent=2, ensure_ascii=False))
    else:
        print("\n\n".join("\n".join(release.terminal(j)) for j in judged))
    raise typer.Exit(code)


@app.command()
def promote(
    run: Annotated[str, typer.Argument(help="A run's id, or a candidate: its seed best on validation.")],
    overrides: Overrides = None,
    config: Config = Path("harness.yaml"),
    as_json: Json = False,
) -> None:
    """Make a run the champion, which gates compare with from then on."""
    from harness import release

    path, champion = release.promote_named(config, run, overrides or [])
    _say(f"wrote {path}")
    _print({"run_id": champion.run_id, "target": champion.target, "scores": champion.scores}, as_json)


@regressions_app.command("add")
def regressions_add(
    run: Annotated[str, typer.Argument(help="The run that lost the items, or its candidate.")],
    items: Annotated[list[str], typer.Argument(help="Items, each as task/item.")],
    config: Config = Path("harness.yaml"),
) -> None:
    """Pin items that a run lost: from then on the gate lets none of them be lost again."""
    from harness import release

    path, added, listed = release.pin(config, run, items)
    _say(f"{path}: {added} new, {len(items) - added} were pinned already")
    if not listed:
        _say(f"add {path.name} to suites: in {config}, then harness compare measures the base on it")


@regressions_app.command("confirm")
def regressions_confirm(
    run: Annotated[str, typer.Argument(help="The run whose lost pinned items are in doubt.")],
    config: Config = Path("harness.yaml"),
) -> None:
    """Score a run's pinned items again in fp32, so that the gate knows what rounding moved."""
    from harness.release.exact import rescore_pinned
    from harness.release.stored import candidate_runs

    bench, _ = _bench(config, None, None)
    from harness import config as configuration

    for found in candidate_runs(configuration.load(config), bench.store, run):
        _say(f"{found.run_id}: {', '.join(rescore_pinned(bench, found)) or 'no pinned items'} in fp32")


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
