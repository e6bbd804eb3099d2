"""Values without what their model refuses, so that what else is wrong with them is said in the same round.

Invariant: keys are said to disagree where they would whatever stood in place of a value that is refused; of
keys that disagree the one written last goes with which the others agree.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from harness.spec import Disagreements

_Model = TypeVar("_Model", bound=BaseModel)
_Place = tuple[str | int, ...]
_Said = tuple[_Place, str]


def salvage(model: type[_Model], value: Any) -> _Model | None:
    """Read a value without what the model refuses in it; None where nothing usable is left."""
    while errors := refusals(model, value):
        left = _leave_out(model, value, errors)
        if left == value:
            return None
        value = left
    return model.model_validate(value)


def refusals(model: type[BaseModel], value: Any) -> Sequence[Any]:
    """List pydantic's errors of a value, one for each thing that its keys disagree on."""
    try:
        model.model_validate(value)
    except ValidationError as error:
        return [one for e in error.errors(include_url=False) for one in _part_error(e)]
    return []


def _part_error(error: Any) -> list[Any]:
    """Part an error of pydantic's into one for each disagreement."""
    raised = error.get("ctx", {}).get("error")
    texts = raised.problems if isinstance(raised, Disagreements) else ()
    return [{**error, "ctx": {"error": text}} for text in texts] or [error]


def disagreements(model: type[BaseModel], value: Any) -> list[Any]:
    """List what keys disagree on, as pydantic's errors, also where keys beside them are refused.

    Pydantic stops at the first of them, and asks only where each key is right by itself. Here each rule of
    each mapping is asked, with a stand-in for what is refused.
    """
    written = dict[str, str]()
    found = _build(model, value, (), written)[1] if isinstance(value, dict) else []
    return [_phrase_as_error(loc, text, written) for loc, text in dict.fromkeys(found)]


def _phrase_as_error(loc: _Place, text: str, written: Mapping[str, str]) -> Any:
    """Phrase an error whose text names values as they are written."""
    for shown, as_written in written.items():
        text = text.replace(shown, as_written)
    return {"type": "value_error", "loc": loc, "ctx": {"error": text}, "input": None}


def _build(
    model: type[BaseModel], value: Any, loc: _Place, written: dict[str, str]
) -> tuple[BaseModel, list[_Said]]:
    """Build a model without asking its rules, and list what these say."""
    # `written` gets `key: value` as it is written by what stands in its place.
    with suppress(ValueError):
        for rule in _rules(model, "before"):
            value = rule(value)
    found, fields, others = list[_Said](), dict[str, Any](), list[dict[str, Any]]()
    for name, field in model.model_fields.items():
        if name not in value:
            continue
        inner = _build_inner(field.annotation, value[name], (*loc, name), written)
        if inner is not None:
            fields[name] = inner[0]
            found += inner[1]
        elif (errors := _refusals_of(field, value[name])) is None:
            fields[name] = _adapter(field).validate_python(value[name])
        else:
            fields[name] = _stand_in(field, errors)
            written[f"{name}: {fields[name]}"] = f"{name}: {value[name]}"
            if not isinstance(fields[name], int | float):  # a text may agree or not by what it says
                others.append({name: field.get_default(call_default_factory=True)})
    if value.keys() - model.model_fields:  # any key that is missing may have been meant
        absent = {name: field for name, field in model.model_fields.items() if name not in value}
        others += [{name: _stand_in(field, [])} for name, field in absent.items()]
    made = model.model_construct(**fields)
    always = [set(_list_broken_rules(model.model_construct(**{**fields, **other}))) for other in others]
    found += ((loc, text) for text in _list_broken_rules(made) if all(text in said for said in always))
    return made, found


def _build_inner(
    kind: Any, value: Any, loc: _Place, written: dict[str, str]
) -> tuple[Any, list[_Said]] | None:
    """Build the models that a value holds; None where it holds none of a known kind."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return _build(kind, value, loc, written) if isinstance(value, dict) else None
    kinds = [of for of in get_args(kind) if of not in (type(None), Ellipsis)]
    if get_origin(kind) in (Union, UnionType):
        return _build_inner(kinds[0], value, loc, written) if len(kinds) == 1 else None
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if get_origin(kind) not in (tuple, list, dict) or isinstance(value, dict) != (get_origin(kind) is dict):
        return None
    each = {key: _build_inner(kinds[-1], of, (*loc, key), written) for key, of in pairs}
    built = {key: of for key, of in each.items() if of is not None}
    models = {key: of[0] for key, of in built.items()}
    found = [said for of in built.values() for said in of[1]]
    return (models if isinstance(value, dict) else tuple(models.values()), found) if built else None


def _rules(model: type[BaseModel], mode: str) -> list[Callable[[Any], Any]]:
    """List a model's own rules of a mode of pydantic, in the order of evaluation."""
    rules = model.__pydantic_decorators__.model_validators.values()
    return [rule.func for rule in rules if rule.info.mode == mode]


def _list_broken_rules(made: BaseModel) -> list[str]:
    """List what the rules of a model say of its keys; one that lacks a key has nothing to say."""
    said = []
    for rule in _rules(type(made), "after"):
        try:
            rule(made)
        except Disagreements as error:
            said += error.problems
        except ValueError as error:
            said.append(str(error))
        except (AttributeError, TypeError, LookupError):
            continue
    return said


def _adapter(field: FieldInfo) -> TypeAdapter[Any]:
    return TypeAdapter(field.rebuild_annotation())


def _refusals_of(field: FieldInfo, value: Any) -> Sequence[Any] | None:
    """List pydantic's errors of a value by itself; None where it is right."""
    try:
        _adapter(field).validate_python(value)
    except ValidationError as error:
        return error.errors(include_url=False)
    return None


def _stand_in(field: FieldInfo, errors: Sequence[Any]) -> Any:
    """Return a value that a key may have: a passed bound, else one of its type, else its default."""
    bounds = [of[bound] for e in errors if (of := e.get("ctx", {})) for bound in ("ge", "le") if bound in of]
    least = [getattr(of, "ge", 1) for of in field.metadata]
    for value in (*bounds, *least, 1, 0.5, "x", ["x"], {}):
        if _refusals_of(field, value) is None:
            return _adapter(field).validate_python(value)
    return field.get_default(call_default_factory=True)


def _leave_out(model: type[BaseModel], value: Any, errors: Sequence[Any]) -> Any:
    """Return a value without what was refused."""
    left = deepcopy(value)
    for e in errors:
        if e["type"] == "value_error" and (key := _odd_key(model, left, e["loc"])) is not None:
            _innermost(left, (*e["loc"], key))[0].pop(key)
            continue
        around, loc = _innermost(left, e["loc"])
        if loc and e["type"] != "missing":
            around.pop(loc[-1])
    return left


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
