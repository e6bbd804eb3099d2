"""Serving of a run's export by an existing server, which is ready once it gives the stored answers.

Invariant: each served file was hashed again; the server ends with this process, and this process with the
server. Keys never appear in a command line or file. Source: documentation of `vllm serve`, of llama.cpp's
tools/server and of `transformers serve`; rounding changes as many answers as in the quickstart's LoRA, whose
bf16 answers differ from those in fp32 in 28 of 200 answers of 6.3 tokens
"""

import os
import shlex
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from importlib.metadata import version
from importlib.util import find_spec
from json import dumps
from pathlib import Path
from typing import Literal, NamedTuple, cast

from harness import plugins, store
from harness.errors import CandidateFailed, HarnessError, UserError, did_you_mean, refuse
from harness.evaluation.session import Session
from harness.experiment import SentPrompt, find_sent_prompts
from harness.exports._plan import export_run, plan_export
from harness.formatting import pluralize
from harness.models import artefacts, openai_api, programs, vllm
from harness.models.openai_api import is_loopback
from harness.models.programs import ServerProcess
from harness.models.weight_files import content_digest
from harness.records import Limits, PromptText, Run, SampleResult
from harness.spec import Experiment, Recipe, VllmPolicy
from harness.stats import binomial_p
from harness.store import EXPORT_RECORD, Export, exports_of, main_file, read_export, verify_export

Way = Literal["gguf", "merged", "vllm"]
FORMATS: Mapping[Way, str] = {"gguf": "gguf", "merged": "merged", "vllm": "merged"}  # export format of each
AT_ONCE = 4  # concurrent requests
_LLAMA_IMAGE = "ghcr.io/ggml-org/llama.cpp:server"
_LLAMA_SERVER = Path(artefacts.__file__).with_name("llama_server.py")
_NEEDED = {"gguf": ("xllamacpp",), "merged": ("fastapi", "uvicorn", "openai")}
N_ITEMS = 20
_MOST_TOKENS = 16  # compared tokens of an answer; later ones may differ by rounding alone
_FLIPPED_PER_TOKEN = 1 - (1 - 28 / 200) ** (1 / 6.3)
_ALPHA = 0.001  # probability of refusing a correct server
_MOST_SHOWN = 3


