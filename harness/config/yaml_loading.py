"""YAML values with their source positions, and pydantic's errors as problems at those positions.

Invariant: `where` always answers, with the line of the value itself or of the nearest value around it; one
problem for each error.
"""

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import date
from functools import lru_cache
from itertools import chain, islice
from math import inf
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import ScalarNode, SequenceNode
from ruamel.yaml.tag import Tag

from harness.errors import Problem, UserError, did_you_mean, one_line
from harness.spec import Disagreements

Keys = tuple[str | int, ...]
_Model = TypeVar("_Model", bound=BaseModel)
_MOST_VALUES = 100_000  # that the aliases of a file may stand for: nine lines can stand for billions
_LISTS_OF_TEXTS, _TEXT = ("labels", "stop"), Tag(suffix="tag:yaml.org,2002:str")
_MOST_BITS = 1024  # of a number, which float can hold
# What a rule between keys says: what disagrees, then how to fix it.
_NEXT = re.compile(
    r"(?P<found>.+?)[;:] (?P<step>(?:add|leave|list|name|perhaps|report|say|set|write) .+)", re.DOTALL
)

_CANDIDATES = (
    "write one below candidates:, such as `prompt: {prompting: zero_shot}`; harness ls methods lists more"
)

NAME_IN_WORDS = "letters, digits and the signs _ . -, 100 at most, and neither . nor - first"
_EXPECTED = {
    "dict_type": "a mapping of `key: value`",
    "model_type": "a mapping of `key: value`",
    "tuple_type": "a list",
    "list_type": "a list",
    "string_type": "text",
    "too_short": "at least one entry",
    "string_pattern_mismatch": NAME_IN_WORDS,
    "value_error": "keys that agree with each other",
}


@dataclass(slots=True)
class Tree:
    """The values of all files of one experiment, their places, and what is wrong so far.

    `failed` holds the keys whose value could not be read, so that nothing more is said of them.
    """

    data: dict[str, Any]
    marks: dict[Keys, str]
    folder: Path
    problems: list[Problem] = field(default_factory=list)
    failed: set[Keys] = field(default_factory=set)

    def where(self, keys: Keys) -> str:
        """Return `file:line` of the value at these keys, or of the nearest one around it."""
        return next(self.marks[keys[:n]] for n in range(len(keys), -1, -1) if keys[:n] in self.marks)

    def value(self, keys: Keys) -> Any:
        """Return the value at these keys, below mappings and lists that are there; None without it."""
        around: Any = self.data
        for key in keys[:-1]:
            around = around[key]
        return around.get(keys[-1]) if isinstance(around, dict) else around[keys[-1]]

    def put(self, keys: Keys, value: Any, marks: Mapping[Keys, str]) -> None:
        """Replace the value at these keys; `marks` are places relative to it."""
        around: Any = self.data
        for key in keys[:-1]:
            around = around[key]
        around[keys[-1]] = value
        self.marks = {k: mark for k, mark in self.marks.items() if k[: len(keys)] != keys or k == keys}
        self.marks.update({keys + k: mark for k, mark in marks.items()})


def parse(text: str, shown: str) -> tuple[Any, dict[Keys, str]]:
    """Parse YAML 1.2 into plain values and the `file:line` of each.

    Raises:
        UserError: the text is no YAML, or a key stands twice.
    """
    value, marks = _parse_once(text, shown)
    return deepcopy(value), dict(marks)


@lru_cache(64)
def _parse_once(text: str, shown: str) -> tuple[Any, dict[Keys, str]]:
    """Parse a text that a command may read again, such as a shipped suite; nobody may change the result."""
    marks: dict[Keys, str] = {(): f"{shown}:1"}
    try:
        loaded = load_yaml(text, "rt")
        _mark(loaded, (), shown, marks)
        return plain(loaded), marks
    except YAMLError as error:
        if not isinstance(error, MarkedYAMLError) or error.problem_mark is None:
            reason = " ".join(str(error).split())[:120]
            raise UserError(shown, reason, "YAML", "fix the file") from None
        where = f"{shown}:{error.problem_mark.line + 1}"
        found = str(error.problem).split(" with value")[0].removeprefix("found ")
        expected, step = "valid YAML", "check quotes, brackets and indentation"
        if "duplicate key" in found:
            expected, step = "every key once", "remove or rename one of the two"
        elif error.context:
            found = f"{found}, {error.context}"
        raise UserError(where, found, expected, step) from None


