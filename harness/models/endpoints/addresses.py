"""Addresses of servers: which are of this machine, and which of a private network."""

from contextlib import suppress
from ipaddress import ip_address, ip_network
from socket import inet_aton, inet_ntoa
from urllib.parse import urlsplit

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