class Address(NamedTuple):
    """Address of a server: host, port, and the environment variable with its key."""

    host: str
    port: int
    api_key_env: str | None

    @property
    def url(self) -> str:
        """URL of the server from this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://{_bracket(host)}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        return is_loopback(f"http://{_bracket(self.host)}")


def _bracket(host: str) -> str:
    return f"[{host}]" if ":" in host else host


class ServingProgram(NamedTuple):
    """Command of a server in its folder, with additional environment variables and compose file.

    `model` is the model name for requests; `environment` maps names to values, in which `$NAME` is the key.
    """

    name: str
    model: str
    command: list[str]
    folder: Path
    environment: dict[str, str]
    compose: str

    def as_shell(self) -> str:
        """Return the command for a shell."""
        # A server with an empty key would accept requests without one.
        assignments = []
        for name, value in self.environment.items():
            text = f"${{{value[1:]}:?}}" if value[:1] == "$" else value
            assignments.append(f'{name}="{text}"')
        return " ".join(["cd", shlex.quote(str(self.folder)), "&&", *assignments, shlex.join(self.command)])


def describe_program(
    kind: Way, file: Path, name: str, limits: Limits, address: Address, policy: VllmPolicy
) -> ServingProgram:
    """Describe the server of an exported file or folder."""
    bind, bind_all = (["--host", host, "--port", str(address.port)] for host in (address.host, "0.0.0.0"))
    if kind == "gguf":
        shared = ["--alias", name, "--parallel", str(AT_ONCE)]
        key = ["--api-key-env", address.api_key_env] if address.api_key_env else []
        max_tokens = str(limits.max_new_tokens)
        options = ["--max-tokens", max_tokens, *bind, *key]
        command = [sys.executable, "-P", str(_LLAMA_SERVER), file.name, *shared, *options]
        image_options = ["--n-predict", max_tokens, "--temp", "0", "--metrics", *bind_all]
        in_image = ["--model", f"/model/{file.name}", *shared, *image_options]
        compose = _compose(_LLAMA_IMAGE, in_image, file.parent, address, "LLAMA_API_KEY")
        return ServingProgram("llama.cpp's server", name, command, file.parent, {}, compose)
    if kind == "merged":
        # If started in the parent folder, the server knows the model by the folder's name.
        words = ["serve", file.name, *bind]
        command = [sys.executable, "-P", "-m", "transformers.cli.transformers", *words]
        torch = version("torch").partition("+")[0]
        install = f"pip install 'transformers[serving]=={version('transformers')}' torch=={torch}"
        inside = shlex.join(["transformers", "serve", file.name, *bind_all])
        script = ["sh", "-c", f"{install} && cd / && {inside}"]
        compose = _compose("python:3.11-slim", script, file, address, at=f"/{file.name}")
        variables = {"HF_HUB_OFFLINE": "1"}
        return ServingProgram("`transformers serve`", file.name, command, file.parent, variables, compose)
    program = vllm.program_of(policy)
    assert program is not None, "a program that is not there is refused"
    defaults = dumps({"temperature": 0, "max_new_tokens": limits.max_new_tokens})
    shared = ["--served-model-name", name, "--override-generation-config", defaults, *policy.args]
    command = [program, "serve", str(file.resolve()), *bind, *shared]
    variables = {"VLLM_API_KEY": f"${address.api_key_env}"} if address.api_key_env else {}
    in_image = ["--model", "/model", *bind_all, *shared]
    image = f"vllm/vllm-openai:v{vllm.release_of(policy)}"
    compose = _compose(image, in_image, file, address, "VLLM_API_KEY")
    variables |= {"VLLM_NO_USAGE_STATS": "1"}
    return ServingProgram("vLLM's server", name, command, file, variables, compose)


def refuse_server(kind: Way, address: Address, policy: VllmPolicy) -> None:
    """Refuse a public address without a key, a key for a server without keys, and a missing server."""
    if kind == "merged" and (address.api_key_env or not address.is_local):
        option = "--api-key-env" if address.api_key_env else f"--host {address.host}"
        found, expected = f"{option}, where `transformers serve` checks no key", "a server that checks one"
        raise UserError("--to merged", found, expected, "--to gguf, --to vllm, or this machine alone")
    if not address.is_local and not address.api_key_env:
        found, step = f"{address.host}, and no --api-key-env", "export KEY=…, then --api-key-env KEY"
        raise UserError("--host", found, "a key beyond this machine", step)
    if kind == "vllm":
        refuse(vllm.problems(policy))
    for package in _NEEDED.get(kind, ()):
        if find_spec(package) is None:
            step = "pip install 'harness-evals[serve]'"
            raise UserError(f"--to {kind}", f"no package {package}", "the server's packages", step)


def _compose(
    image: str, command: list[str], folder: Path, address: Address, variable: str = "", at: str = "/model"
) -> str:
    key = {"environment": {variable: f"${{{address.api_key_env}:?}}"}} if address.api_key_env else {}
    model = {
        "image": image,
        "command": command,
        "volumes": [f"{folder.resolve()}:{at}:ro"],
        "ports": [f"{_bracket(address.host)}:{address.port}:{address.port}"],
        **key,
    }
    return dumps({"services": {"model": model}}, indent=2)


class ServingPlan(NamedTuple):
    """Run's export with the server for it."""

    run: Run
    folder: Path
    export: Export
    limits: Limits
    address: Address
    program: ServingProgram


