"""Commands by which models write rows: data augment, data distill, pairs make, data propose-prompts.

Invariant: each writes a new file, never over an old one, with a manifest that names the model and the cost.
The requests are announced before one is sent.
"""

import json
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from harness.cli.app import BY_A_MODEL, data_app, pairs_app, print_result, say
from harness.cli.data import File, Out, Remarks, read_all, roles_of, roles_of_test, save_made
from harness.cli.options import (
    CONFIG,
    AnswerTokens,
    Argument,
    Config,
    DryRequests,
    DryRun,
    ExperimentFile,
    Json,
    MaxCost,
    Option,
    RowColumns,
    Seed,
    Temperature,
    TopP,
    name_beside,
    require_out,
    verb,
)
from harness.errors import Problem, UserError, as_operand, refuse

if TYPE_CHECKING:
    from harness.experiment.augmentation import Rewriting
    from harness.experiment.writers import Writer, WriterPlan
    from harness.spec import Experiment

_ADDRESS = re.compile(r"https?://")


class Wording(NamedTuple):
    """Ways to write a row: a paraphrase, your own instruction, a translation, or a new question."""

    by: Annotated[
        Literal["paraphrase", "back-translation", "new-questions"],
        Option("Paraphrase, translate into another language and back, or write new questions with answers."),
    ] = "paraphrase"
    via: Annotated[str, Option("The language to translate into and back from.")] = "French"
    language: Annotated[str, Option("The language of the rows.")] = "English"
    instruction: Annotated[str | None, Option("Your own instruction; {text} is the row's text.")] = None
    variants: Annotated[int, Option("New rows from each row.", min=1)] = 1
    temperature: Temperature = 0.7
    max_new_tokens: Annotated[int, Option("Tokens of an answer, at most.", min=1)] = 128
    max_cost: MaxCost = None
    seed: Seed = 0


class Endpoint(NamedTuple):
    """A model behind an address: its name, the variable of its key, and its prices."""

    model: Annotated[str | None, Option("The model behind an address.")] = None
    api_key_env: Annotated[str | None, Option("The environment variable that holds the API key.")] = None
    prices: Annotated[str | None, Option("USD for a million tokens read and written: 0.15,0.6.")] = None


