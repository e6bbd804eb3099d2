"""Model behind a server that speaks OpenAI's protocol over HTTP, and kinds of server addresses.

Invariant: answers are returned in the order of the prompts; one without text is refused with a sentence, one
without token counts has an unknown cost. The key is read from the environment when the model is opened, and
appears in no file, row or message.
"""

import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from ipaddress import ip_address, ip_network
from itertools import repeat
from json import loads
from pathlib import Path
from socket import inet_aton, inet_ntoa
from threading import Thread
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from harness.errors import CandidateFailed, Problem
from harness.models.batching import Pair, Tokens
from harness.models.candidate import Candidate
from harness.models.hub import ModelSource, load_tokenizer
from harness.progress import quiet_libraries
from harness.records import Encoded, Likelihood, Limits, Output, PromptText, canonical_json, digest
from harness.spec import Spec, Task, TokenPrices

if TYPE_CHECKING:
    from openai import APIError

Protocol = Literal["completions", "chat"]
PROTOCOLS: tuple[Protocol, ...] = ("completions", "chat")
ENGINE = "endpoint"  # prefix of the engine's name in the identity of rows
UNKNOWN = "unknown"  # the precision and the device of a server
FILE = "endpoint.json"
WHO_ANSWERS = ("base_url", "model", "protocol")  # settings on which an answer depends

_NO_KEY = "none"  # a client without a key would take another provider's from the environment
_ANY_LENGTH = 1 << 30
_MOST_TOKENS = 20  # most tokens with log-probabilities in the protocol
_MOST_STOPS = 4  # most stop strings in the protocol; the others are applied here
_TOO_LONG = re.compile(r"context (length|size|window)|context_length|must be <=", re.IGNORECASE)
_STEPS = {
    400: "another protocol (completions or chat), or a server that takes such requests",
    401: "the key in the variable that api_key_env names",
    403: "the key in the variable that api_key_env names",
    404: "a base_url that ends with /v1, and a model that GET /models lists there",
    429: "a smaller num_concurrent, or more max_retries",
}
_SERVER = "a server that speaks OpenAI's protocol"
_Request = TypeVar("_Request")
_Said = TypeVar("_Said")