def plan_serving(session: Session, run: Run, to: str | None, address: Address) -> ServingPlan:
    """Find or make the export of a run to serve; its files are hashed again."""
    # Refuse a run whose answers no server can reproduce by OpenAI's protocol.
    recipe, task = Recipe.model_validate(run.recipe), session.target.task
    found = ""
    if recipe.answer == "rank" or task.kind != "generate":
        found = "answers that are chosen by their log-probabilities, which no chat gives"
    elif recipe.sampling or task.lm_eval or not task.chat_template:
        how = "drawn at a temperature" if recipe.sampling else "written without a chat template"
        found = f"answers that were {how}, which a chat does not give again"
    if found:
        step = "harness export writes its weights for a server of your own"
        raise UserError(f"run {run.run_id}", found, "greedy answers to messages", step)
    is_artefact, policy = plugins.find_method(run.method).makes == "artefact", session.experiment.vllm
    exports = {} if is_artefact else exports_of(session.store, run.run_id)
    if is_artefact:
        path = Path(run.recipe["path"])
        folder, step = artefacts.find_tokenizer_folder(path), ""
        if not (folder / EXPORT_RECORD).is_file():
            found, step = "no export.json", "harness export of the run that it was made from, then serve that"
        elif artefacts.format_of(path) == "gguf" and run.weights_digest != content_digest(
            artefacts.artefact_files(path)
        ):
            found = f"another content than {run.run_id} answered with"
            step = f"harness compare --candidates {run.candidate}"
        if step:
            raise UserError(str(path), found, "the export that was measured", step)
        exports = {folder: read_export(folder)}
    kind = _choose(session.experiment, to, list(exports.values()))
    refuse_server(kind, address, policy)
    if folders := [folder for folder, export in exports.items() if export.format == FORMATS[kind]]:
        folder = max(folders, key=lambda path: exports[path].created)
        export = verify_export(folder)
        entries = store.read_history(session.store.folder.parent, task.name).entries
        promotions = [entry for entry in entries if entry.event == "promotion"]
        promotions = [entry for entry in promotions if entry.champion.run_id == run.run_id]
        hashes = [entry.exports.get(folder.name) for entry in promotions]
        if hashes and hashes[-1] not in (None, {name: file.sha256 for name, file in export.files.items()}):
            step = f"delete it, then harness export {run.run_id} --to {export.format}"
            raise UserError(str(folder), "other files than at the promotion", "those files", step)
    elif is_artefact:
        found = f"an artefact in the format {', '.join(export.format for export in exports.values())}"
        raise UserError(f"--to {kind}", found, FORMATS[kind], "name the run that it was exported from")
    else:
        folder, export, _ = export_run(session, plan_export(session, run, FORMATS[kind]))
    limits = Limits(export.limits["max_new_tokens"], tuple(export.limits["stop"]))
    file = main_file(folder, export)
    program = describe_program(kind, file, run.candidate, limits, address, policy)
    return ServingPlan(run, folder, export, limits, address, program)


def _choose(experiment: Experiment, to: str | None, exports: Sequence[Export]) -> Way:
    """Choose the server: the named one, vLLM if its command is given, or that of the latest export."""
    if to in FORMATS:
        return cast("Way", to)
    if to is not None:
        raise UserError("--to", repr(to), ", ".join(FORMATS), did_you_mean(to, FORMATS))
    if experiment.engine == "vllm" or "command" in experiment.vllm.model_fields_set:
        return "vllm"
    servable = [export for export in exports if export.format in ("gguf", "merged")]
    latest = max(servable, key=lambda export: export.created, default=None)
    return "gguf" if latest and latest.format == "gguf" else "merged"


