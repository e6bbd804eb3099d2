"""Servers that others wrote, by what they serve: their command lines, environments and compose files.

Invariant: a key stands in no command line and no file; a server without keys is reachable from this machine
alone.
Source: documentation of `vllm serve`, of llama.cpp's tools/server and of `transformers serve`
"""

import shlex
import sys
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from json import dumps
from pathlib import Path
from typing import Literal, NamedTuple

from harness.errors import Problem, UserError, refuse
from harness.models import vllm
from harness.models.endpoints import is_loopback
from harness.records import Limits
from harness.spec import VllmPolicy

Way = Literal["gguf", "merged", "vllm"]
FORMATS: Mapping[Way, str] = {"gguf": "gguf", "merged": "merged", "vllm": "merged"}  # export of each
AT_ONCE = 4  # requests that are answered together
_ANY = "0.0.0.0"  # inside a container, of which one port is published
_LLAMA_IMAGE = "ghcr.io/ggml-org/llama.cpp:server"
_LLAMA_SERVER = Path(__file__).with_name("llama_server.py")
_NEEDED = {"gguf": ("xllamacpp",), "merged": ("fastapi", "uvicorn", "openai")}


class Address(NamedTuple):
    """Address of a server: host, port, and the variable of the environment that holds its key."""

    host: str
    port: int
    api_key_env: str | None

    @property
    def url(self) -> str:
        """The address under which it is asked from this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://{_bracket(host)}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches it."""
        return is_loopback(f"http://{_bracket(self.host)}")


def _bracket(host: str) -> str:
    return f"[{host}]" if ":" in host else host


class ServingProgram(NamedTuple):
    """A server's command in its folder: the environment it needs besides ours, and its compose file.

    `model` is the name that requests give; `environment` maps names to values, in which `$NAME` is the key.
    """

    name: str
    model: str
    command: list[str]
    folder: Path
    environment: dict[str, str]
    compose: dict[str, object]

    def as_shell(self) -> str:
        """Write the command as a shell reads it."""
        # With an empty key a server would ask for none.
        values = {
            name: f"${{{value[1:]}:?}}" if value[:1] == "$" else value
            for name, value in self.environment.items()
        }
        given = [f'{name}="{value}"' for name, value in values.items()]
        return " ".join(["cd", shlex.quote(str(self.folder)), "&&", *given, shlex.join(self.command)])

    def as_compose(self) -> str:
        """Write the compose file, as JSON, which is YAML too."""
        return dumps({"services": {"model": self.compose}}, indent=2)


def describe_program(
    way: Way, file: Path, name: str, limits: Limits, address: Address, policy: VllmPolicy
) -> ServingProgram:
    """Describe the server of an exported file or folder."""
    if way == "gguf":
        shared = ["--alias", name, "--parallel", str(AT_ONCE)]
        key = ["--api-key-env", address.api_key_env] if address.api_key_env else []
        most = str(limits.max_new_tokens)
        own = ["--max-tokens", most, *_listens(address.host, address), *key]
        command = [sys.executable, "-P", str(_LLAMA_SERVER), file.name, *shared, *own]
        theirs = ["--n-predict", most, "--temp", "0", "--metrics", *_listens(_ANY, address)]
        in_image = ["--model", f"/model/{file.name}", *shared, *theirs]
        compose = _compose(_LLAMA_IMAGE, in_image, file.parent, address, "LLAMA_API_KEY")
        return ServingProgram("llama.cpp's server", name, command, file.parent, {}, compose)
    return _vllm(file, name, limits, address, policy) if way == "vllm" else _transformers(file, address)


def refuse_server(way: Way, address: Address, policy: VllmPolicy) -> None:
    """Refuse an address without a key beyond this machine, a key for a server without any, and no server.

    Raises:
        UserError: with what is missing.
    """
    if way == "merged" and (address.api_key_env or not address.is_local):
        option = "--api-key-env" if address.api_key_env else f"--host {address.host}"
        found, expected = f"{option}, where `transformers serve` checks no key", "a server that checks one"
        raise UserError(
            Problem("--to merged", found, expected, "--to gguf, --to vllm, or this machine alone")
        )
    if not address.is_local and not address.api_key_env:
        found, step = f"{address.host}, and no --api-key-env", "export KEY=…, then --api-key-env KEY"
        raise UserError(Problem("--host", found, "a key beyond this machine", step))
    if way == "vllm":
        refuse(vllm.problems(policy))
    for package in _NEEDED.get(way, ()):
        if find_spec(package) is None:
            step = "pip install 'harness-evals[serve]'"
            raise UserError(Problem(f"--to {way}", f"no package {package}", "the server's packages", step))


def _vllm(folder: Path, name: str, limits: Limits, address: Address, policy: VllmPolicy) -> ServingProgram:
    program = vllm.program_of(policy)
    assert program is not None, "a program that is not there is refused"
    defaults = dumps({"temperature": 0, "max_new_tokens": limits.max_new_tokens})
    shared = ["--served-model-name", name, "--override-generation-config", defaults, *policy.args]
    command = [program, "serve", str(folder.resolve()), *_listens(address.host, address), *shared]
    key = {"VLLM_API_KEY": f"${address.api_key_env}"} if address.api_key_env else {}
    in_image = ["--model", "/model", *_listens(_ANY, address), *shared]
    image = f"vllm/vllm-openai:v{vllm.release_of(policy)}"
    compose = _compose(image, in_image, folder, address, "VLLM_API_KEY")
    own = {**key, "VLLM_NO_USAGE_STATS": "1"}
    return ServingProgram("vLLM's server", name, command, folder, own, compose)


def _transformers(folder: Path, address: Address) -> ServingProgram:
    # It knows the model by the folder's name alone where it is started beside that.
    words = ["serve", folder.name, *_listens(address.host, address)]
    command = [sys.executable, "-P", "-m", "transformers.cli.transformers", *words]
    torch = version("torch").partition("+")[0]
    install = f"pip install 'transformers[serving]=={version('transformers')}' torch=={torch}"
    inside = shlex.join(["transformers", "serve", folder.name, *_listens(_ANY, address)])
    script = ["sh", "-c", f"{install} && cd / && {inside}"]
    compose = _compose("python:3.11-slim", script, folder, address, at=f"/{folder.name}")
    own = {"HF_HUB_OFFLINE": "1"}
    return ServingProgram("`transformers serve`", folder.name, command, folder.parent, own, compose)


def _listens(host: str, address: Address) -> list[str]:
    return ["--host", host, "--port", str(address.port)]


def _compose(
    image: str, command: list[str], folder: Path, address: Address, variable: str = "", at: str = "/model"
) -> dict[str, object]:
    """Describe the service: the folder read-only, one port, and the key from the environment of compose."""
    key = {"environment": {variable: f"${{{address.api_key_env}:?}}"}} if address.api_key_env else {}
    return {
        "image": image,
        "command": command,
        "volumes": [f"{folder.resolve()}:{at}:ro"],
        "ports": [f"{_bracket(address.host)}:{address.port}:{address.port}"],
        **key,
    }
