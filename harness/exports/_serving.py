"""Serving of a run's export by an existing server, which is ready once it gives the stored answers.

Invariant: each served file was hashed anew; the server ends with this process, and this one with the server.
The answers are compared as far as rounding lets them agree: a prompt of another length, or more answers that
differ than rounding explains, ends the server.
Source: the rate at which rounding changes an answer is that of the quickstart's LoRA, whose bf16 answers
differ from those in fp32 in 28 of 200 answers of 6.3 tokens
"""

import os
import socket
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from harness import plugins, store
from harness.errors import CandidateFailed, HarnessError, Problem, UserError, did_you_mean, refuse
from harness.evaluation.session import Session
from harness.experiment import SentPrompt, find_sent_prompts
from harness.exports._plan import export_run, plan_export
from harness.formatting import pluralize
from harness.models import artefacts, openai_api, vllm
from harness.models.serving_programs import (
    AT_ONCE,
    FORMATS,
    Address,
    ServingProgram,
    Way,
    describe_program,
    refuse_server,
)
from harness.models.supervision import ServerProcess, start_server
from harness.models.weight_files import content_digest
from harness.records import Limits, Output, PromptText, Run, SampleResult
from harness.spec import Experiment, Recipe
from harness.stats import binomial_p
from harness.store.exports import RECORD, Export, exports_of, main_file, read_export, verify_export

N_ITEMS = 20
_MOST_TOKENS = 16  # of an answer that are compared; later ones differ by rounding alone
_FLIPPED_PER_TOKEN = 1 - (1 - 28 / 200) ** (1 / 6.3)
_ALPHA = 0.001  # chance that a right server is refused
_MOST_SHOWN = 3


class ServingPlan(NamedTuple):
    """A run's export with the server that is to serve it."""

    run: Run
    folder: Path
    export: Export
    limits: Limits
    address: Address
    program: ServingProgram


class Readiness(NamedTuple):
    """Answers of a ready server: how many are the stored ones, of how many; and the first prompt sent."""

    n_same: int
    n: int
    request: SentPrompt


def plan_serving(session: Session, run: Run, to: str | None, address: Address) -> ServingPlan:
    """Find the export of a run that is to be served, or make it; its files are hashed anew.

    Raises:
        UserError: the run's answers cannot be asked of a server, its export cannot be made or has changed,
            or the server or a key is missing.
    """
    # Refuse a run whose stored answers no server can give again by OpenAI's protocol.
    recipe, task = Recipe.model_validate(run.recipe), session.target.task
    found = ""
    if recipe.answer == "rank" or task.kind != "generate":
        found = "answers that are chosen by their log-probabilities, which no chat gives"
    elif recipe.sampling or task.lm_eval or not task.chat_template:
        how = "drawn at a temperature" if recipe.sampling else "written without a chat template"
        found = f"answers that were {how}, which a chat does not give again"
    if found:
        step = "harness export writes its weights for a server of your own"
        raise UserError(Problem(f"run {run.run_id}", found, "greedy answers to messages", step))
    is_artefact, policy = plugins.find_method(run.method).makes_artefact, session.experiment.vllm
    known = _read_artefact(run) if is_artefact else exports_of(session.store, run.run_id)
    way = _choose(session.experiment, to, list(known.values()))
    refuse_server(way, address, policy)
    if folders := [folder for folder, one in known.items() if one.format == FORMATS[way]]:
        folder = max(folders, key=lambda one: known[one].created)
        export = verify_export(folder)
        _refuse_unnoted(session, run, folder, export)
    elif is_artefact:
        found = f"an artefact in the format {', '.join(one.format for one in known.values())}"
        raise UserError(Problem(f"--to {way}", found, FORMATS[way], "name the run that it was exported from"))
    else:
        folder, export, _ = export_run(session, plan_export(session, run, FORMATS[way]))
    limits = Limits(export.limits["max_new_tokens"], tuple(export.limits["stop"]))
    file = main_file(folder, export)
    program = describe_program(way, file, run.candidate, limits, address, policy)
    return ServingPlan(run, folder, export, limits, address, program)