@verb(
    data_app,
    "train.csv --with lora --out more.csv",
    "train.csv --with http://localhost:8000/v1 --model qwen --out more.csv",
    heading=BY_A_MODEL,
)
def data_augment(
    file: File,
    by_whom: Annotated[str, Option("The model that writes: a candidate, or http://…/v1.", "--with")],
    *,
    out: Out = None,
    wording: Wording,
    n_rows: Annotated[int | None, Option("Rows to start from, at most.", "--rows", min=1)] = None,
    endpoint: Endpoint,
    against: Annotated[list[str] | None, Option("A test file; rows with its questions are left out.")] = None,
    config: Config = CONFIG,
    columns: RowColumns,
    remarks: Remarks,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Add training rows that a model wrote.

    They are rows in other words or new questions; each is written after its source row.
    """
    from harness.cli.progress_bar import TerminalProgress
    from harness.data.column_roles import column_options
    from harness.data.edit.row_files import row_suffix
    from harness.experiment import Scope, prepare_session
    from harness.experiment.augmentation import choose_rows, find_evaluated, prepare_rows, read_evaluated
    from harness.experiment.writers import candidate_writer

    tests = against or []
    written_to = require_out(out, [file, *tests], dry_run=dry_run)
    rewriting = _write_prompts(wording)
    content = read_all(file)
    roles = roles_of(content, columns)
    at, session, experiment = ExperimentFile(config=config), None, None
    if not _ADDRESS.match(by_whom):
        session = at.open_candidate(by_whom, "--with", dry_run=dry_run)[0]
        experiment = session.experiment
        if any(value is not None for value in endpoint):
            names = [f"--{n.replace('_', '-')}" for n, v in endpoint._asdict().items() if v is not None]
            found = f"{', '.join(names)} and the candidate {by_whom}, whose recipe says that already"
            raise UserError("--with", found, "options of an address, http://…/v1", "leave them out")
        writer = candidate_writer(session, by_whom, rewriting.max_cost)
    else:
        if config.is_file():
            session = prepare_session(at.load(None), Scope(dry_run=True), TerminalProgress())
        experiment = session.experiment if session else None
        writer = _address_writer(by_whom, endpoint, rewriting.max_cost, experiment)
    tasks = session.tasks if session else ()
    evaluated_sets = [find_evaluated(tasks)] if tasks else []
    for test_file in tests:
        test_content = read_all(test_file)
        evaluated_sets.append(read_evaluated(test_content, roles_of_test(test_content, columns), roles))
    if not evaluated_sets:
        say("warning: rows are held against no test items; name them: --against FILE, or -c harness.yaml")
    labels = session.target.task.labels if session else ()
    chosen_rows = choose_rows(content, roles, evaluated_sets, n_rows, rewriting, labels)
    task = "write new questions from" if rewriting.by == "new-questions" else "reword"
    first_line = f"{len(chosen_rows.texts):,} of {len(content.rows):,} rows to {task} by {writer.name}"
    in_columns = not row_suffix(written_to.name).startswith(".json")
    prepared = prepare_rows(chosen_rows, writer, rewriting, TerminalProgress(), in_columns=in_columns)
    if not _announce(prepared.plan, first_line, dry_run=dry_run, as_json=as_json):
        return
    rows = prepared.send()
    settings = {**rows.edit.parameters, "rows": n_rows, "against": tests, **roles._asdict()}
    edit = remarks.edit("augment", settings, [file], rows.edit.cost_usd)
    save_made(rows._replace(edit=edit), written_to, as_json)
    command = shlex.join(["harness", "data", "check", as_operand(str(written_to)), *column_options(*columns)])
    say(f"next: {command}, then {_training(at, experiment, written_to)}; its test items stay as they are")


def _training(at: ExperimentFile, experiment: "Experiment | None", file: Path, method: str = "") -> str:
    """Return the command that trains on a written file, or the key that makes a candidate do so."""
    recipes = experiment.candidates.values() if experiment else ()
    if any(str(file.resolve()) in recipe.row_paths for recipe in recipes):
        return at.command_line().command("compare")
    return f"train: {name_beside(at.config, file)} on a candidate{method} in {at.config}"


def _announce(plan: "WriterPlan", *lines: str, dry_run: bool, as_json: bool) -> bool:
    """Print the requests and their cost; return whether to send them."""
    all_lines = [*lines, str(plan)]
    if dry_run:
        print_result(plan._asdict(), all_lines, as_json)
    if as_json or not dry_run:
        say(*all_lines)
    if dry_run:
        say("a dry run sends no request and writes nothing")
    return not dry_run


def _write_prompts(wording: Wording) -> "Rewriting":
    from harness.experiment.augmentation import NEW_QUESTION, PARAPHRASE, TEXT, TRANSLATE, Rewriting

    by, via, language, instruction, variants, temperature, max_new_tokens, max_cost, seed = wording
    problems = []
    if instruction is not None and (TEXT not in instruction or by != "paraphrase"):
        found = f"an instruction for {by}" if by != "paraphrase" else f"no {TEXT} in {instruction!r}"
        expected = f"an instruction with {TEXT} in it, --by paraphrase"
        problems.append(Problem("--instruction", found, expected, f"such as 'Say it shorter: {TEXT}'"))
    if temperature == 0 and variants > 1:
        found = f"{variants} of each row at temperature 0"
        step = "--temperature 0.7, or --variants 1"
        problems.append(Problem("--variants", found, "answers that can differ", step))
    if via.strip().lower() == language.strip().lower() and by == "back-translation":
        problems.append(Problem("--via", via, f"another language than {language}", "--via German"))
    defaults = Wording()
    if by != "back-translation" and (via, language) != (defaults.via, defaults.language):
        problems.append(Problem("--via", f"{via} for {by}", "--by back-translation", "leave languages out"))
    refuse(problems)
    to_language, back = (TRANSLATE.replace("{language}", to) for to in (via, language))
    prompts = {
        "paraphrase": (instruction or PARAPHRASE,),
        "back-translation": (to_language, back),
        "new-questions": (NEW_QUESTION,),
    }
    rewriting = Rewriting(by, prompts[by], variants, temperature, max_new_tokens=max_new_tokens)
    return rewriting._replace(seed=seed, max_cost=max_cost)


def _address_writer(
    address: str, endpoint: Endpoint, max_cost: float | None, experiment: "Experiment | None"
) -> "Writer":
    from pydantic import ValidationError

    from harness.evaluation.runner import sensitive_problems
    from harness.experiment.writers import endpoint_writer
    from harness.models.openai_api import Settings, problems

    model, api_key_env, prices = endpoint
    if model is None:
        raise UserError("--with", f"{address} without --model", "the model to ask there", "--model NAME")
    written = None if prices is None else prices.split(",")
    if written is not None and len(written) != 2:
        expected = "USD for a million tokens read and written"
        raise UserError("--prices", repr(prices), expected, "such as 0.15,0.6")
    rates = written and dict(zip(("input", "output"), written, strict=True))
    server = {"base_url": address, "model": model, "protocol": "chat", "api_key_env": api_key_env}
    try:
        settings = Settings.model_validate({**server, "usd_per_million_tokens": rates})
    except ValidationError as error:
        first_error = error.errors()[0]  # never its input, which may hold a secret
        reason = f"{first_error['loc'][0]}: {first_error['msg'].removeprefix('Value error, ')}"
        raise UserError("--with", reason, "settings of an endpoint", "correct it") from None
    refuse(problems(settings, "--with"))
    step = "--with an address of your network, a candidate that answers here, or remove sensitive_data"
    arguments = (settings, "a writer", "--with", step)
    refuse(sensitive_problems(experiment, *arguments) if experiment else None)
    if max_cost is not None and settings.usd_per_million_tokens is None:
        step = "--prices READ,WRITTEN"
        raise UserError("--max-cost", "no prices to count it by", "prices of the endpoint", step)
    return endpoint_writer(settings)


@verb(data_app, "large --dry-run", "large --out taught.jsonl --max-cost 5", heading=BY_A_MODEL)
def data_distill(
    teacher: Annotated[str, Argument("A candidate of the experiment, such as a larger model's.")],
    at: ExperimentFile,
    out: Annotated[Path | None, Option("The new file of rows. A manifest is written next to it.")] = None,
    rewrite: Annotated[str, Option("Rewrite the rows' own answers by this instruction.")] = "",
    prompts: Annotated[str | None, Option("A file of prompts, instead of training rows.")] = None,
    min_score: Annotated[float | None, Option("Least score of an answer against the row's own.")] = None,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    max_new_tokens: AnswerTokens = None,
    rows: Annotated[int | None, Option("Rows to send, at most.", min=1)] = None,
    max_cost: MaxCost = None,
    seed: Seed = 0,
    dry_run: DryRequests = False,
    as_json: Json = False,
) -> None:
    """Let a teacher label training rows or rewrite answers.

    The teacher is a candidate, such as a larger model behind an endpoint; the new file is one to train on.
    """
    from harness.experiment.written_rows import Distillation, prepare_distillation

    written_to = require_out(out, [prompts] if prompts else [], dry_run=dry_run)
    session = at.open_candidate(teacher, "teacher", dry_run=dry_run)[0]
    request = Distillation(
        rewrite, prompts, temperature, top_p, max_new_tokens, min_score, rows, max_cost, seed
    )
    prepared = prepare_distillation(session, teacher, request, str(written_to))
    if not _announce(prepared.plan, dry_run=dry_run, as_json=as_json):
        return
    save_made(prepared.send(), written_to, as_json)
    say(f"next: {_training(at, session.experiment, written_to)}")


@verb(
    pairs_app,
    "lora --samples 8 --out pairs.jsonl",
    "lora --rank judge:./rubric.yaml --max-cost 5 --out judged.jsonl",
)
def pairs_make(
    candidate: Annotated[str, Argument("A candidate of the experiment, whose answers are sampled.")],
    at: ExperimentFile,
    out: Annotated[Path | None, Option("The new file of pairs. A manifest is written next to it.")] = None,
    rank: Annotated[
        str,
        Option(
            "What ranks answers: a metric, a Python file with a function reward, a judge of the target, "
            "or a candidate that makes a reward model. By default the metric that decides."
        ),
    ] = "",
    samples: Annotated[int, Option("Answers sampled for each prompt.", min=2)] = 4,
    temperature: Annotated[float, Option("Sampling temperature.", min=0.01, max=2)] = 1.0,
    top_p: TopP = 1.0,
    max_new_tokens: AnswerTokens = None,
    gap: Annotated[float, Option("Scores that differ by no more than this are a tie.", min=0)] = 0.0,
    rows: Annotated[int | None, Option("Training prompts to send, at most.", min=1)] = None,
    max_cost: MaxCost = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Draw answers, rank them, and write pairs of them.

    Of each training prompt the best answer and the worst make a pair.
    """
    from harness.experiment.written_rows import Drawing, make_pairs

    out = require_out(out, [])
    session = at.open_candidate(candidate, "candidate")[0]
    drawing = Drawing(samples, temperature, top_p, max_new_tokens, rank, gap, rows, seed, max_cost)
    save_made(make_pairs(session, candidate, drawing, str(out)), out, as_json)
    train = _training(at, session.experiment, out, " with method: dpo")
    say(f"next: {train}, or the file as pairs: in data: of the target")


@verb(data_app, "large --n 8 --out proposed.yaml", heading=BY_A_MODEL)
def data_propose_prompts(
    proposer: Annotated[str, Argument("A candidate of the experiment, such as a larger model's.")],
    at: ExperimentFile,
    out: Annotated[Path | None, Option("The new YAML file with a candidate to copy.")] = None,
    n: Annotated[int, Option("How many texts to request.", min=1, max=64)] = 6,
    examples: Annotated[int, Option("How many training rows to show.", min=0)] = 4,
    max_new_tokens: Annotated[int, Option("Tokens of a text, at most.", min=1)] = 200,
    temperature: Temperature = 0.7,
    max_cost: MaxCost = None,
    seed: Seed = 0,
    dry_run: DryRequests = False,
    as_json: Json = False,
) -> None:
    """Let a model propose system texts to be tried.

    It is shown the task and some training rows, and the texts are written as a grid.
    """
    from harness.data.edit.save import refuse_existing
    from harness.experiment import written_rows as prompts

    if out is not None:
        refuse_existing(out)
    elif not dry_run:
        raise UserError("--out", "no --out", "a new file", "name it: --out proposed.yaml")
    session = at.open_candidate(proposer, "proposer", dry_run=dry_run)[0]
    request = prompts.PromptProposal(n, examples, max_new_tokens, temperature, max_cost, seed)
    prepared = prompts.prepare_proposal(session, proposer, request)
    if not _announce(prepared.plan, dry_run=dry_run, as_json=as_json) or out is None:
        return
    proposal = prepared.send()
    with out.open("x", encoding="utf-8") as file:
        # A candidate with the texts as a grid of harness.yaml; a comment says who proposed them.
        comments = [
            f"# {key}: {json.dumps(value, ensure_ascii=False)}" for key, value in proposal.provenance.items()
        ]
        texts = [f"      - {json.dumps(text, ensure_ascii=False)}" for text in proposal.texts]
        lines = [*comments, "candidates:", "  proposed:", "    system:", "      - null", *texts, ""]
        file.write("\n".join(lines))
    print_result({"texts": list(proposal.texts), **proposal.provenance}, proposal.texts, as_json)
    say(f"{len(proposal.texts)} of {n} texts differ; next: copy the candidate in {out} into harness.yaml")
