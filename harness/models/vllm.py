"""vLLM server started by us: `vllm serve` in its own environment, for one base, over HTTP.

Invariant: the server ends with the host object that started it and with this process. It is reachable only
from this machine, under a unique model name. Source: vLLM's documentation of `vllm serve` and of LoRA
adapters, https://docs.vllm.ai, vllm/envs.py.
"""

import json
import os
import re
import shutil
import socket
import sys
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request

from harness.cache import memo
from harness.errors import CandidateFailed, Problem, refuse
from harness.models import openai_api
from harness.models.hardware import Machine, dtype
from harness.models.hub import ModelSource, load_tokenizer
from harness.models.programs import OPENER, ServerProcess, read_lines, start
from harness.models.tokenization import stored_end_ids
from harness.models.weight_files import refuse_infinite
from harness.progress import Advance
from harness.records import digest
from harness.spec import VllmPolicy

MAX_RANK = 64  # vLLM reserves memory for adapters before it sees any
OTHERWISE = "engine: transformers"
ENGINE = "vllm-server"  # prefix of the engine's name in the identity of rows
_VERSION = re.compile(r"(?:vllm )?(\d+\.\d+[\w.+-]*)", re.IGNORECASE)  # on its own line
_VERSION_S = 120  # importing vLLM takes a while
_ADAPTER_S = 600
# Variables that would point its Python to our packages, hide its log, or make it require a key.
OURS = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "VLLM_LOGGING_LEVEL", "VLLM_API_KEY")
_THEIRS = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "VLLM_NO_USAGE_STATS": "1"}
# Variables with other prefixes that choose how products are rounded.
_OTHERS = ("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "CUBLAS_WORKSPACE_CONFIG")
# Variables for addresses, folders, logs, waiting and room for keys, and those of Kubernetes or ours.
_WITHOUT_NUMBERS = re.compile(
    r"VLLM_(API_KEY|NO_USAGE_STATS|DO_NOT_TRACK|USAGE_\w+|LOGGING_\w+|LOG_\w+|CONFIGURE_LOGGING|TRACE_FUNCTION"
    r"|DEBUG_\w+|NO_DEPRECATION_WARNING|RPC_\w+|SERVICE_\w+|WORKER_MULTIPROC_METHOD|ENABLE_V1_MULTIPROCESSING"
    r"|ALLOW_RUNTIME_LORA_UPDATING|CPU_KVCACHE_SPACE|ASSETS_CACHE|RINGBUFFER_WARNING_INTERVAL|SLEEP_WHEN_IDLE"
    r"|KEEP_ALIVE_ON_ENGINE_DEATH|(\w+_)?PORT(_\w+)?|(\w+_)?(HOST|IP|DIR|ROOT|PATH|TIMEOUT)(_\w+)?)"
)


def problems(policy: VllmPolicy) -> Iterator[Problem]:
    """Yield the problems before the start: missing program or client."""
    where, step = "vllm.command", "python -m venv /opt/vllm && /opt/vllm/bin/pip install vllm, "
    step += f"then vllm: {{command: /opt/vllm/bin/vllm}}; or {OTHERWISE}"
    if program_of(policy) is None:
        yield Problem(where, f"{policy.command}, which is not a program here", "the program vllm", step)
    elif not release_of(policy):
        found = f"{policy.command}, which does not say its version"
        yield Problem(where, found, "the program vllm, whose --version is a number", step)
    yield from openai_api.problems(openai_api.Settings(base_url="http://localhost", model="base"), where)


def program_of(policy: VllmPolicy) -> str | None:
    """Return the path of the program; None if missing."""
    search_path = os.pathsep.join((os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)))
    return shutil.which(Path(policy.command).expanduser(), path=search_path)


def release_of(policy: VllmPolicy) -> str:
    """Return the version of vLLM in its environment, remembered while the program is the same file."""
    program = program_of(policy)
    if program is None:
        return ""

    def ask() -> str | None:
        lines = read_lines([program, "--version"], environment=_environment(), timeout_s=_VERSION_S)
        return next((match[1] for match in map(_VERSION.fullmatch, reversed(lines)) if match), None)

    stat = Path(program).stat()
    return memo("vllm", digest([str(Path(program).resolve()), stat.st_mtime_ns, stat.st_size]), ask) or ""


def identity(policy: VllmPolicy) -> tuple[str, str]:
    """Return this engine's name in the identity of rows, with its version, and the digest of its layout."""
    refuse(problems(policy))
    names = sorted(name for name in os.environ if name.startswith("VLLM_") or name in _OTHERS)
    switches = {name: os.environ[name] for name in names if not _WITHOUT_NUMBERS.fullmatch(name)}
    return f"{ENGINE}/{release_of(policy)}", digest([policy.layout, MAX_RANK, switches])


