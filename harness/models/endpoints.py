"""Responses of OpenAI's protocol, held to their form, as the client checks none; addresses of servers.

Invariant: what has no text is refused in a sentence, and what counts no tokens is as a response without
`usage`: its cost is unknown.
"""

from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address, ip_network
from socket import inet_aton, inet_ntoa
from typing import Any
from urllib.parse import urlsplit

from harness.errors import CandidateFailed
from harness.records import Limits, Output

Refusal = Callable[[str, str], CandidateFailed]  # found, and the knob that would help
_SERVER = "a server that speaks OpenAI's protocol"


def read_first_choice(found: Any, refusal: Refusal) -> Any:
    """Return the one answer of a response.

    Raises:
        CandidateFailed: there is none.
    """
    choices = getattr(found, "choices", None)
    if not isinstance(choices, list) or not choices or choices[0] is None:
        raise refusal("a response without choices", "a base_url that ends with /v1")
    return choices[0]


def text_of(choice: Any, refusal: Refusal) -> str:
    """Return the text of a completion or of a chat message; parts of text are joined, null is no text.

    Raises:
        CandidateFailed: it holds no message, or something that is not text.
    """
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
    """Return a text that can be written as UTF-8: halves of a character that stand alone become U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def read_first_logprobs(choice: Any, refusal: Refusal) -> tuple[tuple[str, float], ...]:
    """Return the tokens that could have begun an answer, behind any blanks, by their log-probabilities.

    Raises:
        CandidateFailed: the answer has none.
    """
    content = (choice.logprobs and choice.logprobs.content) or ()
    first = next((one for one in content if one.token.strip()), None)
    if first is None and choice.message.content:
        raise refusal("an answer without log-probabilities", "a server that gives top_logprobs")
    likely = {one.token: one.logprob for one in (first.top_logprobs or ())} if first else {}
    known = likely | {first.token: first.logprob} if first else {}
    return tuple((_legible(token), logprob) for token, logprob in known.items())


def output_of(text: str, finish_reason: str, usage: Any, limits: Limits) -> Output:
    """Return an answer, cut at the first stop, with its tokens as far as the server counts them."""
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
_SHARED = ip_network("100.64.0.0/10")  # of carriers and of overlays such as Tailscale
_COUNTRY = 2  # letters of a country's top-level domain, which may have an address itself


def is_private(url: str) -> bool:
    """Tell whether an address is of this machine or of a private network, by its numbers or its name.

    Numbers are read as the resolver reads them (`127.1`, hexadecimal), and 100.64.0.0/10 (RFC 6598) is
    private too. A name without a dot is one of the local network, but for two letters, which are a country's.
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
    """Tell whether a server over plain HTTP is on this machine, where no proxy can reach it."""
    parts = urlsplit(url)
    try:
        own = ip_address(parts.hostname or "").is_loopback
    except ValueError:
        own = parts.hostname == "localhost"
    return own and parts.scheme == "http"
