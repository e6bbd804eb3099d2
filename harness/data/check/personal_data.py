"""Personal data: e-mail addresses, phone numbers, IBANs and credit cards, by their form and check digits.

Invariant: an example is masked; nothing that was found is shown or kept in full.

False alarms: of random digits, one number in ten of the length of a credit card has its check digit, and one
IBAN-like text in ninety-seven its own; phone numbers are those that libphonenumber finds possible in text.
That a name is somebody's no form tells, so names are not looked for.
Source: ISO 7064 and ISO/IEC 7812 by python-stdnum, libphonenumber by phonenumbers.
"""

import re
from collections.abc import Iterator

from harness.data.check import DECIDE, CheckContext, Finding
from harness.data.check._table import RowTable

_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]+(?:\.[\w-]+)*\.[A-Za-z]{2,}")
_DIGITS = re.compile(r"(?:\+|\b00|\(0)[\d ()/.-]{7,20}\d|\b\d{3}[ .-]\d{3,4}[ .-]\d{4}\b")
_CARD = re.compile(r"\b[3-6](?:[ -]?\d){12,18}\b")
_IBAN = re.compile(r"\b(?=([A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}))")  # and what stands behind it
_REGION = "US"  # of numbers without a country code
_LONGEST = 300  # characters of a piece


def check(table: RowTable, given: CheckContext) -> Iterator[Finding]:
    """Count the rows that hold personal data, by kind."""
    found: dict[str, list[tuple[str, str]]] = {}
    for entry in table.entries:
        text = f"{entry.question}\n{entry.answer}"
        for kind, value in personal_data(text):
            found.setdefault(kind, []).append((entry.where, _mask(value)))
    for kind, where in found.items():
        rows = tuple(dict.fromkeys(place for place, _ in where))
        yield Finding(
            "warning",
            f"{kind}: {len(where):,} found",
            "a model may repeat them to anybody; they may need a legal basis to be trained on",
            len(table.entries),
            rows,
            f"{where[0][0]}: {where[0][1]}",
            DECIDE,
        )


def personal_data(text: str) -> Iterator[tuple[str, str]]:
    """Yield the kind and the value of each piece of personal data in a text."""
    if "@" in text:
        yield from (("e-mail addresses", match) for match in _EMAIL.findall(text))
    if not any(sign.isdigit() for sign in text):
        return
    yield from (("credit card numbers", match) for match in _CARD.findall(text) if _is_card(match))
    yield from (("IBANs", found) for match in _IBAN.findall(text) if (found := _iban(match)))
    if _DIGITS.search(text):
        import phonenumbers

        for match in phonenumbers.PhoneNumberMatcher(text, _REGION):
            yield "phone numbers", match.raw_string


def mask_text(text: str) -> str:
    """Mask the personal data in a text; its length stays."""
    for _, value in personal_data(text):
        text = text.replace(value, _mask(value))
    return text


def excerpt(text: str, most: int) -> str:
    """Return the beginning of a text, masked before it is cut, since a part would not be recognised."""
    return mask_text(text[: most + _LONGEST])[:most]


def _is_card(text: str) -> bool:
    from stdnum import luhn

    digits = re.sub(r"\D", "", text)
    return bool(luhn.is_valid(digits)) and len(set(digits)) > 1


def _iban(text: str) -> str:
    """Return the IBAN that a text begins with, as long as its country writes it; empty if there is none."""
    from stdnum import iban

    ends = (found.end() for found in re.finditer(r"\w\b", text))
    return next((text[:end] for end in ends if iban.is_valid(text[:end])), "")


def _mask(value: str) -> str:
    """Keep the first sign, and separators, so that the form can be seen."""
    return value[0] + re.sub(r"\w", "•", value[1:])
