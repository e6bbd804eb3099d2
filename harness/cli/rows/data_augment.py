"""Command that adds rows in other words: data augment.

Invariant: a new file stands beside a manifest with the prompts, never over a file; what it takes is said
before a model is asked.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from harness.cli.app import BY_A_MODEL, Config, Json, data_app, examples, open_session, print_json, say
from harness.cli.data import (
    DryRun,
    File,
    License,
    Note,
    Out,
    Prompt,
    Reference,
    Seed,
    print_saved,
    read_all,
    refuse_out,
    roles_of,
    roles_of_test,
)
from harness.cli.rows.refusals import refuse_grid
from harness.errors import Problem, UserError, as_argument

if TYPE_CHECKING:
    from harness.data.columns import Roles
    from harness.evaluation.session import Session
    from harness.experiment.generated_rows.augmentation import Evaluated
    from harness.experiment.generated_rows.rewording import Rewriting
    from harness.experiment.generated_rows.writers import Writer
    from harness.models.openai_api import Settings

_ADDRESS = re.compile(r"https?://")


@data_app.command(
    "augment",
    rich_help_panel=BY_A_MODEL,
    epilog=examples(
        "harness data augment train.csv --with lora --out more.csv",
        "harness data augment train.csv --with http://localhost:8000/v1 --model qwen --out more.csv",
    ),
)
def data_augment(
    file: File,
    by_whom: Annotated[
        str,
        typer.Option("--with", help="The model that rewords: a candidate of harness.yaml, or http://…/v1."),
    ],
    out: Out = None,
    by: Annotated[
        Literal["paraphrase", "back-translation"],
        typer.Option("--by", help="Paraphrase, or translate into another language and back."),
    ] = "paraphrase",
    via: Annotated[
        str, typer.Option("--via", help="The language to translate into and back from.")
    ] = "French",
    language: Annotated[str, typer.Option("--language", help="The language of the rows.")] = "English",
    instruction: Annotated[
        str | None,
        typer.Option("--instruction", help="Your own instruction to the model; {text} is the row's text."),
    ] = None,
    variants: Annotated[int, typer.Option("--variants", min=1, help="Rewordings of each row.")] = 1,
    n_rows: Annotated[
        int | None, typer.Option("--rows", min=1, help="Rows to reword, at most, drawn at random.")
    ] = None,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0, help="Sampling temperature; 0 is greedy.")
    ] = 0.7,
    max_new_tokens: Annotated[
        int,
        typer.Option(
            "--max-new-tokens", min=1, help="Tokens of an answer, at most; longer ones are left out."
        ),
    ] = 128,
    max_cost: Annotated[
        float | None,
        typer.Option("--max-cost", help="Budget in USD; no request is sent that could exceed it."),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="The model behind an address.")] = None,
    api_key_env: Annotated[
        str | None, typer.Option("--api-key-env", help="The environment variable that holds the API key.")
    ] = None,
    prices: Annotated[
        str | None, typer.Option("--prices", help="USD for a million tokens read and written: 0.15,0.6.")
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option("--against", help="A further test file; rows that ask its questions are left out."),
    ] = None,
    config: Config = Path("harness.yaml"),
    seed: Seed = 0,
    prompt: Prompt = None,
    reference: Reference = None,
    licenses: License = None,
    notes: Note = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Add training rows that a model wrote in other words.

    Each stands beside the row it was made from.
    """
    from harness.cli.progress_bar import TerminalProgress
    from harness.data.edit import Edit, save
    from harness.data.edit.row_files import row_suffix
    from harness.experiment.generated_rows.augmentation import choose_rows, make_rows, plan

    tests = against or []
    refuse_out(out, [file, *tests], dry_run=dry_run)
    how = _rewriting(by, via, language, instruction, variants, temperature, max_new_tokens, seed, max_cost)
    content = read_all(file)
    roles = roles_of(content, prompt, reference)
    session = _session(by_whom, config, dry_run=dry_run)
    writer = _writer(session, by_whom, model, api_key_env, prices, how)
    evaluated = _gather_evaluated(session, roles, tests, prompt, reference)
    chosen = choose_rows(content, roles, evaluated, n_rows, seed)
    tell = print if dry_run and not as_json else say
    tell(f"{len(chosen.texts):,} of {len(content.rows):,} rows to reword by {writer.name}")
    tell(str(planned := plan(chosen, writer, how)))
    if dry_run or out is None:
        if as_json:
            print_json(planned._asdict())
        say("nothing is asked or written in a dry run")
        return
    in_columns = not row_suffix(out.name).startswith(".json")
    outcomes, spent = make_rows(chosen, writer, how, TerminalProgress(), in_columns=in_columns)
    used = {"with": writer.name, "who_answers": dict(writer.identity), **how._asdict(), "rows": n_rows}
    del used["max_cost"]
    used |= {"evaluated": sum(len(of.questions) for of in evaluated), "against": tests, **roles._asdict()}
    edit = Edit("augment", used, [file], licenses or (), notes or (), cost_usd=spent.cost_usd)
    print_saved(save(edit, outcomes, out), as_json)
    command = f"harness data check {as_argument(str(out))}"
    say(f"next: {command}, then train: {out} on a candidate; its test items stay as they are")


