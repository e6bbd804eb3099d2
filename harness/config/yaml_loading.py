"""YAML values with their source positions, and pydantic's errors as problems at those positions.

Invariant: `where` always returns a line, of the value itself or of the nearest enclosing value; each error
gives one problem.
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
_MOST_VALUES = 100_000  # in a file after its aliases are expanded: nine lines can expand to billions
_LISTS_OF_TEXTS, _TEXT = ("labels", "stop"), Tag(suffix="tag:yaml.org,2002:str")
_MOST_BITS = 1024  # of a number, so that float can hold it
# The message of a rule between keys: what disagrees, then how to fix it.
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
    """Values of all files of one experiment, their positions, and the problems so far.

    `failed` holds the keys whose values could not be read; no further problems are reported for them.
    `files` are the files that were read.
    """

    data: dict[str, Any]
    marks: dict[Keys, str]
    folder: Path
    problems: list[Problem] = field(default_factory=list)
    failed: set[Keys] = field(default_factory=set)
    files: list[Path] = field(default_factory=list)

    def where(self, keys: Keys) -> str:
        """Return `file:line` of the value at these keys, or of the nearest enclosing value."""
        return next(self.marks[keys[:n]] for n in range(len(keys), -1, -1) if keys[:n] in self.marks)

    def value(self, keys: Keys) -> Any:
        """Return the value at these keys, or None; the mappings and lists around it must exist."""
        parent: Any = self.data
        for key in keys[:-1]:
            parent = parent[key]
        return parent.get(keys[-1]) if isinstance(parent, dict) else parent[keys[-1]]

    def put(self, keys: Keys, value: Any, marks: Mapping[Keys, str]) -> None:
        """Replace the value at these keys; `marks` are positions relative to it."""
        parent: Any = self.data
        for key in keys[:-1]:
            parent = parent[key]
        parent[keys[-1]] = value
        self.marks = {k: mark for k, mark in self.marks.items() if k[: len(keys)] != keys or k == keys}
        self.marks.update({keys + k: mark for k, mark in marks.items()})


def parse(text: str, shown_path: str) -> tuple[Any, dict[Keys, str]]:
    """Parse YAML 1.2 into plain values and the `file:line` of each.

    Raises:
        UserError: the text is not YAML, or a key occurs twice.
    """
    value, marks = _parse_once(text, shown_path)
    return deepcopy(value), dict(marks)


@lru_cache(64)
def _parse_once(text: str, shown_path: str) -> tuple[Any, dict[Keys, str]]:
    """Parse a text that a command may read again, such as a shipped suite; do not change the result."""
    marks: dict[Keys, str] = {(): f"{shown_path}:1"}
    try:
        loaded = load_yaml(text, "rt")
        _mark(loaded, (), shown_path, marks)
        return plain(loaded), marks
    except YAMLError as error:
        if not isinstance(error, MarkedYAMLError) or error.problem_mark is None:
            raise UserError(shown_path, " ".join(str(error).split())[:120], "YAML", "fix the file") from None
        where = f"{shown_path}:{error.problem_mark.line + 1}"
        found = str(error.problem).split(" with value")[0].removeprefix("found ")
        expected, step = "valid YAML", "check quotes, brackets and indentation"
        if "duplicate key" in found:
            expected, step = "every key once", "remove or rename one of the two"
        elif error.context:
            found = f"{found}, {error.context}"
        raise UserError(where, found, expected, step) from None


def load_yaml(text: str, kind: str) -> Any:
    """Load YAML with a kind of ruamel's loaders; the number of values that aliases expand to is limited.

    Raises:
        YAMLError: it is not YAML, a value cannot be read, or aliases expand to too many values.
    """
    try:
        if "*" in text and (document := YAML(typ=kind, pure=True).compose(text)):
            _count_values(document, {})
        yaml = YAML(typ=kind, pure=True)
        yaml.Composer = _TextComposer
        return yaml.load(text)
    except RecursionError:
        raise YAMLError("values in one another, deeper than can be read") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # such as an invalid date
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
    """Count the values below a node with all aliases expanded; 50 characters count as one more."""
    if id(node) not in counted:
        counted[id(node)] = inf  # counts for an alias inside the value that it refers to
        if isinstance(node.value, str):
            n = 1 + len(node.value) / 50
        else:
            children = chain.from_iterable(c if isinstance(c, tuple) else (c,) for c in node.value)
            n = 1 + sum(_count_values(child, counted) for child in children)
        counted[id(node)] = n
        if n > _MOST_VALUES:
            problem = f"aliases that stand for more than {_MOST_VALUES:,} values"
            raise MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
    return counted[id(node)]


def plain(value: Any) -> Any:
    """Convert the parser's types of values to Python's; keys become strings.

    Raises:
        YAMLError: a number is too large.
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
    """Return the value if it is a mapping, else an empty mapping."""
    return value if isinstance(value, dict) else {}


def _mark(value: Any, keys: Keys, shown_path: str, marks: dict[Keys, str]) -> None:
    places = getattr(getattr(value, "lc", None), "data", None) or {}
    inner = value.items() if isinstance(value, Mapping) else enumerate(value) if places else ()
    for key, child in inner:
        below = (*keys, key if isinstance(key, int) and not isinstance(value, Mapping) else str(key))
        if key in places:
            marks[below] = f"{shown_path}:{places[key][0] + 1}"
        _mark(child, below, shown_path, marks)


