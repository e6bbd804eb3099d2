"""Read reports back from the JSON that was written of them.

Invariant: what comes back prints the same; an infinite end, error or variance is one again.
"""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from math import inf
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel

from harness.errors import Problem, UserError
from harness.records import TrainingRecord, parse_json, read_training_record
from harness.report.experiment_report import ExperimentReport, ShownItem

_INFINITE = {"low": -inf, "lower": -inf, "high": inf, "upper": inf, "se": inf, "variance": inf}


def read(path: Path) -> ExperimentReport:
    """Read one report.

    Raises:
        UserError: the file is no report.
    """
    try:
        found = restore(ExperimentReport, parse_json(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        problem = Problem(str(path), f"no report ({error})", "what harness compare wrote", "harness report")
        raise UserError(problem) from error
    if not isinstance(found, ExperimentReport):
        raise UserError(Problem(str(path), "no report", "what harness compare wrote", "harness report"))
    return found


class KeptReport(NamedTuple):
    """Written report: its experiment file (empty for harness.yaml), how long its run took, items and runs."""

    config: str
    wall_s: float | None
    answers: tuple[ShownItem, ...]
    run_ids: tuple[str, ...]

    @property
    def has_prompts(self) -> bool:
        """Whether any of its items shows the prompt that was sent."""
        return any(item.prompts for item in self.answers)


def read_kept(path: Path) -> KeptReport | None:
    """Read what the next report of the same name has to know of a written one; None where there is none."""
    try:
        kept = parse_json(path.read_text("utf-8"))
        answers = restore(tuple[ShownItem, ...], kept["answers"])
        run_ids = tuple(facts["run_id"] for facts in kept["facts"])
        return KeptReport(str(kept["typed"]["config"]), kept["header"].get("wall_s"), answers, run_ids)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def paths(folder: Path) -> list[Path]:
    """List the files of a folder that look like reports, the latest first."""
    files = (path for path in folder.glob("*.json") if _begins_like_one(path))
    return sorted(files, key=lambda path: (-path.stat().st_mtime, path.name))


def _begins_like_one(path: Path) -> bool:
    with path.open("rb") as file:
        return b'"experiment"' in file.read(200)


def restore(kind: Any, value: Any) -> Any:
    """Turn plain types into what a type hint asks for.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: they are of another kind.
    """
    if value is None or kind is Any:
        return value
    origin, inside = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        known = [one for one in inside if one is not type(None)]
        return restore(known[0], value) if len(known) == 1 else value
    if origin is tuple:
        return tuple(restore(inside[0], item) for item in value)
    if origin is list:
        return [restore(inside[0], item) for item in value]
    if origin is dict:
        return {key: restore(inside[1], item) for key, item in value.items()}
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind.model_validate(value)
    if kind is TrainingRecord:
        return read_training_record(value)
    if is_dataclass(kind) or hasattr(kind, "_fields"):
        return _record(kind, value)
    return value


def _record(kind: Any, value: Mapping[str, Any]) -> Any:
    hints = _hints(kind)
    return kind(**{name: _field(hints[name], name, item) for name, item in value.items() if name in hints})


def _field(kind: Any, name: str, value: Any) -> Any:
    """Restore a field; one that is always a number and was written as none was infinite."""
    return _INFINITE[name] if value is None and kind is float and name in _INFINITE else restore(kind, value)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    names = {field.name for field in fields(kind)} if is_dataclass(kind) else set(kind._fields)
    return {name: hint for name, hint in get_type_hints(kind).items() if name in names}
