"""Values without what their model refuses, so that what else is wrong with them is said in the same round.

Invariant: no keys are said to disagree where a value beside them was left out; of keys that disagree the one
written last goes with which the others agree.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

_Model = TypeVar("_Model", bound=BaseModel)
_Place = tuple[str | int, ...]


def salvage(model: type[_Model], value: Any) -> _Model | None:
    """Read a value without what the model refuses in it; None where nothing usable is left."""
    while errors := refusals(model, value):
        left, _ = _leave_out(model, value, errors)
        if left == value:
            return None
        value = left
    return model.model_validate(value)


def refusals(model: type[BaseModel], value: Any) -> Sequence[Any]:
    """List pydantic's errors of a value."""
    try:
        model.model_validate(value)
    except ValidationError as error:
        return error.errors(include_url=False)
    return []


def disagreements(model: type[BaseModel], value: Any, refused: Sequence[Any]) -> list[Any]:
    """List errors of keys that disagree, which pydantic asks only where each is right by itself.

    Numbers beyond a bound are put on it, and whatever else was refused is left out.
    """
    (value, written), found = _put_on_bounds(value, refused), list[Any]()
    known, incomplete = {e["loc"] for e in refused}, set[_Place]()
    while errors := refusals(model, value):
        new = [e for e in errors if e["type"] == "value_error" and e["loc"] not in known | incomplete]
        found += [_restore_numbers(e, written) for e in new]
        known |= {e["loc"] for e in new}
        left, places = _leave_out(model, value, errors)
        incomplete |= places
        if left == value:
            break
        value = left
    return found


def _put_on_bounds(value: Any, refused: Sequence[Any]) -> tuple[Any, dict[str, str]]:
    """Return a value with numbers on their bounds, and by `key: bound` the `key: number` that is written."""
    bounded, written = deepcopy(value), dict[str, str]()
    for e in refused:
        within, (around, loc) = e.get("ctx", {}), _innermost(bounded, e["loc"])
        bound = within.get("ge", within.get("le"))
        if loc and loc == e["loc"] and bound is not None:
            written[f"{loc[-1]}: {bound}"] = f"{loc[-1]}: {around[loc[-1]]}"
            around[loc[-1]] = bound
    return bounded, written


def _restore_numbers(error: Any, written: Mapping[str, str]) -> Any:
    """Return an error whose text names numbers as they are written."""
    text = str(error["ctx"]["error"])
    for bounded, number in written.items():
        text = text.replace(bounded, number)
    return {**error, "ctx": {"error": text}}


def _leave_out(model: type[BaseModel], value: Any, errors: Sequence[Any]) -> tuple[Any, set[_Place]]:
    """Return a value without what was refused, and the places of the mappings that lost a wrong value."""
    left, incomplete = deepcopy(value), set[_Place]()
    for e in errors:
        if e["type"] == "value_error" and (key := _odd_key(model, left, e["loc"])) is not None:
            _innermost(left, (*e["loc"], key))[0].pop(key)
            continue
        around, loc = _innermost(left, e["loc"])
        if loc and e["type"] != "missing":
            around.pop(loc[-1])
            incomplete.add(loc[:-1])
    return left, incomplete


def _innermost(value: Any, loc: _Place) -> tuple[dict[Any, Any], _Place]:
    """Return the innermost mapping on the way to a place, outside of lists, and the place of its key."""
    around: dict[Any, Any] = {}
    reached: _Place = ()
    for n, key in enumerate(loc):
        if not isinstance(value, dict) or key not in value:
            break
        around, reached, value = value, loc[: n + 1], value[key]
    return around, reached


def _odd_key(model: type[BaseModel], value: Any, loc: _Place) -> str | None:
    """Return the last key of the mapping at a place without which its keys agree; None without one."""
    around, reached = _innermost({"": value}, ("", *loc))
    mapping = around[reached[-1]] if len(reached) == len(loc) + 1 else None
    before = {(e["loc"], e["type"]) for e in refusals(model, value)}
    for key in reversed(mapping) if isinstance(mapping, dict) else ():
        without = deepcopy(value)
        _innermost(without, (*loc, key))[0].pop(key)
        after = {(e["loc"], e["type"]) for e in refusals(model, without)}
        # Once they agree, pydantic asks the keys around them.
        if (loc, "value_error") not in after and all(kind == "value_error" for _, kind in after - before):
            return str(key)
    return None