def start(session: Session, plan: ServingPlan) -> tuple[ServerProcess, tuple[int, int, SentPrompt]]:
    """Start a server; return how many of how many answers equal the stored ones, and the first prompt."""
    address, program = plan.address, plan.program
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with closing(socket.socket(family)) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((address.host, address.port))
        except OSError as error:
            step = f"--port {address.port + 1}, or end what listens there"
            found = f"{address.host}:{address.port}, where no server can listen ({error.strerror or error})"
            raise UserError("--port", found, "a free address of this machine", step) from None
    settings = openai_api.Settings(
        base_url=f"{address.url}/v1",
        model=program.model,
        api_key_env=address.api_key_env,
        protocol="chat",
        num_concurrent=AT_ONCE,
        max_retries=1,
    )
    refuse(openai_api.problems(settings, "--api-key-env"))
    # Evenly spread test items of the target, with the prompts that were sent.
    run, task = plan.run, session.target.task.name
    rows = [row for row in store.read_rows(session.store, run.rows[f"{task}/test"]) if row.status != "error"]
    chosen = rows[:: max(1, len(rows) // N_ITEMS)][:N_ITEMS]
    prompts = find_sent_prompts(session, run, task, [row.example_id for row in chosen])
    pairs = [(row, prompts[row.example_id]) for row in chosen]
    n_other = sum(prompt.digest != row.prompt_digest for row, prompt in pairs)
    if n_other or not pairs:
        raise HarnessError(
            f"{run.run_id}: found {n_other} of {len(pairs)} prompts of {task} that are other ones by today's "
            f"files; expected those that were sent; next: harness compare --candidates {run.candidate}, then "
            "serve its run"
        )
    session.unload()
    log = session.store.folder / ".serving" / f"{plan.run.run_id}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    names = {name: os.path.expandvars(value) for name, value in program.environment.items()}
    inherited = {name: value for name, value in os.environ.items() if name not in vllm.OURS}
    supervisor = programs.start(program.command, program.folder, log, inherited | names)
    running = ServerProcess(program.name, supervisor, address.url, log, [])
    try:
        with session.progress.stage(f"{program.name} starts") as advance:
            if not running.is_started(session.experiment.vllm.start_timeout, "vllm.start_timeout", advance):
                raise HarnessError(running.describe_end())
        with session.progress.stage(f"{pluralize(len(pairs), 'stored answer')} asked again"):
            return running, _compare(settings, plan, pairs)
    except CandidateFailed as error:
        words = running.last_words()
        running.stop()
        raise HarnessError(f"{error}; {words}") from None
    except BaseException:
        running.stop()
        raise


def wait(running: ServerProcess) -> None:
    """Wait for the end of the server, then raise a HarnessError with its last lines."""
    try:
        while running.supervisor.poll() is None:
            time.sleep(0.2)
    finally:
        running.stop()
    raise HarnessError(running.describe_end())


def _compare(
    settings: openai_api.Settings, plan: ServingPlan, pairs: Sequence[tuple[SampleResult, SentPrompt]]
) -> tuple[int, int, SentPrompt]:
    server = openai_api.Server(settings)
    candidate = openai_api.ChatCandidate(server, plan.run.weights_digest)
    prompts = [p.context for p in candidate.encode_all([PromptText(sent.messages) for _, sent in pairs])]
    limits = plan.limits._replace(max_new_tokens=min(plan.limits.max_new_tokens, _MOST_TOKENS))
    try:
        answers = candidate.generate(prompts, limits)
    finally:
        server.api.close()
    rows = [row for row, _ in pairs]
    lengths, misses = list[str](), list[str]()
    for row, answer in zip(rows, answers, strict=True):
        n, n_stored = answer.n_prompt_tokens, row.n_prompt_tokens
        if n not in (0, n_stored):
            lengths.append(f"the prompt of {row.example_id} has {n} tokens, stored {n_stored}")
        text, stored = answer.text.rstrip("\ufffd").strip(), row.text.strip()
        # Only the first tokens of a longer answer are compared.
        is_same = text == stored or (answer.finish_reason == "length" and stored.startswith(text))
        if answer.error or not is_same:
            misses.append(f"{row.example_id} {answer.error or answer.text!r}, stored {row.text!r}")
    if lengths:
        step = "export again, and compare chat template and tokenizer"
        raise _refusal(plan, "prompts with other lengths than stored", lengths, len(rows), step)
    flipped = [1 - (1 - _FLIPPED_PER_TOKEN) ** max(1, min(row.n_output_tokens, _MOST_TOKENS)) for row in rows]
    if binomial_p(len(misses), len(rows), sum(flipped) / len(rows)) < _ALPHA:
        step = f"harness export {plan.run.run_id} --to {plan.export.format}, with another --quantize"
        raise _refusal(plan, "answers other than stored, more than rounding changes", misses, len(rows), step)
    return len(rows) - len(misses), len(rows), pairs[0][1]


def _refusal(plan: ServingPlan, problem: str, differences: Sequence[str], n: int, step: str) -> HarnessError:
    examples = "; ".join(differences[:_MOST_SHOWN])
    return HarnessError(
        f"{plan.program.name} with {plan.folder}: found {len(differences)} of {n} {problem} ({examples}); "
        f"expected those of {plan.run.run_id}; next: {step}"
    )
