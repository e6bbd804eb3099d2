"""Dates and times of rows, as `data check` and `data split` read them.

Invariant: both read the same forms alike; a time without a zone is UTC.
"""

import math
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, NamedTuple

FORMS = "2024-05-31, 2024-05, 20240531, 2024-05-31T10:00:00Z or seconds since 1970"
_NUMBER, _EIGHT_DIGITS = re.compile(r"-?\d+(?:\.\d+)?"), re.compile(r"\d{8}")
_MONTH = re.compile(r"\d{4}-\d{2}")


class Moment(NamedTuple):
    """A time to sort by: seconds since 1970, or where it is a plain number that number."""

    at: float
    is_number: bool


def read_moment(value: Any, form: str | None = None, *, with_days: bool = True) -> Moment:
    """Read a time as ISO 8601, as a month, as a number, or in a `form` of strptime's.

    Eight digits are a day where `with_days`, else a number as well.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, bool) or value is None:
        raise ValueError(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(value)
    whole = isinstance(value, float) and value.is_integer()
    text = value.isoformat() if hasattr(value, "isoformat") else str(int(value) if whole else value).strip()
    if form is None and isinstance(value, int | float) and not (with_days and _is_day(text)):
        return Moment(float(value), is_number=True)
    if form is None and _NUMBER.fullmatch(text) and not (with_days and _is_day(text)):
        return Moment(float(text), is_number=True)
    text = f"{text}-01" if form is None and _MONTH.fullmatch(text) else text
    read = datetime.strptime(text, form) if form else datetime.fromisoformat(text)  # noqa: DTZ007
    return Moment((read if read.tzinfo else read.replace(tzinfo=UTC)).timestamp(), is_number=False)


def read_date(value: Any, form: str | None = None) -> datetime:
    """Read a date in UTC, without its zone; a number of more than eight digits is seconds since 1970.

    Raises:
        ValueError: it is none.
        OverflowError: it is too far away.
        OSError: likewise.
    """
    found = read_moment(value, form)
    if found.is_number and abs(found.at) < 1e8:
        raise ValueError(value)
    return datetime.fromtimestamp(found.at, UTC).replace(tzinfo=None)


def are_days(values: Iterable[Any]) -> bool:
    """Tell whether all values of eight digits, if any, are days."""
    return all(map(_is_day, filter(_EIGHT_DIGITS.fullmatch, map(str, values))))


def _is_day(text: str) -> bool:
    try:
        return bool(_EIGHT_DIGITS.fullmatch(text) and datetime.fromisoformat(text))
    except ValueError:
        return False
