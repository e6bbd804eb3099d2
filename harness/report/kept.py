"""Read reports back from the JSON that was written of them.

Invariant: what comes back prints the same; a field that an older report lacks gets its default, one
that a newer report adds is left out, and what was not finite stays unknown.
"""

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel

from harness.errors import Problem, UserError
from harness.report.facts import ExperimentReport


def read(path: Path) -> ExperimentReport:
    """Read one report.

    Raises:
        UserError: the file is no report.
    """
    try:
        found = restored(ExperimentReport, json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        problem = Problem(str(path), f"no report ({error})", "what harness compare wrote", "harness report")
        raise UserError(problem) from error
    if not isinstance(found, ExperimentReport):
        raise UserError(Problem(str(path), "no report", "what harness compare wrote", "harness report"))
    return found


def paths(folder: Path) -> list[Path]:
    """List the files of a folder that look like reports, the latest first."""
    files = (path for path in folder.glob("*.json") if _begins_like_one(path))
    return sorted(files, key=lambda path: (-path.stat().st_mtime, path.name))


def _begins_like_one(path: Path) -> bool:
    with path.open("rb") as file:
        return b'"experiment"' in file.read(200)


def restored(kind: Any, value: Any) -> Any:
    """Turn plain types into what a type hint asks for.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: they are of another kind.
    """
    if value is None or kind is Any:
        return value
    origin, inside = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        known = [one for one in inside if one is not type(None)]
        return restored(known[0], value) if len(known) == 1 else value
    if origin is tuple:
        return tuple(restored(inside[0], item) for item in value)
    if origin is list:
        return [restored(inside[0], item) for item in value]
    if origin is dict:
        return {key: restored(inside[1], item) for key, item in value.items()}
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind.model_validate(value)
    if is_dataclass(kind) or hasattr(kind, "_fields"):
        return _record(kind, value)
    return value


def _record(kind: Any, value: Mapping[str, Any]) -> Any:
    hints = _hints(kind)
    return kind(**{name: restored(hints[name], item) for name, item in value.items() if name in hints})


@cache
def _hints(kind: Any) -> dict[str, Any]:
    names = {field.name for field in fields(kind)} if is_dataclass(kind) else set(kind._fields)
    return {name: hint for name, hint in get_type_hints(kind).items() if name in names}
