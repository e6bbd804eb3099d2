"""Checked responses of OpenAI's protocol (the client checks none), and kinds of server addresses.

Invariant: a response without text is refused with a sentence; one without token counts has an unknown cost.
"""

from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address, ip_network
from socket import inet_aton, inet_ntoa
from typing import Any
from urllib.parse import urlsplit

from harness.errors import CandidateFailed
from harness.records import Limits, Output

Refusal = Callable[[str, str], CandidateFailed]  # (found, parameter to change)
_SERVER = "a server that speaks OpenAI's protocol"


def read_first_choice(found: Any, refusal: Refusal) -> Any:
    """Return the first choice of a response; a refusal if there is none."""
    choices = getattr(found, "choices", None)
    if not isinstance(choices, list) or not choices or choices[0] is None:
        raise refusal("a response without choices", "a base_url that ends with /v1")
    return choices[0]


def text_of(choice: Any, refusal: Refusal) -> str:
    """Return the text of a completion or chat message; text parts are joined, null gives an empty text."""
    holder = choice.message if hasattr(choice, "message") else choice
    if holder is None:
        raise refusal("a choice without a message", _SERVER)
    content = getattr(holder, "content", None) if holder is not choice else getattr(choice, "text", None)
    parts = content if isinstance(content, list) else ["" if content is None else content]
    texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
    written = [text for text in texts if isinstance(text, str)]
    if len(written) < len(texts):
        raise refusal(f"an answer of the type {type(content).__name__}", _SERVER)
    return _legible("".join(written))


def _legible(text: str) -> str:
    """Return the text with lone surrogates replaced by U+FFFD, so that it can be written as UTF-8."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def read_first_logprobs(choice: Any, refusal: Refusal) -> tuple[tuple[str, float], ...]:
    """Return the log-probabilities of the tokens that could have begun an answer, after leading blanks."""
    content = (choice.logprobs and choice.logprobs.content) or ()
    first = next((token for token in content if token.token.strip()), None)
    if first is None:
        if choice.message.content:
            raise refusal("an answer without log-probabilities", "a server that gives top_logprobs")
        return ()
    likely = {token.token: token.logprob for token in (*(first.top_logprobs or ()), first)}
    return tuple((_legible(token), logprob) for token, logprob in likely.items())


def output_of(text: str, finish_reason: str, usage: Any, limits: Limits) -> Output:
    """Return an answer, cut at the first stop string, with the token counts that the server reports."""
    cuts = [text.index(s) for s in limits.stop if s in text]
    read, written = (getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens"))
    if not (type(read) is int and type(written) is int and min(read, written) >= 0):
        read, written = 0, 0
    return Output(
        text[: min(cuts)] if cuts else text,
        "length" if finish_reason == "length" and not cuts else "stop",
        n_prompt_tokens=read,
        n_output_tokens=written,
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
        found = ip_address(host)
    except ValueError:
        return len(host) != _COUNTRY if "." not in host else host.endswith(_PRIVATE_NAMES)
    found = getattr(found, "ipv4_mapped", None) or found
    return bool(found.is_private) or found in _SHARED


def is_loopback(url: str) -> bool:
    """Tell whether a URL is plain HTTP on this machine, which proxies do not reach."""
    parts = urlsplit(url)
    try:
        own = ip_address(parts.hostname or "").is_loopback
    except ValueError:
        own = parts.hostname == "localhost"
    return own and parts.scheme == "http"
