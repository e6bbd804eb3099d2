"""Code versions: one number per concern, which identities contain in place of the code itself.

Invariant: moving, renaming and documenting code changes no identity. `code_versions.toml` lists each concern
with its files and a pin, the digest of their syntax trees; a test fails if a pin differs. If results change,
raise the version; otherwise run `make pins`.
"""

import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

TABLE = Path(__file__).with_suffix(".toml")


class CodeVersion(NamedTuple):
    """The version of one concern; `files` are globs below `harness/`, `pin` the digest of their code."""

    version: int
    files: tuple[str, ...]
    pin: str


@cache
def code_versions() -> Mapping[str, CodeVersion]:
    """Read the table: concern, such as `layout` or `methods/lora`, to its version."""
    rows = tomllib.loads(TABLE.read_text("utf-8"))
    return {name: CodeVersion(row["version"], tuple(row["files"]), row["pin"]) for name, row in rows.items()}


def versions_of(*concerns: str) -> dict[str, int]:
    """Return the versions of some concerns, for use in a digest.

    Raises:
        KeyError: the table lacks a concern.
    """
    return {name: code_versions()[name].version for name in concerns}
