"""Personal data and secrets in texts, found by their form and masked.

Invariant: a masked part cannot be read from what is left; time is linear in the length of a text.
Source: ISO 7064 and ISO/IEC 7812 by python-stdnum, libphonenumber by phonenumbers
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from ipaddress import ip_address

from harness.errors import UserError
from harness.masking import find_tokens, mask_secrets

KEYS = "keys and tokens"
# Full-width signs, and word processors' spaces and dashes, in ASCII; lengths stay.
_PLAIN = {
    **dict.fromkeys([0xA0, *range(0x2000, 0x200B), 0x202F, 0x3000], " "),
    **dict.fromkeys([*range(0x2010, 0x2016), 0x2212], "-"),
    **{code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)},
}
_EMAIL = re.compile(r"(?<![\w.+'-])[\w.+'-]{1,64}@[\w-]+(?:\.[\w-]+)*\.(?:xn--[\w-]+|[^\W\d_]{2,})")
_CARD = re.compile(r"\b[3-6](?:[ -]?\d){12,18}\b")
_IBAN = re.compile(r"(?i)\b(?=([A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]){11,30}))")  # and the text after it
_SSN = re.compile(r"(?<![\w-])\d{3}([- ])\d{2}\1\d{4}(?![\w-])")
_IP = re.compile(
    r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}(?!\.?\w)"
    r"|(?=[A-Fa-f:]{0,35}\d)(?:[0-9A-Fa-f]{0,4}:){2,7}(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9A-Fa-f]{0,4})(?![\w:]))"
)
_DIALLED = re.compile(r"(?:\+|\b00|\(0)[\d ()/.-]{7,20}\d|(?:\(\d{3}\) ?|\b\d{3}[ .-])\d{3,4}[ .-]\d{4}\b")
_SEVEN_DIGITS = re.compile(r"\d(?:[^\w\n]{0,4}\d){6,}")
_BEFORE, _BEHIND = 8, 24  # characters around a phone number: signs before it, an extension
_REGION = "US"  # for numbers without a country code
_LONGEST = 300  # characters of a piece


def find_personal_data(text: str) -> Iterator[tuple[str, str]]:
    """Yield the kind and the value of each piece of personal data, and of each key or token of a service."""
    yield from ((KEYS, token) for token in find_tokens(text))
    yield from _find_persons(text)


def _find_persons(text: str, region: str = "") -> Iterator[tuple[str, str]]:
    """Yield the pieces in the plain form of the text."""
    text = text.translate(_PLAIN)
    if "@" in text:
        yield from (("e-mail addresses", match) for match in _EMAIL.findall(text))
    if "::" in text or re.search(r"\d", text):
        from stdnum import iban, luhn
        from stdnum.us import ssn

        for address in _IP.findall(text):
            with suppress(ValueError):
                ip = ip_address(address)
                ip = getattr(ip, "ipv4_mapped", None) or ip
                if not (ip.is_loopback or ip.is_unspecified or ip.is_multicast or ip.is_reserved):
                    yield "IP addresses", address
        for match in _SSN.finditer(text):
            if ssn.is_valid(match[0].replace(" ", "-")):
                yield "US social security numbers", match[0]
        for card in _CARD.findall(text):
            digits = re.sub(r"\D", "", card)
            if luhn.is_valid(digits) and len(set(digits)) > 1:
                yield "credit card numbers", card
        for beginning in _IBAN.findall(text):  # the length depends on the country
            ends = (end.end() for end in re.finditer(r"\w\b", beginning))
            if number := next((beginning[:end] for end in ends if iban.is_valid(beginning[:end])), ""):
                yield "IBANs", number
        if region or _DIALLED.search(text):
            import phonenumbers

            for digit_run in _SEVEN_DIGITS.finditer(text):  # libphonenumber is slow on whole texts
                nearby = text[max(0, digit_run.start() - _BEFORE) : digit_run.end() + _BEHIND]
                matches = phonenumbers.PhoneNumberMatcher(nearby, region or _REGION)
                yield from (("phone numbers", match.raw_string) for match in matches)


def check_region(region: str) -> str:
    """Return the code of a country whose phone numbers are known, or ""."""
    import phonenumbers

    if region and region not in phonenumbers.SUPPORTED_REGIONS:
        expected, step = "the ISO 3166 code of a country", "such as DE, or GB for the United Kingdom"
        raise UserError("feedback.region", repr(region), expected, step)
    return region


def mask_text(text: str) -> str:
    """Mask the personal data in a text; its length stays."""
    return _hide(text, find_personal_data(text))


def redact(text: str, region: str = "") -> tuple[str, Counter[str]]:
    """Mask personal data and secrets, and count the pieces by kind."""
    without_secrets = mask_secrets(text, environment=False)
    pieces = [*_find_persons(without_secrets, region)]
    kinds = Counter(kind for kind, _ in pieces)
    kinds[KEYS] += without_secrets != text
    return _hide(without_secrets, pieces), +kinds


def excerpt(text: str, max_length: int) -> str:
    """Return the beginning of a text, masked before it is cut, because a part would not be recognised."""
    return mask_text(text[: max_length + _LONGEST])[:max_length]


def mask_value(value: str) -> str:
    """Mask all but the first sign and separators, to show the form."""
    return value[0] + re.sub(r"\w", "•", value[1:])


def _hide(text: str, pieces: Iterable[tuple[str, str]]) -> str:
    """Mask every occurrence of the pieces, which may overlap."""
    signs, plain = list(text), text.translate(_PLAIN)
    for value in {value.translate(_PLAIN) for _, value in pieces}:
        hidden, start = mask_value(value), plain.find(value)
        while start >= 0:
            for i, sign in enumerate(hidden[1:], start + 1):
                signs[i] = "•" if sign == "•" else signs[i]
            start = plain.find(value, start + 1)
    return "".join(signs)
