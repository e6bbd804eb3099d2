"""Commands that evaluate a candidate, or any model on tasks of lm-eval, and ask one question: eval, ask.

Invariant: models load only inside the command.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from harness.cli.app import EXPERIMENT, app, print_lines, print_result, print_scores, say
from harness.cli.options import RUNS, Argument, ExperimentFile, Json, Option, Precision, RunsFolder, verb
from harness.errors import Problem, UserError
from harness.formatting import count, plain, seconds

if TYPE_CHECKING:
    from harness.experiment.standalone import PreparedEvaluation
    from harness.spec import Task


@verb(
    app,
    "harness eval lora",
    "harness eval smollm2-135m -t piqa,arc_easy -L 300",
    name="eval",
    heading=EXPERIMENT,
)
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
        raise UserError(Problem("harness eval", found, "where to write the rows", "add -o FOLDER"))
    if tasks:
        from harness.experiment import standalone
        from harness.report import ResultDocument, score_section

        names = [name.strip() for text in tasks for name in text.split(",") if name.strip()]
        evaluated = standalone.tasks_of(names, limit, num_fewshot, trust_remote_code=trust_remote_code)
        named = (("engine", engine), ("precision", precision))
        computing = {key: str(value) for key, value in named if value}
        prepared = _prepare_standalone(candidate, evaluated, at, runs, computing)
        say(prepared.first_line)
        scores = standalone.evaluate(prepared)
        written = standalone.write(scores, output_path, log_samples=log_samples) if output_path else ()
        for line in [*(f"wrote {path}" for path in written), *scores.notes]:
            say(line)
        document = ResultDocument("", [score_section(scores.scores)], "")
        print_result(standalone.to_json(scores), document, as_json)
        return
    given = {
        "--limit": limit,
        "--num-fewshot": num_fewshot,
        "--output-path": output_path,
        "--log-samples": log_samples,
        "--engine": engine,
    }
    if wrong := [name for name, value in given.items() if value]:
        found, expected = f"{', '.join(wrong)} without --tasks", "the tasks of lm-eval it is for"
        raise UserError(Problem("harness eval", found, expected, "add -t piqa,arc_easy"))
    _evaluate_candidate(candidate, at.override({"precision": precision}), as_json)


@verb(
    app,
    'harness ask lora "Where is my parcel?"',
    "harness ask prompt --item support-012",
    name="ask",
    heading=EXPERIMENT,
)
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
        raise UserError(Problem("harness ask", found, "one of the two", step))
    from harness import experiment
    from harness.report import to_plain
    from harness.report.escape import clean_lines

    session, loaded = at.open_session(candidate)
    name, *others = loaded.selected
    if others:
        found = f"{candidate}, which names {', '.join(loaded.selected)}"
        raise UserError(Problem("harness ask", found, "one candidate", f"harness ask '{name}'"))
    answer = experiment.ask(session, name, text, item)
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
    print_lines(to_plain(answer), lines, as_json)


def _evaluate_candidate(candidate: str, at: ExperimentFile, as_json: bool) -> None:
    from harness.experiment import Reader
    from harness.experiment.run_candidate import make_run

    session, loaded = at.open_session(candidate)
    out = {}
    for name in loaded.selected:
        run = make_run(session, session.candidates[name], session.first_seed)
        out[name] = Reader(session.store, session.tasks).scores(run)
    print_scores(out, as_json)


def _prepare_standalone(
    name: str, tasks: "list[Task]", at: ExperimentFile, runs: Path, computing: dict[str, str]
) -> "PreparedEvaluation":
    from harness.cli.progress_bar import TerminalProgress
    from harness.experiment import Scope, prepare_session, standalone
    from harness.models.hub import NAMES

    progress = TerminalProgress()
    is_model = name in NAMES or "/" in name or Path(name).expanduser().is_dir()
    if at.config.is_file() and not is_model:
        loaded = at.override(computing).load()
        if name in loaded.experiment.candidates:
            return standalone.prepare_candidate(prepare_session(loaded, Scope(), progress), name, tasks)
    if at.settings:
        found = f"{at.settings[0]}, and a model that is not a candidate of {at.config}"
        expected = "overrides for a candidate's experiment only"
        raise UserError(
            Problem("harness eval", found, expected, "leave it out, or use --precision, --engine")
        )
    settings: dict[str, Any] = {**computing}
    return standalone.prepare_model(name, tasks, runs, progress, **settings)