def load_yaml(text: str, kind: str) -> Any:
    """Load YAML by the kind of ruamel's readers that is named, within bounds of what aliases stand for.

    Raises:
        YAMLError: it is not YAML, a value cannot be read, or aliases stand for too much.
    """
    try:
        if "*" in text and (document := YAML(typ=kind, pure=True).compose(text)):
            _count_values(document, {})
        yaml = YAML(typ=kind, pure=True)
        yaml.Composer = _TextComposer
        return yaml.load(text)
    except RecursionError:
        raise YAMLError("values in one another, deeper than can be read") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # such as a date that is none
        raise YAMLError(f"a value that cannot be read ({one_line(error)})") from None


class _TextComposer(Composer):
    """Composer that keeps the entries of lists of texts as they are written: `labels: [007, on, null]`."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        """Compose a mapping."""
        node = super().compose_mapping_node(anchor)
        for key, value in node.value:
            if key.value in _LISTS_OF_TEXTS and isinstance(value, SequenceNode):
                for entry in value.value:
                    if isinstance(entry, ScalarNode) and entry.value:
                        entry.ctag = _TEXT
        return node


def _count_values(node: Any, counted: dict[int, float]) -> float:
    """Count the values below a node as if all aliases were written out, and 50 characters as one more."""
    if id(node) not in counted:
        counted[id(node)] = inf  # an alias of a value inside of it
        if isinstance(node.value, str):
            n = 1 + len(node.value) / 50
        else:
            inner = chain.from_iterable(part if isinstance(part, tuple) else (part,) for part in node.value)
            n = 1 + sum(_count_values(part, counted) for part in inner)
        counted[id(node)] = n
        if n > _MOST_VALUES:
            problem = f"aliases that stand for more than {_MOST_VALUES:,} values"
            raise MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
    return counted[id(node)]


def plain(value: Any) -> Any:
    """Turn the parser's own kinds of values into Python's; keys become strings.

    Raises:
        YAMLError: a number is larger than any that is meant.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(inner) for inner in value]
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        raise YAMLError(f"a number of {value.bit_length():,} bits")
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return value


def mapping(value: Any) -> dict[str, Any]:
    """Return a value that is a mapping, and an empty one for whatever else was written."""
    return value if isinstance(value, dict) else {}


def _mark(value: Any, keys: Keys, shown: str, marks: dict[Keys, str]) -> None:
    places = getattr(getattr(value, "lc", None), "data", None) or {}
    inner = value.items() if isinstance(value, Mapping) else enumerate(value) if places else ()
    for key, child in inner:
        below = (*keys, key if isinstance(key, int) and not isinstance(value, Mapping) else str(key))
        if key in places:
            marks[below] = f"{shown}:{places[key][0] + 1}"
        _mark(child, below, shown, marks)


def problems_of(model: type[BaseModel], value: Any, tree: Tree, keys: Keys = ()) -> list[Problem]:
    """Return what the model refuses in a value that stands at these keys of the tree."""
    errors = [(error, (*keys, *error["loc"])) for error in _errors(model, value)]
    return [
        _problem(error, model, tree, keys)
        for error, at in errors
        if not any(at[:n] in tree.failed for n in range(len(at) + 1))  # neither it nor what is around it
    ]


def read_valid(model: type[_Model], value: Any) -> _Model | None:
    """Read a value; None where the model refuses it, which `problems_of` says."""
    try:
        return model.model_validate(value)
    except ValidationError:
        return None


def _errors(model: type[BaseModel], value: Any) -> list[Any]:
    """List pydantic's errors, those about one value joined, and one for each disagreement between keys."""
    try:
        model.model_validate(value)
        return []
    except ValidationError as error:
        refused = error.errors(include_url=False)
    found: dict[tuple[Keys, str], Any] = {}
    for e in refused:
        # A list whose entries were refused counts as too short as well: one problem, not two.
        if e["type"] == "too_short" and e["input"]:
            continue
        loc, raised = _descend(model, e["loc"])[1], e.get("ctx", {}).get("error")
        # Of one value only rules between its keys may say several things.
        disagreements = raised.problems if isinstance(raised, Disagreements) else ()
        for said in disagreements or [str(raised) if e["type"] == "value_error" else ""]:
            one = found.setdefault((loc, said), {**e, "loc": loc, "said": said, "expected": []})
            one["expected"].append(_describe_expected(e))
    # Where rules between the keys of a value speak, it is of that kind, and need not be of another one.
    ruled = {loc for loc, said in found if said}
    return [error for (loc, said), error in found.items() if said or loc not in ruled]


