"""Command that adds rows in other words: data augment.

Invariant: a new file stands beside a manifest with the prompts, never over a file; what it takes is said
before a model is asked.
"""

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from harness.cli.app import BY_A_MODEL, data_app, print_json, say
from harness.cli.data import (
    File,
    Out,
    Remarks,
    RowColumns,
    print_saved,
    read_all,
    refuse_out,
    roles_of,
    roles_of_test,
)
from harness.cli.options import (
    CONFIG,
    Config,
    DryRun,
    ExperimentFile,
    Json,
    Option,
    Seed,
    Temperature,
    name_beside,
    refuse_grid,
    verb,
)
from harness.errors import CandidateFailed, Problem, UserError, as_operand, refuse

if TYPE_CHECKING:
    from harness.data.columns import Roles
    from harness.evaluation.session import Session
    from harness.experiment.generated_rows import Writer
    from harness.experiment.generated_rows.augmentation import EvaluatedQuestions, Rewriting
    from harness.models.openai_api import Settings

_OPTIONS = {"base_url": "--with", "api_key_env": "--api-key-env", "a model that": "a --model that"}
_ADDRESS = re.compile(r"https?://")


class Wording(NamedTuple):
    """Rewording of texts: a paraphrase, a translation there and back, or an instruction of your own."""

    by: Annotated[
        Literal["paraphrase", "back-translation"],
        Option("Paraphrase, or translate into another language and back."),
    ] = "paraphrase"
    via: Annotated[str, Option("The language to translate into and back from.")] = "French"
    language: Annotated[str, Option("The language of the rows.")] = "English"
    instruction: Annotated[
        str | None, Option("Your own instruction to the model; {text} is the row's text.")
    ] = None
    variants: Annotated[int, Option("Rewordings of each row.", min=1)] = 1
    temperature: Temperature = 0.7
    max_new_tokens: Annotated[
        int, Option("Tokens of an answer, at most; longer ones are left out.", min=1)
    ] = 128
    max_cost: Annotated[float | None, Option("Budget in USD; no request is sent that could exceed it.")] = (
        None
    )
    seed: Seed = 0


class Endpoint(NamedTuple):
    """A model behind an address, and what it is asked with."""

    model: Annotated[str | None, Option("The model behind an address.")] = None
    api_key_env: Annotated[str | None, Option("The environment variable that holds the API key.")] = None
    prices: Annotated[str | None, Option("USD for a million tokens read and written: 0.15,0.6.")] = None


