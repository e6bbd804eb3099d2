"""What pydantic refuses, said as found, expected and next step.

Invariant: one problem for each refusal, at the line of the value (or of what lacks it).
"""

from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from harness.config.yaml_tree import Keys, Tree
from harness.errors import Problem, did_you_mean

_GONE = {
    "warmup_ratio": "write warmup_steps: a value below 1, such as 0.05, is the ratio",
    "evaluation_strategy": "remove it: every training here is evaluated on the validation rows",
    "group_by_length": "remove it: rows are grouped by length anyway; packing: true joins them",
    "max_prompt_length": "remove it: it is gone from TRL; shorten long prompts in the data",
}

_Model = TypeVar("_Model", bound=BaseModel)

_EXPECTED = {
    "dict_type": "a mapping of `key: value`",
    "model_type": "a mapping of `key: value`",
    "tuple_type": "a list",
    "list_type": "a list",
    "string_type": "text",
    "too_short": "at least one entry",
    "string_pattern_mismatch": "letters, digits and the signs _ . - only",
    "value_error": "keys that agree with each other",
}


def problems_of(model: type[BaseModel], value: Any, tree: Tree, keys: Keys = ()) -> list[Problem]:
    """Return what the model refuses in a value that stands at these keys of the tree."""
    errors = [e for e in _errors(model, value) if not tree.has_failed((*keys, *e["loc"]))]
    return [_problem(error, model, tree, keys) for error in errors]


def salvage(model: type[_Model], value: Any) -> _Model | None:
    """Read a value without what the model refuses in it; None where nothing usable is left."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        spoilt = {e["loc"][0] for e in error.errors() if e["loc"] and e["type"] != "missing"}
    if not isinstance(value, dict) or not spoilt & value.keys():
        return None
    return salvage(model, {key: inner for key, inner in value.items() if key not in spoilt})


def _errors(model: type[BaseModel], value: Any) -> list[Any]:
    """List pydantic's errors, those about one value joined into one."""
    try:
        model.model_validate(value)
    except ValidationError as error:
        found: dict[Keys, Any] = {}
        for e in error.errors(include_url=False):
            # A list whose entries were refused counts as too short as well: one problem, not two.
            if e["type"] != "too_short" or not e["input"]:
                loc = _without_kinds(model, e["loc"])
                found.setdefault(loc, {**e, "loc": loc, "expected": []})["expected"].append(_expected(e))
        return list(found.values())
    return []


def _without_kinds(model: Any, loc: Keys) -> Keys:
    """Cut a place where a value may be of several kinds, of which pydantic names each."""
    for depth, key in enumerate(loc):
        fields = getattr(model, "model_fields", {})
        model = fields[key].annotation if key in fields else _inner(model)
        if get_origin(model) in (Union, UnionType):
            if len(_kinds(model)) > 1:
                return loc[: depth + 1]
            model = _inner(model)
    return loc


def _problem(error: Any, model: type[BaseModel], tree: Tree, keys: Keys) -> Problem:
    loc: Keys = error["loc"]
    where = tree.where((*keys, *loc))
    name = _name(loc)
    if error["type"] == "extra_forbidden":
        return _unknown_key(name, _fields_at(model, loc[:-1]), where)
    if error["type"] == "missing":
        above = f" in {_name(loc[:-1])}" if len(loc) > 1 else ""
        return Problem(where, f"no key {name!r}{above}", f"a value for {name!r}", f"add a line `{name}: …`")
    if error["type"] == "value_error":
        return Problem(where, str(error["ctx"]["error"]), _EXPECTED["value_error"])
    expected = " or ".join(dict.fromkeys(_in_words(error["expected"])))
    return Problem(where, f"{name}: {_shown(error['input'])}", expected, _next_step(error))


def _in_words(expected: list[str]) -> list[str]:
    """Say of a value that may be a number or a text that the text is a share: only margins are both."""
    is_number = any(kind.startswith("a value ") or kind == "a valid number" for kind in expected)
    return ["a share such as 10%" if is_number and kind == "text" else kind for kind in expected]


def _name(loc: Keys) -> str:
    """Name a value by its key; an entry of a list by the list's key and its index."""
    named = [str(key) for key in loc[-2:]]
    return f"{named[0]}[{named[1]}]" if len(named) == 2 and isinstance(loc[-1], int) else "".join(named[-1:])


def _unknown_key(name: str, known: list[str], where: str) -> Problem:
    if not known:
        return Problem(where, f"key {name!r}", "no keys at all here", "remove it")
    next_step = _GONE.get(name) or did_you_mean(name, known)
    return Problem(where, f"unknown key {name!r}", "a known key", next_step)


def _fields_at(model: Any, loc: Keys) -> list[str]:
    """List the keys that the model at this place of a model takes."""
    for key in loc:
        fields = getattr(model, "model_fields", {})
        model = fields[key].annotation if key in fields else _inner(model)
    model = model if hasattr(model, "model_fields") else _inner(model)
    return list(getattr(model, "model_fields", ()))


def _inner(annotation: Any) -> Any:
    """Take the item type of a list or mapping, or the type that may be None."""
    kinds = _kinds(annotation)
    return kinds[-1] if kinds else annotation


def _kinds(annotation: Any) -> list[Any]:
    return [kind for kind in get_args(annotation) if kind not in (type(None), Ellipsis)]


def _expected(error: Any) -> str:
    if error["type"] == "string_pattern_mismatch" and error["ctx"]["pattern"].endswith("%$"):
        return "a share such as 10%"
    if error["type"] in _EXPECTED:
        return _EXPECTED[error["type"]]
    if error["type"] == "literal_error":
        return f"one of {error['ctx']['expected']}"
    said = str(error["msg"]).removeprefix("Input should be ").split(", ")[0]
    return f"a value {said}" if said.startswith(("greater", "less")) else said


def _next_step(error: Any) -> str:
    value, kind = error["input"], error["type"]
    if kind == "literal_error" and isinstance(value, str):
        known = error["ctx"]["expected"].replace(" or ", ", ").replace("'", "").split(", ")
        hint = did_you_mean(value, known)
        return hint if "did you mean" in hint else ""
    if kind in ("tuple_type", "list_type") and isinstance(value, str | int | float):
        return f"write [{value}]"
    if error["expected"] == ["text"] and isinstance(value, int | float):
        return f'write "{value}" in quotes'
    return ""


def _shown(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