def _descend(model: Any, loc: Keys) -> tuple[Any, Keys]:
    """Return the type at a place, and the place cut where a value may be of several kinds."""
    for depth, key in enumerate(loc):
        fields = getattr(model, "model_fields", {})
        model = fields[key].annotation if key in fields else _inner(model)
        if get_origin(model) in (Union, UnionType):
            if len(_kinds(model)) > 1:
                return model, loc[: depth + 1]
            model = _inner(model)
    return model, loc


def _problem(error: Any, model: type[BaseModel], tree: Tree, keys: Keys) -> Problem:
    loc: Keys = error["loc"]
    where = tree.where((*keys, *loc))
    name = _name(loc)
    if error["type"] == "extra_forbidden":
        around = _descend(model, loc[:-1])[0]
        around = around if hasattr(around, "model_fields") else _inner(around)
        known = list(getattr(around, "model_fields", ()))
        if not known:
            return Problem(where, f"key {name!r}", "no keys at all here", "remove it")
        return Problem(where, f"unknown key {name!r}", "a known key", did_you_mean(name, known))
    if error["type"] == "missing":
        above = f" in {_name(loc[:-1])}" if len(loc) > 1 else ""
        step = _CANDIDATES if loc == ("candidates",) else f"add a line `{name}: …`"
        return Problem(where, f"no key {name!r}{above}", f"a value for {name!r}", step)
    if error["type"] == "value_error":
        said, at = error["said"], (*keys, *loc)
        parts = _NEXT.fullmatch(said)
        found = parts["found"] if parts else said
        step = parts["step"] if parts else "change one of them, or leave it out"
        # The place of the first key that the sentence names, else that of the mapping.
        written = mapping(tree.value(at) if at else tree.data)
        named = (word for word in re.findall(r"\w+", said) if word in written)
        return Problem(tree.where((*at, *islice(named, 1))), found, _EXPECTED["value_error"], step)
    expected = " or ".join(dict.fromkeys(error["expected"]))
    found = f"{name}: {short_repr(error['input'])}"
    value, kind, step = error["input"], error["type"], "write another value"
    if loc == ("candidates",) and not value:
        step = _CANDIDATES
    elif kind == "literal_error" and isinstance(value, str):
        known = error["ctx"]["expected"].replace(" or ", ", ").replace("'", "").split(", ")
        hint = did_you_mean(value, known)
        step = hint if "did you mean" in hint else step
    elif kind in ("tuple_type", "list_type") and isinstance(value, str | int | float):
        step = f"write [{value}]"
    elif error["expected"] == ["text"] and isinstance(value, int | float):
        step = "write it in quotes, as it stands there"
    return Problem(where, found, expected, step)


def _name(loc: Keys) -> str:
    named = [str(key) for key in loc[-2:]]
    return f"{named[0]}[{named[1]}]" if len(named) == 2 and isinstance(loc[-1], int) else "".join(named[-1:])


def _inner(annotation: Any) -> Any:
    """Take the item type of a list or mapping, or the type that may be None."""
    kinds = _kinds(annotation)
    return kinds[-1] if kinds else annotation


def _kinds(annotation: Any) -> list[Any]:
    return [kind for kind in get_args(annotation) if kind not in (type(None), Ellipsis)]


def _describe_expected(error: Any) -> str:
    if error["type"] in _EXPECTED:
        return _EXPECTED[error["type"]]
    if error["type"] == "literal_error":
        return f"one of {error['ctx']['expected']}"
    expected = str(error["msg"]).removeprefix("Input should be ").split(", ")[0]
    return f"a value {expected}" if expected.startswith(("greater", "less")) else expected


def short_repr(value: Any) -> str:
    """Write a value as messages do: nothing, true and false in words, a long one cut."""
    text = "nothing" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