def _rewriting(
    by: Literal["paraphrase", "back-translation"],
    via: str,
    language: str,
    instruction: str | None,
    variants: int,
    temperature: float,
    max_new_tokens: int,
    seed: int,
    max_cost: float | None,
) -> "Rewriting":
    """Write the prompts, and refuse what cannot be asked.

    Raises:
        UserError: options contradict each other, or an instruction has no place for the text.
    """
    from harness.experiment.generated_rows.rewording import PARAPHRASE, TEXT, TRANSLATE, Rewriting

    problems = []
    if instruction is not None and (TEXT not in instruction or by != "paraphrase"):
        found = "an instruction for translations" if by != "paraphrase" else f"no {TEXT} in {instruction!r}"
        expected = f"an instruction with {TEXT} in it, --by paraphrase"
        problems.append(Problem("--instruction", found, expected, f"such as 'Say it shorter: {TEXT}'"))
    if temperature == 0 and variants > 1:
        found = f"{variants} of each row at temperature 0"
        step = "--temperature 0.7, or --variants 1"
        problems.append(Problem("--variants", found, "answers that can differ", step))
    if via.strip().lower() == language.strip().lower() and by == "back-translation":
        problems.append(Problem("--via", via, f"another language than {language}", "--via German"))
    if max_cost is not None and not 0 < max_cost < float("inf"):
        problems.append(Problem("--max-cost", f"{max_cost:g}", "USD above 0", "leave it out for no limit"))
    if problems:
        raise UserError(problems)
    there, back = (TRANSLATE.replace("{language}", to) for to in (via, language))
    prompts = (instruction or PARAPHRASE,) if by == "paraphrase" else (there, back)
    return Rewriting(by, prompts, variants, temperature, 1.0, max_new_tokens, seed=seed, max_cost=max_cost)


def _session(by_whom: str, config: Path, *, dry_run: bool) -> "Session | None":
    """Open the experiment that a candidate is of; for an address the one that is there, if any."""
    if _ADDRESS.match(by_whom):
        return open_session(config, dry_run=True)[0] if config.is_file() else None
    session, _ = open_session(config, None, by_whom, dry_run=dry_run)
    refuse_grid(by_whom, session.candidates, "--with")
    return session


def _writer(
    session: "Session | None",
    by_whom: str,
    model: str | None,
    api_key_env: str | None,
    prices: str | None,
    how: "Rewriting",
) -> "Writer":
    """Return what rewords: a candidate, or the model behind an address.

    Raises:
        UserError: an option is missing, or belongs to an address; or an address cannot or may not be asked.
    """
    from harness.evaluation.sensitive_rows import sensitive_problems
    from harness.experiment.generated_rows.writers import candidate_writer, endpoint_writer

    of_address = {"--model": model, "--api-key-env": api_key_env, "--prices": prices}
    if not _ADDRESS.match(by_whom):
        assert session is not None, "a candidate is one of an experiment"
        if given := [name for name, value in of_address.items() if value is not None]:
            found = f"{', '.join(given)} beside the candidate {by_whom}, whose recipe says that"
            raise UserError(Problem("--with", found, "options of an address, http://…/v1", "leave them out"))
        writer = candidate_writer(session, by_whom)
    else:
        settings = _settings(by_whom, model, api_key_env, prices)
        step = "--with an address of your network, a candidate that answers here, or remove sensitive_data"
        told = (settings, "a writer", "--with", step)
        if session and (problems := list(sensitive_problems(session.experiment, *told))):
            raise UserError(problems)
        writer = endpoint_writer(settings)
    if how.max_cost is not None and writer.planned(1, 1) is None:
        step = "--prices READ,WRITTEN, or usd_per_million_tokens of the candidate"
        raise UserError(Problem("--max-cost", "no prices to count it by", "prices of the endpoint", step))
    return writer


def _settings(url: str, model: str | None, api_key_env: str | None, prices: str | None) -> "Settings":
    from pydantic import ValidationError

    from harness.models.openai_api import Settings, problems

    if model is None:
        raise UserError(Problem("--with", f"{url} without --model", "the model to ask there", "--model NAME"))
    written = prices.split(",") if prices is not None else None
    priced = None if written is None else dict(zip(("input", "output"), written, strict=False))
    if written is not None and len(written) != 2:
        expected = "USD for a million tokens read and written"
        raise UserError(Problem("--prices", repr(prices), expected, "such as 0.15,0.6"))
    try:
        settings = Settings(
            base_url=url,
            model=model,
            protocol="chat",
            api_key_env=api_key_env,
            usd_per_million_tokens=priced,
        )
    except ValidationError as error:
        found = error.errors()[0]
        option = {"base_url": "--with", "model": "--model", "api_key_env": "--api-key-env"}
        where = option.get(str(found["loc"][0]), "--prices")
        said = found["msg"].removeprefix("Value error, ")  # never what was given: it may hold a secret
        raise UserError(Problem(where, said, "settings of an endpoint", "correct it")) from None
    if lacking := list(problems(settings, "--with")):
        raise UserError(lacking)
    return settings


def _gather_evaluated(
    session: "Session | None", roles: "Roles", tests: list[str], prompt: str | None, reference: str | None
) -> "list[Evaluated]":
    """Gather what rewordings may not ask: what the experiment evaluates, and the files that are named."""
    from harness.experiment.generated_rows.augmentation import evaluated_by, evaluated_in

    found = [evaluated_by(session)] if session else []
    for test in tests:
        content = read_all(test)
        found.append(evaluated_in(content, roles_of_test(content, prompt, reference), roles))
    if not found:
        say("warning: rows are held against no test items; name them: --against FILE, or -c harness.yaml")
    return found