def problems_of(model: type[BaseModel], value: Any, tree: Tree, keys: Keys = ()) -> list[Problem]:
    """Return a model's problems with the value at these keys of the tree.

    There is one for each value, and one for each disagreement between keys.
    """
    try:
        model.model_validate(value)
        return []
    except ValidationError as error:
        pydantic_errors = error.errors(include_url=False)
    merged: dict[tuple[Keys, str], Any] = {}
    for e in pydantic_errors:
        # A list whose entries were refused counts as too short as well: one problem, not two.
        if e["type"] == "too_short" and e["input"]:
            continue
        expected = _EXPECTED.get(e["type"]) or e["msg"].removeprefix("Input should be ").split(", ")[0]
        if e["type"] == "literal_error":
            expected = f"one of {e['ctx']['expected']}"
        elif expected.startswith(("greater", "less")):
            expected = f"a value {expected}"
        loc, raised = _descend(model, e["loc"])[1], e.get("ctx", {}).get("error")
        # Only rules between keys may give several messages about one value.
        disagreements = raised.problems if isinstance(raised, Disagreements) else ()
        for message in disagreements or [str(raised) if e["type"] == "value_error" else ""]:
            entry = merged.setdefault((loc, message), {**e, "loc": loc, "said": message, "expected": []})
            entry["expected"].append(expected)
    # A value whose keys break a rule has the type of that rule: drop its errors as another type.
    rule_locs = {loc for loc, message in merged if message}
    errors = [error for (loc, message), error in merged.items() if message or loc not in rule_locs]
    places = [(error, (*keys, *error["loc"])) for error in errors]
    return [
        _problem(error, model, tree, keys)
        for error, at in places
        if not any(at[:n] in tree.failed for n in range(len(at) + 1))  # neither it nor an enclosing value
    ]


def read_valid(model: type[_Model], value: Any) -> _Model | None:
    """Read a value; None if the model refuses it, for the reasons that `problems_of` returns."""
    try:
        return model.model_validate(value)
    except ValidationError:
        return None


def _descend(model: Any, loc: Keys) -> tuple[Any, Keys]:
    """Return the type at a position, and the position cut where a value may have several types."""
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
        outer = _descend(model, loc[:-1])[0]
        outer = outer if hasattr(outer, "model_fields") else _inner(outer)
        known_keys = list(getattr(outer, "model_fields", ()))
        if not known_keys:
            return Problem(where, f"key {name!r}", "no keys at all here", "remove it")
        return Problem(where, f"unknown key {name!r}", "a known key", did_you_mean(name, known_keys))
    if error["type"] == "missing":
        above = f" in {_name(loc[:-1])}" if len(loc) > 1 else ""
        step = _CANDIDATES if loc == ("candidates",) else f"add a line `{name}: …`"
        return Problem(where, f"no key {name!r}{above}", f"a value for {name!r}", step)
    if error["type"] == "value_error":
        message, at = error["said"], (*keys, *loc)
        parts = _NEXT.fullmatch(message)
        found = parts["found"] if parts else message
        step = parts["step"] if parts else "change one of them, or leave it out"
        # The position of the first key that the message names, else of the mapping.
        written = mapping(tree.value(at) if at else tree.data)
        named_keys = (word for word in re.findall(r"\w+", message) if word in written)
        return Problem(tree.where((*at, *islice(named_keys, 1))), found, _EXPECTED["value_error"], step)
    expected = " or ".join(dict.fromkeys(error["expected"]))
    found = f"{name}: {short_repr(error['input'])}"
    value, kind, step = error["input"], error["type"], "write another value"
    if loc == ("candidates",) and not value:
        step = _CANDIDATES
    elif kind == "literal_error" and isinstance(value, str):
        allowed = error["ctx"]["expected"].replace(" or ", ", ").replace("'", "").split(", ")
        hint = did_you_mean(value, allowed)
        step = hint if "did you mean" in hint else step
    elif kind in ("tuple_type", "list_type") and isinstance(value, str | int | float):
        step = f"write [{value}]"
    elif error["expected"] == ["text"] and isinstance(value, int | float):
        step = "write it in quotes, as it stands there"
    return Problem(where, found, expected, step)


def _name(loc: Keys) -> str:
    keys = [str(key) for key in loc[-2:]]
    return f"{keys[0]}[{keys[1]}]" if len(keys) == 2 and isinstance(loc[-1], int) else "".join(keys[-1:])


def _inner(annotation: Any) -> Any:
    """Return the item type of a list or mapping, or the type of an optional value."""
    kinds = _kinds(annotation)
    return kinds[-1] if kinds else annotation


def _kinds(annotation: Any) -> list[Any]:
    return [kind for kind in get_args(annotation) if kind not in (type(None), Ellipsis)]


def short_repr(value: Any) -> str:
    """Format a value for a message: None as `nothing`, booleans as in YAML, long values cut."""
    text = "nothing" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
