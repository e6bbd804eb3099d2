"""Secrets in stored or displayed texts: tokens, passwords, keys in options, variables and addresses.

Invariant: masking is idempotent. Secrets recognised by their form are masked equally in every process; logs
and errors also lose secrets from the environment.
"""

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

MASK = "***"
_SHORTEST = 8  # characters; shorter environment values are not taken for secrets
_KINDS = (
    r"(?:api|access|secret|private|auth|account)[-_]?keys?|token|secret|passw(?:or)?d|passphrase|pwd"
    r"|credentials?"
)
_NAME = re.compile(rf"(?:^|[-_.])(?:{_KINDS}|key|pat)$", re.IGNORECASE)
_NO_SECRET = re.compile(
    r"(?:eos|bos|pad|unk|sep|cls|mask|image|stop|special|new|max|per)[-_]?token$", re.IGNORECASE
)
_VALUE = r"""(?P<value>"[^"\n]*"|'[^'\n]*'|[^\s"'&;,|)}\]]+)"""
_ASSIGNED = re.compile(
    rf"""(?P<name>[\w.-]{{0,64}}(?:{_KINDS}|[-_]key|[-_]pat))(?P<sign>["']?\s*[=:]\s*){_VALUE}""",
    re.IGNORECASE,
)
# A cheap search for a part of every match of `_ASSIGNED`, which takes 40 times as long.
_SIGNED = re.compile(rf"""(?:{_KINDS}|[-_]key|[-_]pat)["']?\s*[=:]""", re.IGNORECASE)
_OPTION = re.compile(
    rf"(?P<name>(?<![\w-])--?[\w.-]{{0,64}}(?:{_KINDS}|[-_]key|[-_]pat|pass|auth))(?P<sign>\s+)(?!-){_VALUE}",
    re.IGNORECASE,
)
_MIXED = re.compile(r"(?=\S*[A-Za-z])(?=\S*\d)\S{6,}")  # not a word of prose
_HEADER = re.compile(r"(?i)((?:authorization|cookie)[\"']?\s*[:=]\s*[\"']?)[^\"'\n]+")
_QUERY = re.compile(r"(?i)([?&](?:key|sig|auth|[\w-]*signature)=)[^\s&\"'#]+")
_REFUSED = re.compile(r"(?i)(api key provided:\s*)\S+")  # a server's answer to a wrong key
_BEARER = re.compile(r"(?i)\b(bearer|basic)(\s+)[\w.~+/=-]{8,}")
_ADDRESS = re.compile(r"(\w://)(?:[^\s/@:\"']*:[^\s/\"']+|[^\s/@\"']+|[^\s/@:\"']*:[^\s\"']+)@")
_FORMS = re.compile(
    r"\b(?:hf_|[rs]k[-_]|gsk_|nvapi-|pypi-|npm_|r8_|gh[oprsu]_|github_pat_|glpat-|AKIA|ASIA|AIza|xox[abeprs]-|xapp-|ya29\.)[\w-]{8,}"
    r"|\b(?:whsec_|GOCSPX-|hv[bs]\.|SG\.|do[opr]_v1_|dapi|shp(?:at|ca|pa|ss)_|lin_api_|ntn_|pplx-|xai-|dckr_pat_)[\w-]{16,}[\w.-]*"
    r"|\b\d{8,10}:AA[\w-]{33}\b|\bhooks\.slack\.com/services/[\w/]{20,}"
    r"|\beyJ[\w-]{8,}\.[\w-]+\.[\w-]*"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)",
    re.DOTALL,
)


def mask_secrets(text: str, *, environment: bool = True) -> str:
    """Replace secrets in a text by `***`; with `environment` also values of secret environment variables."""
    if environment:
        for name, value in os.environ.items():
            if _NAME.search(name) and len(value) >= _SHORTEST:
                text = text.replace(value, MASK)
    text = _FORMS.sub(MASK, _ADDRESS.sub(rf"\1{MASK}@", text) if "://" in text else text)
    text = _BEARER.sub(rf"\1\2{MASK}", _HEADER.sub(rf"\1{MASK}", text))
    text = _REFUSED.sub(rf"\1{MASK}", _QUERY.sub(rf"\1{MASK}", text))
    if ("=" in text or ":" in text) and _SIGNED.search(text):
        text = _ASSIGNED.sub(_mask_value, text)
    return _OPTION.sub(_mask_value, text) if "-" in text else text


def find_tokens(text: str) -> list[str]:
    """List the keys and tokens in a text that have a service's own form."""
    return [match[0] for match in _FORMS.finditer(text) if match[0] != MASK]


def mask_file(file: Path) -> None:
    """Mask the secrets in a text file; binary and missing files are left alone."""
    with suppress(OSError, UnicodeDecodeError):
        text = file.read_text("utf-8")
        if (masked := mask_secrets(text)) != text:
            file.write_text(masked, "utf-8")


def mask_values(value: Any, *, secret: bool = False) -> Any:
    """Return plain values with secrets masked by form, key or option; every text if `secret`."""
    if isinstance(value, Mapping):
        return {k: mask_values(inner, secret=secret or _names_secret(str(k))) for k, inner in value.items()}
    if isinstance(value, list | tuple):
        previous = ["", *value]
        return [
            mask_values(inner, secret=secret or (str(last).startswith("-") and _names_secret(str(last))))
            for last, inner in zip(previous, value, strict=False)
        ]
    if not isinstance(value, str):
        return value
    return MASK if secret and value else mask_secrets(value, environment=False)


def _names_secret(name: str) -> bool:
    return bool(_NAME.search(name)) and not _NO_SECRET.search(name)


def _mask_value(match: re.Match[str]) -> str:
    """Mask the value after a secret's name, except vocabulary tokens, placeholders, variables and prose."""
    name, sign, value = match["name"], match["sign"], match["value"]
    is_prose = sign.strip() == ":" and not re.search(r"[-_.]", name) and not _MIXED.search(value)
    if _NO_SECRET.search(name) or value.strip("\"'").startswith(("{", "$", MASK)) or is_prose:
        return match[0]
    return f"{name}{sign}{MASK}"
