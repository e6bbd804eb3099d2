"""Command that evaluates one candidate, or any model on tasks of lm-eval: eval.

Invariant: models load only inside the command.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli.app import (
    EXPERIMENT,
    Config,
    Json,
    Overrides,
    Precision,
    RunsFolder,
    app,
    examples,
    open_session,
    print_json,
    print_scores,
    say,
    with_precision,
)
from harness.errors import Problem, UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.experiment.standalone import Prepared
    from harness.spec import Task


@app.command(
    "eval",
    rich_help_panel=EXPERIMENT,
    epilog=examples("harness eval lora", "harness eval smollm2-135m -t piqa,arc_easy -L 300"),
)
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
        typer.Option("--limit", "-L", min=1, help="Items of each task of --tasks, at most."),
    ] = None,
    num_fewshot: Annotated[
        int | None,
        typer.Option("--num-fewshot", "-f", min=0, help="Few-shot examples, unless the task itself fixes 0."),
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
        typer.Option("--engine", help="Engine for --tasks: transformers or vllm."),
    ] = None,
    precision: Precision = None,
    runs: RunsFolder = Path("runs"),
    as_json: Json = False,
) -> None:
    """Evaluate one candidate, or any model on tasks of lm-eval.

    Without --tasks a candidate answers the target and all suites of the experiment.
    """
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
    from harness.experiment.runs.run_candidate import make_run
    from harness.experiment.runs.stored_rows import Reader

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