class _OwnServer(openai_api.Server):
    """Server that we started, whose failures are explained."""

    def __init__(self, settings: openai_api.Settings, running: ServerProcess) -> None:
        super().__init__(settings)
        self._running = running

    def each(self, ask: Any, requests: Sequence[Any]) -> list[Any]:
        try:
            return super().each(ask, requests)
        except CandidateFailed as error:
            if not self._running.is_well():
                raise CandidateFailed(self._running.describe_end(), _knob(self._running.log)) from None
            reason = f"vLLM's server runs, and a request failed: {error.reason}; {self._running.last_words()}"
            raise CandidateFailed(reason, OTHERWISE) from None


class ServedCandidate(openai_api.CompletionsCandidate):
    """Causal language model on a server that we started, with or without an adapter."""

    def __init__(self, host: "VllmServer", running: ServerProcess, model: str) -> None:
        settings = openai_api.Settings(
            base_url=f"{running.address}/v1",
            model=model,
            num_concurrent=host.policy.num_concurrent,
            timeout=_ADAPTER_S,
            max_retries=1,
        )
        server = _OwnServer(settings, running)
        weakref.finalize(self, server.api.close)
        super().__init__(server, model, host.source, {"stop_token_ids": host.ends})
        self.max_context = server.max_context(host.source.weights_digest) - 1  # an adapter's is not reported
        self.engine, self.layout_digest = host.identity


class VllmServer:
    """Server of one base, for all adapters; if it has ended, it is restarted when it is next needed."""

    def __init__(
        self, source: ModelSource, machine: Machine, policy: VllmPolicy, log: Path, advance: Advance
    ) -> None:
        self.source, self.machine, self.policy = source, machine, policy
        self.identity = identity(policy)
        self.ends = stored_end_ids(load_tokenizer(source), source.path)
        self._log = log
        self._running = self._start(advance)

    @property
    def base(self) -> ServedCandidate:
        """The base, ready to answer."""
        return ServedCandidate(self, self._ready(), self.source.weights_digest)

    @contextmanager
    def use_adapter(self, folder: Path, weights_digest: str) -> Iterator[ServedCandidate]:
        """Yield the base with the adapter of a folder; CandidateFailed if vLLM rejects it."""
        refuse_infinite(folder)
        running = self._ready()
        _post(running, "load", {"lora_name": weights_digest, "lora_path": str(folder.resolve())})
        try:
            yield ServedCandidate(self, running, weights_digest)
        finally:
            if running.is_well():
                _post(running, "unload", {"lora_name": weights_digest})

    def close(self) -> None:
        """End the server, which frees its memory."""
        self._end()

    def _ready(self) -> ServerProcess:
        if not self._running.is_well():
            self._end()
            self._running = self._start(lambda *_, note="": None)
        return self._running

    def _start(self, advance: Advance) -> ServerProcess:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self._log.unlink(missing_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        program = program_of(self.policy)
        assert program is not None, "a program that is not there is refused"
        arguments = {
            "served-model-name": self.source.weights_digest,
            "host": "127.0.0.1",
            "port": port,
            "dtype": str(dtype(self.machine.precision)).removeprefix("torch."),
            "generation-config": "vllm",
            **({"max-lora-rank": MAX_RANK, "max-loras": 1} if self.policy.enable_lora else {}),
        }
        options = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
        options += ["--enable-lora"] if self.policy.enable_lora else []
        command = [program, "serve", str(self.source.path), *options, *self.policy.args]
        address, folder = f"http://127.0.0.1:{port}", self._log.parent
        supervisor = start(command, folder, self._log, _environment())
        running = ServerProcess("vLLM's server", supervisor, address, self._log, [])
        self._end = weakref.finalize(self, running.stop)  # also at the end of this process
        try:
            if running.is_started(self.policy.start_timeout, "vllm.start_timeout", advance):
                return running
        except BaseException:
            self._end()
            raise
        raise CandidateFailed(running.describe_end(), _knob(self._log))


def _knob(log: Path) -> str:
    text = log.read_text("utf-8", "replace").lower() if log.exists() else ""
    if "out of memory" in text or "kv cache" in text:
        return f"vllm.args: [--max-model-len=4096], another --gpu-memory-utilization, or {OTHERWISE}"
    return OTHERWISE


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in OURS} | _THEIRS


def _post(running: ServerProcess, verb: str, body: dict[str, Any]) -> None:
    url, headers = f"{running.address}/v1/{verb}_lora_adapter", {"Content-Type": "application/json"}
    request = Request(url, json.dumps(body).encode(), headers)
    try:
        with OPENER.open(request, timeout=_ADAPTER_S):
            return
    except HTTPError as error:
        reply = " ".join(error.read().decode("utf-8", "replace").split())[:200]
        raise CandidateFailed(f"vLLM does not {verb} the adapter: {reply}", OTHERWISE) from None
    except OSError as error:
        if running.is_well():
            raise CandidateFailed(f"vLLM does not {verb} the adapter: {error}", OTHERWISE) from None
        raise CandidateFailed(running.describe_end(), _knob(running.log)) from None
