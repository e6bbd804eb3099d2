"""A file in a folder is a plugin, and its file name is its name.

Invariant: names come from the folder's listing alone; only the plugin that is asked for is
imported, so listing them costs no import.
"""

import traceback
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from harness.errors import Problem, UserError, did_you_mean
from harness.provenance.code_versions import code_versions
from harness.records import checksum

KINDS = ("methods", "prompting", "metrics")

_ONE = {"methods": "method", "prompting": "prompting", "metrics": "metric"}


def names(kind: str) -> list[str]:
    """List the plugins of a kind, sorted; a file with a leading underscore is none."""
    folder = Path(__file__).parent / kind
    return sorted(file.stem for file in folder.glob("*.py") if not file.name.startswith("_"))


def load(kind: str, name: str, where: str = "") -> ModuleType:
    """Import one plugin by its name, or a user's own by the path of its file.

    `where` is what the error points at.

    Raises:
        UserError: no plugin of this kind has this name, or the file cannot be imported.
    """
    if name.endswith(".py"):
        return _from_file(kind, Path(name), where)
    if name not in names(kind):
        raise UserError(unknown(kind, name, where))
    return import_module(f"harness.{kind}.{name}")


def version(kind: str, name: str) -> int | str:
    """Return what an identity holds of a plugin's code: its version, or of a file that has none its checksum.

    Versions are those of `code_versions.toml`; a user's own file, and one not listed yet, has none.
    """
    listed = code_versions().get(f"{kind}/{name}")
    return listed.version if listed else checksum(path_of(kind, name))


def path_of(kind: str, name: str) -> Path:
    """Return the file of a plugin, or of a user's own the path that is its name."""
    return Path(name) if name.endswith(".py") else Path(__file__).parent / kind / f"{name}.py"


def _from_file(kind: str, path: Path, where: str) -> ModuleType:
    expected = f"a Python file that defines what README says of a {_ONE[kind]}"
    found = spec_from_file_location(f"harness_own_{kind}_{path.stem}", path)
    if not path.is_file() or found is None or found.loader is None:
        raise UserError(Problem(where or kind, f"no file {path}", expected, "create it, or correct the path"))
    module = module_from_spec(found)
    try:
        found.loader.exec_module(module)
    except Exception as error:
        line = _line_in(error, path)
        problem = Problem(f"{path}{line}", f"{type(error).__name__}: {error}", expected, "mend the file")
        raise UserError(problem) from error
    if not callable(getattr(module, _ONE[kind], None)):
        raise UserError(
            Problem(str(path), f"no function {_ONE[kind]!r}", expected, f"define {_ONE[kind]}(task)")
        )
    return module


def _line_in(error: Exception, path: Path) -> str:
    """Return `:line` of the error in the file, where it is in it."""
    if isinstance(error, SyntaxError):
        return f":{error.lineno}"
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    return f":{lines[-1]}" if lines else ""


def unknown(kind: str, name: str, where: str = "") -> Problem:
    """Phrase a name that no plugin has."""
    return Problem(
        where or kind,
        f"unknown {_ONE[kind]} {name!r}",
        f"the name of a file in harness/{kind}/",
        did_you_mean(name, names(kind)),
    )