def _read_artefact(run: Run) -> dict[Path, Export]:
    """Read the export that a run of an artefact answered with.

    Raises:
        UserError: it is no export, or another one than answered.
    """
    path = Path(run.recipe["path"])
    folder, found = artefacts.find_tokenizer_folder(path), ""
    if not (folder / RECORD).is_file():
        found, step = "no export.json", "harness export of the run that it was made from, then serve that"
    elif artefacts.format_of(path) == "gguf" and run.weights_digest != content_digest(
        artefacts.artefact_files(path)
    ):
        found = f"another content than {run.run_id} answered with"
        step = f"harness compare --candidates {run.candidate}"
    if found:
        raise UserError(Problem(str(path), found, "the export that was measured", step))
    return {folder: read_export(folder)}


def _refuse_unnoted(session: Session, run: Run, folder: Path, export: Export) -> None:
    """Refuse an export whose files are not those that were noted when its run became the champion."""
    entries = store.read_history(session.store.folder.parent, session.target.task.name).entries
    noted = [one.exports for one in entries if one.champion.run_id == run.run_id and one.event == "promotion"]
    known = noted[-1].get(folder.name) if noted else None
    if known and known != {name: file.sha256 for name, file in export.files.items()}:
        step = f"delete it, then harness export {run.run_id} --to {export.format}"
        raise UserError(Problem(str(folder), "other files than at the promotion", "those files", step))


def _choose(experiment: Experiment, to: str | None, known: Sequence[Export]) -> Way:
    """Choose the server: the one that is named, vLLM where its command is written, or by the last export."""
    for way in FORMATS:
        if way == to:
            return way
    if to is not None:
        raise UserError(Problem("--to", repr(to), ", ".join(FORMATS), did_you_mean(to, FORMATS)))
    if experiment.engine == "vllm" or "command" in experiment.vllm.model_fields_set:
        return "vllm"
    made = sorted((one.created, one.format) for one in known)
    return "gguf" if [form for _, form in made if form in ("gguf", "merged")][-1:] == ["gguf"] else "merged"


def start(session: Session, plan: ServingPlan) -> tuple[ServerProcess, Readiness]:
    """Start the server and wait until it gives the stored answers.

    Raises:
        UserError: the port is taken, or there is no key.
        HarnessError: the server ended, or its answers are not those of the run; it is ended.
    """
    address, program = plan.address, plan.program
    _refuse_taken(address)
    settings = openai_api.Settings(
        base_url=f"{address.url}/v1",
        model=program.model,
        api_key_env=address.api_key_env,
        protocol="chat",
        num_concurrent=AT_ONCE,
        max_retries=1,
    )
    refuse(openai_api.problems(settings, "--api-key-env"))
    asked = _choose_items(session, plan.run)
    session.unload()
    log = session.store.folder / ".serving" / f"{plan.run.run_id}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    names = {name: os.path.expandvars(value) for name, value in program.environment.items()}
    inherited = {name: value for name, value in os.environ.items() if name not in vllm.OURS}
    running = start_server(program.name, program.command, address.url, log, inherited | names, program.folder)
    try:
        with session.progress.stage(f"{program.name} starts") as advance:
            timeout_s = session.experiment.vllm.start_timeout
            if not running.is_started(timeout_s, "vllm.start_timeout", advance):
                raise HarnessError(running.describe_end())
        with session.progress.stage(f"{pluralize(len(asked), 'stored answer')} asked again"):
            return running, _compare(settings, plan, asked)
    except CandidateFailed as error:
        words = running.last_words()
        running.stop()
        raise HarnessError(f"{error}; {words}") from None
    except BaseException:
        running.stop()
        raise


def wait(running: ServerProcess) -> None:
    """Wait for the end of the server.

    Raises:
        HarnessError: it ended; with its last lines.
    """
    try:
        while running.supervisor.poll() is None:
            time.sleep(0.2)
    finally:
        running.stop()
    raise HarnessError(running.describe_end())