class Settings(Spec):
    """Settings of an endpoint: server, model and protocol.

    `api_key_env` names the environment variable with the key. With `completions`, prompts are token ids by
    the base's template, and log-probabilities are requested; with `chat`, messages are sent unchanged. At
    most `num_concurrent` requests run at once, each repeated up to `max_retries` times; `timeout` is in
    seconds. `usd_per_million_tokens` is the provider's price, which replaces the decision's.
    """

    base_url: str
    model: str = Field(min_length=1)
    api_key_env: str | None = Field(None, pattern=r"^[A-Za-z_]\w*$")
    protocol: Protocol = "completions"
    num_concurrent: int = Field(8, ge=1)
    timeout: float = Field(120, gt=0)
    max_retries: int = Field(4, ge=0)
    usd_per_million_tokens: TokenPrices | None = None

    @field_validator("base_url")
    @classmethod
    def _check_address(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("base_url is not an address; write one such as http://localhost:8000/v1")
        if parts.username or parts.password or parts.query:
            raise ValueError("base_url with a secret in it; name the variable that holds it: api_key_env")
        return url.rstrip("/")

    @property
    def weights_digest(self) -> str:
        """Identity of hidden weights (`WHO_ANSWERS`)."""
        return digest([self.base_url, self.model, self.protocol])

    @property
    def leaves_machine(self) -> bool:
        """Whether requests go to a server outside private networks."""
        return not is_private(self.base_url)

    @property
    def name(self) -> str:
        """Model and address, for display."""
        return f"{self.model} at {self.base_url}"


def identity(protocol: str) -> tuple[str, str]:
    """Return this engine's name in the identity of rows, and the digest of its layout."""
    return f"{ENGINE}/{protocol}", digest(ENGINE)


def is_endpoint(engine: str) -> bool:
    """Tell from the engine's name whether rows come from an endpoint."""
    return engine.startswith(f"{ENGINE}/")


def can_chat(task: Task) -> bool:
    """Tell whether a task can be evaluated by chat, which gives no log-probabilities of a prompt."""
    return task.kind == "generate" and task.chat_template and not task.lm_eval


def problems(settings: Settings, where: str) -> Iterator[Problem]:
    """Yield the problems before any request: missing client or key."""
    try:
        version("openai")
    except PackageNotFoundError:
        step = "pip install 'harness-evals[endpoint]', or leave the candidate out"
        yield Problem(where, "an endpoint, and no package openai", "the package that asks it", step)
    name, key = settings.api_key_env, _key(settings)
    if not key:
        step = f"export {name}=…, or remove api_key_env where the server asks for no key"
        yield Problem(where, f"no variable {name} in the environment", "the key of the endpoint", step)
    elif not (key.isascii() and key.isprintable()):
        found = f"a key in {name} with characters that no header of HTTP can hold"
        yield Problem(where, found, "one line of ASCII", f"export {name}=… again")


def settings_of(folder: Path) -> Settings:
    """Read the settings of an endpoint from the folder of its weights."""
    return Settings.model_validate(loads((folder / FILE).read_text("utf-8")))


def _key(settings: Settings) -> str:
    name = settings.api_key_env
    return os.environ.get(name, "").strip() if name else _NO_KEY


@contextmanager
def open_endpoint(
    settings: Settings, weights_digest: str, source: ModelSource
) -> "Iterator[CompletionsCandidate | ChatCandidate]":
    """Open the endpoint of these settings; prompts are written as for the base `source`."""
    server = Server(settings)
    try:
        if settings.protocol == "chat":
            yield ChatCandidate(server, weights_digest)
        else:
            yield CompletionsCandidate(server, weights_digest, source)
    finally:
        server.api.close()


class Server:
    """Model at an address, with several concurrent requests."""

    def __init__(self, settings: Settings) -> None:
        """Read the key; CandidateFailed if there is no key or no client."""
        for problem in problems(settings, settings.name):
            raise CandidateFailed(str(replace(problem, next_step="")), problem.next_step)
        from openai import DefaultHttpxClient, OpenAI

        self.settings, self._key = settings, _key(settings)
        self.api = OpenAI(
            base_url=settings.base_url,
            api_key=self._key,
            timeout=settings.timeout,
            max_retries=settings.max_retries,
            http_client=DefaultHttpxClient(trust_env=False) if is_loopback(settings.base_url) else None,
        )
        # The client would take these from the environment, where they are meant for another provider.
        self.api.organization = self.api.project = None
        self.api._custom_headers = {}  # noqa: SLF001 (there is no public way to clear them)

    def each(self, ask: Callable[[_Request], _Said], requests: Sequence[_Request]) -> list[_Said]:
        """Send all requests and return the answers in order; after a failure no further request starts."""
        from openai import APIError

        answers: list[Future[_Said]] = [Future() for _ in requests]
        waiting = deque(zip(answers, requests, strict=True))

        def work() -> None:
            while waiting:
                try:
                    answer, request = waiting.popleft()
                except IndexError:  # another thread took the last one
                    return
                try:
                    answer.set_result(ask(request))
                except APIError as error:
                    answer.set_exception(self._failure(error))
                except BaseException as error:  # noqa: BLE001 (raised where the answers are awaited)
                    answer.set_exception(error)

        for _ in range(min(self.settings.num_concurrent, len(answers))):
            Thread(target=work, daemon=True).start()
        try:
            finished, pending = wait(answers, return_when=FIRST_EXCEPTION)
        finally:
            waiting.clear()
        if pending:
            raise next(error for future in finished if (error := future.exception()))
        return [future.result() for future in answers]

    def max_context(self, model: str) -> int:
        """Return the context length that the server reports for a model; unbounded if it reports none."""
        from openai import APIError, APIStatusError

        try:
            models = self.api.models.list()
        except APIStatusError:
            return _ANY_LENGTH  # a server without a model list; the first request will show other problems
        except APIError as error:
            raise self._failure(error) from None
        except AttributeError:  # the client does not check that it received a list
            found = "a page that is not a list of models"
            raise self.refusal(found, "a base_url that ends with /v1") from None
        sizes = {entry.id: (entry.model_extra or {}).get("max_model_len") for entry in models.data or ()}
        return int(sizes.get(model) or _ANY_LENGTH)

    def refusal(self, found: str, knob: str) -> CandidateFailed:
        """Phrase an answer that cannot be used."""
        return CandidateFailed(f"{self.settings.name}: found {found}; expected an answer", knob)

    def read_first_choice(self, response: Any) -> tuple[Any, str]:
        """Return the first choice of a response with its text; parts are joined, null gives an empty text."""
        choices: Any = getattr(response, "choices", None)
        if not isinstance(choices, list) or not choices or choices[0] is None:
            raise self.refusal("a response without choices", "a base_url that ends with /v1")
        choice = choices[0]
        holder = choice.message if hasattr(choice, "message") else choice
        if holder is None:
            raise self.refusal("a choice without a message", _SERVER)
        content = getattr(holder, "text" if holder is choice else "content", None)
        parts = content if isinstance(content, list) else ["" if content is None else content]
        texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
        strings = [text for text in texts if isinstance(text, str)]
        if len(strings) < len(texts):
            raise self.refusal(f"an answer of the type {type(content).__name__}", _SERVER)
        return choice, _legible("".join(strings))

    def error_text(self, error: "APIError") -> str:
        """Return the server's message of an error, on one line and without the key."""
        text = message(error)
        hidden = text.replace(self._key, "…") if self.settings.api_key_env else text
        return " ".join(hidden.split())[:200]

    def _failure(self, error: "APIError") -> CandidateFailed:
        from openai import APIConnectionError, APIStatusError, APITimeoutError

        if isinstance(error, APITimeoutError):
            knob = "a longer timeout, or a smaller num_concurrent"
            return self.refusal(f"nothing within {self.settings.timeout:g} s", knob)
        if isinstance(error, APIConnectionError):
            return self.refusal("no server", "start it, or correct base_url")
        status = error.status_code if isinstance(error, APIStatusError) else None
        text = self.error_text(error)
        found = f"status {status}, {text}" if status else f"what is not an answer, {text}"
        step = _STEPS.get(status or 400, "ask again later, or look at the server's log")
        if status == 404 and self.settings.protocol == "completions":
            step += ", or protocol: chat where it has no completions"
        return self.refusal(found, step)


def message(error: "APIError") -> str:
    """Return the server's message of an error."""
    return str(error.body["message"] if isinstance(error.body, dict) and "message" in error.body else error)


class _Prompt(NamedTuple):
    """Token ids of a prompt, and the seed of its answer; None for greedy answers."""

    ids: Tokens
    seed: int | None


class CompletionsCandidate(Candidate):
    """Model that gets token ids and gives text or log-probabilities; `extra_body` goes with each prompt."""

    def __init__(
        self,
        server: Server,
        weights_digest: str,
        source: ModelSource,
        extra_body: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        quiet_libraries()
        self._server, self.weights_digest, self._extra_body = server, weights_digest, extra_body
        self.tokenizer = load_tokenizer(source)
        self.engine, self.layout_digest = identity("completions")
        # A server generates at least one token, even if only likelihoods are needed.
        self.max_context = server.max_context(server.settings.model) - 1

    def generate(self, prompts: Sequence[Tokens], limits: Limits, seeds: Sequence[int] = ()) -> list[Output]:
        """Answer each prompt, greedily or by its seed; `compute_s` is an equal share of the whole call."""
        return _answers(self._server, partial(self._complete, limits), prompts, seeds)

    def loglikelihood(self, pairs: Sequence[Pair]) -> list[Likelihood]:
        """Score each (context, continuation) in nats, with one request each."""
        return self._server.each(self._score, pairs)

    def _complete(self, limits: Limits, prompt: _Prompt) -> Output:
        response = self._server.api.completions.create(
            model=self._server.settings.model,
            prompt=list(prompt.ids),
            extra_body=self._extra_body or None,
            **_describe_decoding(limits, prompt.seed),
        )
        choice, text = self._server.read_first_choice(response)
        return _output(text, choice.finish_reason, response.usage, limits)

    def _score(self, pair: Pair) -> Likelihood:
        context, continuation = pair
        ids = [*context, *continuation]
        server = self._server
        response = server.api.completions.create(
            model=server.settings.model, prompt=ids, temperature=0.0, max_tokens=1, echo=True, logprobs=1
        )
        logprobs = server.read_first_choice(response)[0].logprobs
        values, tops = (logprobs.token_logprobs or [], logprobs.top_logprobs or []) if logprobs else ([], [])
        pairs = list(zip(values, tops, strict=False))[len(context) : len(ids)]
        # One more token is the generated one; two more mean that the server added to the prompt.
        if len(values) not in (len(ids), len(ids) + 1) or any(x is None or not top for x, top in pairs):
            found = f"log-probabilities of {len(values)} tokens where {len(ids)} were sent"
            step = "a server that echoes those of the prompt, such as vLLM, or protocol: chat"
            raise server.refusal(found, step)
        return Likelihood(sum(x for x, _ in pairs), all(x >= max(top.values()) for x, top in pairs))


class ChatCandidate(Candidate):
    """Model that gets messages; its token ids are bytes of JSON. `logprobs` requests those of answers."""

    max_context = _ANY_LENGTH

    def __init__(self, server: Server, weights_digest: str, *, logprobs: bool = False) -> None:
        self._server, self.weights_digest, self._logprobs = server, weights_digest, logprobs
        self.engine, self.layout_digest = identity("chat")

    def encode_all(self, prompts: Sequence[PromptText]) -> list[Encoded]:
        """Encode unchanged messages as JSON."""
        return [
            Encoded(tuple(canonical_json(list(p.messages)).encode()), tuple(p.continuation.encode()))
            for p in prompts
        ]

    def generate(self, prompts: Sequence[Tokens], limits: Limits, seeds: Sequence[int] = ()) -> list[Output]:
        """Answer each prompt's messages, greedily or by its seed; `compute_s` is an equal share of it all."""
        return _answers(self._server, partial(self._answer, limits), prompts, seeds)

    def loglikelihood(self, pairs: Sequence[Pair]) -> list[Likelihood]:
        """Refuse: the protocol gives no log-probabilities of a prompt."""
        if pairs:
            found = "chat gives no log-probabilities of a prompt"
            raise CandidateFailed(found, "params.protocol: completions")
        return []

    def _answer(self, limits: Limits, prompt: _Prompt) -> Output:
        messages: Any = loads(bytes(prompt.ids))
        extra: dict[str, Any] = {"logprobs": True, "top_logprobs": _MOST_TOKENS} if self._logprobs else {}
        model, options = self._server.settings.model, _describe_decoding(limits, prompt.seed) | extra
        response = self._server.api.chat.completions.create(model=model, messages=messages, **options)
        choice, text = self._server.read_first_choice(response)
        output = _output(text, choice.finish_reason, response.usage, limits)
        # Candidates for the first token of the answer after blanks.
        content = (choice.logprobs and choice.logprobs.content) or ()
        first = next((token for token in content if token.token.strip()), None)
        if extra and first is None and choice.message.content:
            step = "a server that gives top_logprobs"
            raise self._server.refusal("an answer without log-probabilities", step)
        if not extra or first is None:
            return output
        likely = {token.token: token.logprob for token in (*(first.top_logprobs or ()), first)}
        return replace(output, first_logprobs=tuple((_legible(t), p) for t, p in likely.items()))


def _answers(
    server: Server, ask: Callable[[_Prompt], Output], prompts: Sequence[Tokens], seeds: Sequence[int]
) -> list[Output]:
    """Answer prompts; a prompt too long for the server gives an error row, as with a model in memory."""
    start = time.perf_counter()
    from openai import BadRequestError, UnprocessableEntityError

    def ask_or_refuse(prompt: _Prompt) -> Output:
        try:
            return ask(prompt)
        except (BadRequestError, UnprocessableEntityError) as error:
            if not _TOO_LONG.search(f"{error.code} {message(error)}"):
                raise
            return Output("", "error", error=server.error_text(error))

    outputs = server.each(ask_or_refuse, list(map(_Prompt, prompts, seeds or repeat(None))))
    share = (time.perf_counter() - start) / max(len(prompts), 1)
    return [replace(output, compute_s=share) for output in outputs]


def _describe_decoding(limits: Limits, seed: int | None) -> dict[str, Any]:
    stop = {"stop": list(limits.stop[:_MOST_STOPS])} if limits.stop else {}
    sampling = {} if seed is None else {"top_p": limits.top_p, "seed": seed}
    return {"max_tokens": limits.max_new_tokens, "temperature": limits.temperature, **sampling, **stop}


def _legible(text: str) -> str:
    """Return the text with lone surrogates replaced by U+FFFD, so that it can be written as UTF-8."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _output(text: str, finish_reason: str, usage: Any, limits: Limits) -> Output:
    """Return an answer, cut at the first stop string, with the token counts that the server reports."""
    cuts = [text.index(s) for s in limits.stop if s in text]
    n_read, n_written = (getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens"))
    if not (type(n_read) is int and type(n_written) is int and min(n_read, n_written) >= 0):
        n_read, n_written = 0, 0
    return Output(
        text[: min(cuts)] if cuts else text,
        "length" if finish_reason == "length" and not cuts else "stop",
        n_prompt_tokens=n_read,
        n_output_tokens=n_written,
    )


_PRIVATE_NAMES = (".internal", ".local", ".localhost", ".localdomain", ".lan", ".home.arpa")
_SHARED = ip_network("100.64.0.0/10")  # used by carriers and by overlays such as Tailscale
_COUNTRY = 2  # letters of a country's top-level domain, which may itself have an address


def is_private(url: str) -> bool:
    """Tell whether an address belongs to this machine or a private network, by its number or name.

    Numbers are parsed as the resolver does (`127.1`, hexadecimal); 100.64.0.0/10 (RFC 6598) is private.
    A name without a dot is local unless it has two letters, like a country's domain.
    """
    host = (urlsplit(url).hostname or "").rstrip(".")
    with suppress(OSError):
        host = inet_ntoa(inet_aton(host))
    try:
        address = ip_address(host)
    except ValueError:
        return len(host) != _COUNTRY if "." not in host else host.endswith(_PRIVATE_NAMES)
    address = getattr(address, "ipv4_mapped", None) or address
    return bool(address.is_private) or address in _SHARED


def is_loopback(url: str) -> bool:
    """Tell whether a URL is plain HTTP on this machine, which proxies do not reach."""
    parts = urlsplit(url)
    try:
        is_local = ip_address(parts.hostname or "").is_loopback
    except ValueError:
        is_local = parts.hostname == "localhost"
    return is_local and parts.scheme == "http"