@verb(
    data_app,
    "harness data augment train.csv --with lora --out more.csv",
    "harness data augment train.csv --with http://localhost:8000/v1 --model qwen --out more.csv",
    name="augment",
    heading=BY_A_MODEL,
)
def data_augment(
    file: File,
    by_whom: Annotated[
        str, Option("The model that rewords: a candidate of harness.yaml, or http://…/v1.", "--with")
    ],
    *,
    out: Out = None,
    wording: Wording,
    n_rows: Annotated[
        int | None, Option("Rows to reword, at most, sampled at random.", "--rows", min=1)
    ] = None,
    endpoint: Endpoint,
    against: Annotated[
        list[str] | None, Option("A further test file; rows with its questions are left out.")
    ] = None,
    config: Config = CONFIG,
    named: RowColumns,
    remarks: Remarks,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Add training rows that a model wrote in other words.

    Each stands beside the row it was made from.
    """
    from harness.cli.progress_bar import TerminalProgress
    from harness.data.columns import column_options
    from harness.data.edit import row_suffix, save
    from harness.experiment.generated_rows.augmentation import choose_rows, make_rows, plan

    tests = against or []
    refuse_out(out, [file, *tests], dry_run=dry_run)
    how = _write_prompts(wording)
    content = read_all(file)
    roles = roles_of(content, named)
    session = _session(by_whom, config, dry_run=dry_run)
    writer = _writer(session, by_whom, endpoint, how)
    evaluated = _gather_evaluated(session, roles, tests, named)
    chosen = choose_rows(content, roles, evaluated, n_rows, how.seed)
    tell = print if dry_run and not as_json else say
    tell(f"{len(chosen.texts):,} of {len(content.rows):,} rows to reword by {writer.name}")
    tell(str(planned := plan(chosen, writer, how)))
    if dry_run or out is None:
        if as_json:
            print_json(planned._asdict())
        say("a dry run sends no request and writes nothing")
        return
    in_columns = not row_suffix(out.name).startswith(".json")
    with _steps_as_options(by_whom):
        outcomes, spent = make_rows(chosen, writer, how, TerminalProgress(), in_columns=in_columns)
    used = {"with": writer.name, "who_answers": dict(writer.identity), **how._asdict(), "rows": n_rows}
    del used["max_cost"]
    used |= {"evaluated": sum(len(of.questions) for of in evaluated), "against": tests, **roles._asdict()}
    edit = remarks.edit("augment", used, [file], spent.cost_usd)
    print_saved(save(edit, outcomes, out), as_json)
    command = shlex.join(["harness", "data", "check", as_operand(str(out)), *column_options(*named)])
    train = f"train: {name_beside(config, out)} on a candidate in {config}"
    say(f"next: {command}, then {train}; its test items stay as they are")


@contextmanager
def _steps_as_options(by_whom: str) -> Iterator[None]:
    """Name the settings of an address by the options that give them, where it cannot be asked."""
    try:
        yield
    except CandidateFailed as error:
        if not _ADDRESS.match(by_whom):
            raise
        step = error.knob
        for setting, option in _OPTIONS.items():
            step = step.replace(setting, option)
        raise CandidateFailed(error.reason, step) from None


def _write_prompts(wording: Wording) -> "Rewriting":
    """Write the prompts, and refuse what cannot be asked."""
    from harness.experiment.generated_rows.augmentation import PARAPHRASE, TEXT, TRANSLATE, Rewriting

    by, via, language, instruction, variants, temperature, max_new_tokens, max_cost, seed = wording
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
    refuse(problems)
    there, back = (TRANSLATE.replace("{language}", to) for to in (via, language))
    prompts = (instruction or PARAPHRASE,) if by == "paraphrase" else (there, back)
    return Rewriting(by, prompts, variants, temperature, 1.0, max_new_tokens, seed=seed, max_cost=max_cost)


def _session(by_whom: str, config: Path, *, dry_run: bool) -> "Session | None":
    """Open the experiment that a candidate is of; for an address the one that is there, if any."""
    at = ExperimentFile(config=config)
    if _ADDRESS.match(by_whom):
        return at.open_session(dry_run=True)[0] if config.is_file() else None
    session, _ = at.open_session(by_whom, dry_run=dry_run)
    refuse_grid(by_whom, session.candidates, "--with")
    return session


def _writer(session: "Session | None", by_whom: str, endpoint: Endpoint, how: "Rewriting") -> "Writer":
    """Return what rewords: a candidate, or the model behind an address."""
    from harness.evaluation.runner import sensitive_problems
    from harness.experiment.generated_rows import candidate_writer, endpoint_writer

    of_address = {f"--{name.replace('_', '-')}": value for name, value in endpoint._asdict().items()}
    if not _ADDRESS.match(by_whom):
        assert session is not None, "a candidate is one of an experiment"
        if given := [name for name, value in of_address.items() if value is not None]:
            found = f"{', '.join(given)} and the candidate {by_whom}, whose recipe says that already"
            raise UserError(Problem("--with", found, "options of an address, http://…/v1", "leave them out"))
        writer = candidate_writer(session, by_whom)
    else:
        settings = _settings(by_whom, endpoint)
        step = "--with an address of your network, a candidate that answers here, or remove sensitive_data"
        told = (settings, "a writer", "--with", step)
        if session and (problems := list(sensitive_problems(session.experiment, *told))):
            raise UserError(problems)
        writer = endpoint_writer(settings)
    if how.max_cost is not None and writer.planned(1, 1) is None:
        step = "--prices READ,WRITTEN, or usd_per_million_tokens of the candidate"
        raise UserError(Problem("--max-cost", "no prices to count it by", "prices of the endpoint", step))
    return writer


def _settings(url: str, endpoint: Endpoint) -> "Settings":
    from pydantic import ValidationError

    from harness.models.openai_api import Settings, problems

    model, api_key_env, prices = endpoint
    if model is None:
        raise UserError(Problem("--with", f"{url} without --model", "the model to ask there", "--model NAME"))
    written = prices.split(",") if prices is not None else None
    priced = None if written is None else dict(zip(("input", "output"), written, strict=False))
    if written is not None and len(written) != 2:
        expected = "USD for a million tokens read and written"
        raise UserError(Problem("--prices", repr(prices), expected, "such as 0.15,0.6"))
    try:
        settings = Settings(
            base_url=url, model=model, protocol="chat", api_key_env=api_key_env, usd_per_million_tokens=priced
        )
    except ValidationError as error:
        found = error.errors()[0]
        option = {"base_url": "--with", "model": "--model", "api_key_env": "--api-key-env"}
        where = option.get(str(found["loc"][0]), "--prices")
        said = found["msg"].removeprefix("Value error, ")  # never what was given: it may hold a secret
        raise UserError(Problem(where, said, "settings of an endpoint", "correct it")) from None
    refuse(problems(settings, "--with"))
    return settings


def _gather_evaluated(
    session: "Session | None", roles: "Roles", tests: list[str], named: RowColumns
) -> "list[EvaluatedQuestions]":
    """Gather what rewordings may not ask: what the experiment evaluates, and the files that are named."""
    from harness.experiment.generated_rows.augmentation import find_evaluated, read_evaluated

    found = [find_evaluated(session)] if session else []
    for test in tests:
        content = read_all(test)
        found.append(read_evaluated(content, roles_of_test(content, named), roles))
    if not found:
        say("warning: rows are held against no test items; name them: --against FILE, or -c harness.yaml")
    return found
