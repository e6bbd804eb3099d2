"""A judge as it is written in a rubric: a model that runs here, an endpoint, or a candidate by its name.

Invariant: nothing is loaded; a candidate's weights are found where its experiment is prepared.
"""

from collections.abc import Iterator
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from socket import inet_aton, inet_ntoa
from typing import Any, TypeGuard
from urllib.parse import urlsplit

from pydantic import Field

from harness import plugins
from harness.config.files import describe_missing_file, resolve_model
from harness.config.problems import Keys, Tree, problems_of
from harness.errors import Problem
from harness.spec import Spec

Written = str | dict[str, Any]
_CANDIDATE, _EXPERIMENT = "candidate", "experiment"
_PORTS = {"http": 80, "https": 443}
_LOCAL = "localhost"


class JudgingCandidate(Spec):
    """Candidate whose weights grade, asked by the rubric and not by a prompting of its own.

    `candidate` is its name in the experiment that reads the rubric, or in another `experiment`, whose
    harness.yaml that is. The weights of its first seed count; where `weights` says how their digest begins,
    those alone.
    """

    candidate: str = Field(min_length=1)
    experiment: str = ""
    weights: str = ""

    @property
    def label(self) -> str:
        """The candidate, with the experiment where it is of another."""
        return f"{self.candidate} of {self.experiment}" if self.experiment else self.candidate


def is_endpoint(written: Written) -> TypeGuard[dict[str, Any]]:
    """Tell whether a judge is asked over HTTP."""
    return isinstance(written, dict) and _CANDIDATE not in written


def endpoint_params(written: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters of an endpoint that judges; judges are asked by chat."""
    return {"protocol": "chat", **written}


def judge_label(written: Written) -> str:
    """Name a judge whose weights grade here."""
    return written if isinstance(written, str) else JudgingCandidate(**written).label


def judge_key(written: Written) -> tuple[str, ...]:
    """Return what tells one judge from another, however its address is written.

    Of an address a slash at its end, the case of scheme and host, the scheme's own port and which name or
    number this machine goes by say nothing; nor do keys of an endpoint that say how it is asked.
    """
    if isinstance(written, str):
        return (written,)
    if not is_endpoint(written):
        return "candidate", str(written[_CANDIDATE]), str(written.get(_EXPERIMENT, ""))
    return "endpoint", _address(str(written.get("base_url"))), str(written.get("model"))


def _address(url: str) -> str:
    try:
        parts = urlsplit(url.strip())
        host, port = _host(parts.hostname or ""), parts.port or _PORTS.get(parts.scheme)
    except ValueError:
        return url
    return f"{parts.scheme}://{host}:{port}{parts.path.rstrip('/')}"


def _host(name: str) -> str:
    """Return a host's name, with one for this machine: `127.0.0.1`, `127.1` and `[::1]` are `localhost`."""
    name = name.rstrip(".")
    with suppress(OSError, ValueError):
        name = inet_ntoa(inet_aton(name))
    with suppress(ValueError):
        found = ip_address(name)
        return _LOCAL if found.is_loopback or found.is_unspecified else str(found)
    return _LOCAL if name.endswith(f".{_LOCAL}") else name


def resolve_judge(written: Any, folder: Path) -> Any:
    """Make absolute the folder of a model, or the file of the experiment that a candidate is of."""
    around = {"judge": written}
    resolve_model(around, "judge", folder)
    if isinstance(written, dict) and isinstance(file := written.get(_EXPERIMENT), str):
        return {**written, _EXPERIMENT: str((folder / Path(file).expanduser()).resolve())}
    return around["judge"]


def endpoint_settings() -> type[Any]:
    """Return the settings of an endpoint: the parameters of the method whose weights answer at a URL."""
    remote = (plugins.method(name).params for name in plugins.methods(is_remote=True))
    return next(params for params in remote if "base_url" in params.model_fields)


def endpoint_problems(written: dict[str, Any], tree: Tree, keys: Keys) -> Iterator[Problem]:
    """Yield what forbids to ask an endpoint, as it is written at `keys`, for grades."""
    params = endpoint_params(written)
    yield from problems_of(endpoint_settings(), params, tree, keys)
    if params["protocol"] != "chat":
        found = f"a judge with protocol: {params['protocol']}, which sends tokens of the base"
        yield Problem(tree.where((*keys, "protocol")), found, "protocol: chat", "remove protocol")


def candidate_problems(written: dict[str, Any], tree: Tree, keys: Keys) -> Iterator[Problem]:
    """Yield what is wrong with a candidate as it is written at `keys`, before its experiment is read."""
    yield from problems_of(JudgingCandidate, written, tree, keys)
    file = written.get(_EXPERIMENT)
    if isinstance(file, str) and not Path(file).is_file():
        where = tree.where((*keys, _EXPERIMENT))
        yield describe_missing_file(Path(file), where, "the harness.yaml of an experiment")