def _refuse_taken(address: Address) -> None:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with closing(socket.socket(family)) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((address.host, address.port))
        except OSError as error:
            step = f"--port {address.port + 1}, or end what listens there"
            found = f"{address.host}:{address.port}, where no server can listen ({error.strerror or error})"
            raise UserError(Problem("--port", found, "a free address of this machine", step)) from None


def _choose_items(session: Session, run: Run) -> list[tuple[SampleResult, SentPrompt]]:
    """Choose test items of the target, spread over all, with the prompts that were sent."""
    task = session.target.task.name
    rows = [one for one in store.read_rows(session.store, run.rows[f"{task}/test"]) if one.status != "error"]
    chosen = rows[:: max(1, len(rows) // N_ITEMS)][:N_ITEMS]
    prompts = find_sent_prompts(session, run, task, [row.example_id for row in chosen])
    asked = [(row, prompts[row.example_id]) for row in chosen]
    same = [one for one in asked if one[1].digest == one[0].prompt_digest]
    if len(same) < len(asked) or not asked:
        raise HarnessError(
            f"{run.run_id}: found {len(asked) - len(same)} of {len(asked)} prompts of {task} that are other"
            " ones by today's files; expected those that were sent; next: harness compare --candidates "
            f"{run.candidate}, then serve its run"
        )
    return asked


def _compare(
    settings: openai_api.Settings, plan: ServingPlan, asked: Sequence[tuple[SampleResult, SentPrompt]]
) -> Readiness:
    """Ask the server the stored prompts, and compare lengths of prompts and texts of answers."""
    server = openai_api.Server(settings)
    candidate = openai_api.ChatCandidate(server, plan.run.weights_digest)
    prompts = [one.context for one in candidate.encode_all([PromptText(sent.messages) for _, sent in asked])]
    limits = plan.limits._replace(max_new_tokens=min(plan.limits.max_new_tokens, _MOST_TOKENS))
    try:
        answers = candidate.generate(prompts, limits)
    finally:
        server.api.close()
    rows = [row for row, _ in asked]
    lengths = [
        f"the prompt of {row.example_id} has {answer.n_prompt_tokens} tokens, stored {row.n_prompt_tokens}"
        for row, answer in zip(rows, answers, strict=True)
        if answer.n_prompt_tokens not in (0, row.n_prompt_tokens)
    ]
    others = [
        f"{row.example_id} {answer.error or answer.text!r}, stored {row.text!r}"
        for row, answer in zip(rows, answers, strict=True)
        if not _agrees(row, answer)
    ]
    if lengths:
        step = "export again, and compare chat template and tokenizer"
        raise _refusal(plan, "prompts with other lengths than stored", lengths, len(rows), step)
    flipped = [1 - (1 - _FLIPPED_PER_TOKEN) ** max(1, min(row.n_output_tokens, _MOST_TOKENS)) for row in rows]
    if binomial_p(len(others), len(rows), sum(flipped) / len(rows)) < _ALPHA:
        step = f"harness export {plan.run.run_id} --to {plan.export.format}, with another --quantize"
        raise _refusal(plan, "answers other than stored, more than rounding changes", others, len(rows), step)
    return Readiness(len(rows) - len(others), len(rows), asked[0][1])


def _agrees(row: SampleResult, answer: Output) -> bool:
    """Tell whether an answer is the stored one; of a longer one its first tokens."""
    text, stored = answer.text.rstrip("\ufffd").strip(), row.text.strip()
    return not answer.error and (
        text == stored or (answer.finish_reason == "length" and stored.startswith(text))
    )


def _refusal(plan: ServingPlan, what: str, differences: Sequence[str], n: int, step: str) -> HarnessError:
    """Phrase what a server answers otherwise than its run, with the first differences."""
    shown = "; ".join(differences[:_MOST_SHOWN])
    return HarnessError(
        f"{plan.program.name} with {plan.folder}: found {len(differences)} of {n} {what} ({shown}); expected "
        f"those of {plan.run.run_id}; next: {step}"
    )
