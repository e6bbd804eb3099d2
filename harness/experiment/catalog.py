"""Catalog of `harness ls`: plugins, suites and tasks with their purpose, keys with default and meaning.

Invariant: a purpose is the first line of a plugin's docstring, read without importing it; a key means what
the sentences of its section's docstring that name it say.
"""

import ast
import re
from collections.abc import Iterator
from inspect import getdoc
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args, get_origin

from harness import plugins
from harness.errors import Problem, UserError, did_you_mean

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from harness.spec import Spec

_FOLDER = Path(__file__).parents[1]


def map_purposes(what: str, suites: Path = Path("suites")) -> dict[str, str]:
    """Map names to purposes."""
    if what in plugins.KINDS:
        files = {name: _FOLDER / what / f"{name}.py" for name in plugins.names(what)}
        docs = {name: ast.get_docstring(ast.parse(at.read_text("utf-8"))) for name, at in files.items()}
        return {name: (text or "").partition("\n")[0] for name, text in docs.items()}
    if what == "keys":
        from harness.spec import Experiment

        return dict(_keys(Experiment))
    if what in ("suites", "tasks"):
        from harness.config import read_suites

        found = read_suites(suites)
        if what == "suites":
            return {s.name: f"{s.role}: {', '.join(t.name for t in s.tasks)}" for s in found}
        return {t.name: f"{s.name}: {t.description or 'lm-eval'}" for s in found for t in s.tasks}
    if what == "lm-eval":
        from harness.evaluation import lm_eval

        return lm_eval.names()
    kinds = (*plugins.KINDS, "keys", "suites", "tasks", "lm-eval")
    raise UserError(
        Problem("harness ls", repr(what), "something that can be listed", did_you_mean(what, kinds))
    )


def _keys(model: "type[Spec]", prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield every key that may be written, with its default and its meaning; keys of one section once."""
    listed: dict[type[Spec], str] = {}
    meanings = map_meanings(model).of_keys
    for name, field in model.model_fields.items():
        key, inner = f"{prefix}{name}", _section(field.annotation)
        if inner is None:
            options = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
            listed_options = f"{', '.join(map(str, options))}; " if options else ""
            if field.is_required():
                default = "has to be written"
            elif (value := default_of(field)) is None or value in ("", (), {}):
                default = "nothing if not written"
            else:
                values = ", ".join(map(str, value)) if isinstance(value, tuple | dict) else str(value)
                default = f"{values} if not written"
            yield key, f"{listed_options}{default}. {meanings[name]}".rstrip(" .") + "."
        elif inner in listed:
            yield key, f"A list with the keys of {listed[inner]} for each."
        else:
            listed[inner] = key
            yield key, (getdoc(inner) or "").partition("\n")[0]
            yield from _keys(inner, f"{key}.NAME." if get_origin(field.annotation) is dict else f"{key}.")


class Meanings(NamedTuple):
    """Docstring of a section, split: sentences that name none of its keys, and the meaning of each key."""

    prose: str
    of_keys: dict[str, str]


def map_meanings(model: "type[Spec]") -> Meanings:
    """Split a section's docstring by the keys that its sentences name; a key of sections means theirs."""
    first, _, text = (getdoc(model) or "").partition("\n")
    sentences = [" ".join(s.split()) for s in (first, *re.split(r"(?<=\.)\s+(?=[A-Z`])", text.strip()))]
    keys = {sentence: set(re.findall(r"`(\w+)(?:: [^`]*)?`", sentence)) for sentence in sentences}
    rest = [sentence for sentence in sentences[1:] if not keys[sentence] & model.model_fields.keys()]
    meanings = {
        key: " ".join(sentence for sentence, found in keys.items() if key in found)
        or " ".join((getdoc(inner) or "").partition("\n")[0] for inner in models_in(field.annotation))
        for key, field in model.model_fields.items()
    }
    return Meanings(" ".join((first, *rest)), meanings)


def models_in(annotation: Any) -> "Iterator[type[Spec]]":
    """Yield the sections that a key may contain."""
    from harness.spec import Spec

    if isinstance(annotation, type) and issubclass(annotation, Spec):
        yield annotation
    for part in get_args(annotation):
        yield from models_in(part)


def _section(annotation: Any) -> "type[Spec] | None":
    from harness.spec import Suite

    return next((one for one in models_in(annotation) if one is not Suite), None)


def default_of(field: "FieldInfo") -> Any:
    """Return the default of a key; plugins declare the steps of a rescue."""
    from harness.spec import RescuePolicy

    if field is RescuePolicy.model_fields["steps"]:
        return plugins.rescue_steps()
    return field.get_default(call_default_factory=True)
