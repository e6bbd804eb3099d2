"""A file in a folder is a plugin, and its file name is its name.

Invariant: names come from the folder's listing alone; only the plugin that is asked for is
imported, so listing them costs no import.
"""

import ast
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

from harness.errors import Problem, UserError, did_you_mean
from harness.records import digest

KINDS = ("methods", "prompting", "metrics")

_ONE = {"methods": "method", "prompting": "prompting", "metrics": "metric"}


def names(kind: str) -> list[str]:
    """List the plugins of a kind, sorted; a file with a leading underscore is none."""
    folder = Path(__file__).parent / kind
    return sorted(file.stem for file in folder.glob("*.py") if not file.name.startswith("_"))


def load(kind: str, name: str, where: str = "") -> ModuleType:
    """Import one plugin; `where` is what the error points at.

    Raises:
        UserError: no plugin of this kind has this name.
    """
    if name not in names(kind):
        raise UserError(unknown(kind, name, where))
    return import_module(f"harness.{kind}.{name}")


@cache
def source_digest(*paths: Path) -> str:
    """Digest what modules do: their source without comments and layout."""
    return digest([ast.unparse(ast.parse(path.read_text(encoding="utf-8"))) for path in paths])


def path_of(kind: str, name: str) -> Path:
    """Return the file of a plugin."""
    return Path(__file__).parent / kind / f"{name}.py"


def unknown(kind: str, name: str, where: str = "") -> Problem:
    """Phrase a name that no plugin has."""
    return Problem(
        where or kind,
        f"unknown {_ONE[kind]} {name!r}",
        f"the name of a file in harness/{kind}/",
        did_you_mean(name, names(kind)),
    )
