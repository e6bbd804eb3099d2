"""Catalog of `harness ls`: plugins, suites and tasks with their purpose, keys with default and meaning.

Invariant: a purpose is the first line of a plugin's docstring, read without importing it; the meaning of a
key consists of the sentences in its section's docstring that name it.
"""

import ast
import re
from collections.abc import Iterator
from inspect import getdoc
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from harness import plugins
from harness.config import read_suites
from harness.errors import UserError, did_you_mean
from harness.spec import Experiment, RescuePolicy, Spec, Suite


def map_purposes(kind: str, suites: Path = Path("suites")) -> dict[str, str]:
    """Map names to purposes."""
    if kind in plugins.KINDS:
        places, trees = plugins.places(kind), dict[plugins.Place, ast.Module | ast.ClassDef]()
        for file in {place.file for place in places.values()}:
            trees[plugins.Place(file)] = tree = ast.parse(file.read_text("utf-8"))
            classes = (node for node in tree.body if isinstance(node, ast.ClassDef))
            trees |= {plugins.Place(file, node.name): node for node in classes}
        texts = {name: ast.get_docstring(trees[place]) or "" for name, place in places.items()}
        return {name: text.partition("\n")[0] for name, text in texts.items()}
    if kind == "keys":
        return dict(_keys(Experiment))
    if kind in ("suites", "tasks"):
        known_suites = read_suites(suites)
        if kind == "suites":
            return {s.name: f"{s.role}: {', '.join(t.name for t in s.tasks)}" for s in known_suites}
        return {t.name: f"{s.name}: {t.description or 'lm-eval'}" for s in known_suites for t in s.tasks}
    if kind == "lm-eval":
        from harness.evaluation.lm_eval import tasks

        return tasks.names()
    step = did_you_mean(kind, (*plugins.KINDS, "keys", "suites", "tasks", "lm-eval"))
    raise UserError("harness ls", repr(kind), "something that can be listed", step)


def _keys(model: type[Spec], prefix: str = "") -> Iterator[tuple[str, str]]:
    # Every key that may be written, with its default and its meaning; the keys of each section once.
    listed: dict[type[Spec], str] = {}
    _, meanings = map_meanings(model)
    for name, field in model.model_fields.items():
        key, sections = f"{prefix}{name}", models_in(field.annotation)
        inner = next((section for section in sections if section is not Suite), None)
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


def map_meanings(model: type[Spec]) -> tuple[str, dict[str, str]]:
    """Split a section's docstring: sentences that name none of its keys, and the meaning of each key.

    A key that no sentence names, and that holds sections, gets the first lines of their docstrings.
    """
    first, _, text = (getdoc(model) or "").partition("\n")
    sentences = [" ".join(s.split()) for s in (first, *re.split(r"(?<=\.)\s+(?=[A-Z`])", text.strip()))]
    keys = {sentence: set(re.findall(r"`(\w+)(?:: [^`]*)?`", sentence)) for sentence in sentences}
    rest = [sentence for sentence in sentences[1:] if not keys[sentence] & model.model_fields.keys()]
    meanings = {
        key: " ".join(sentence for sentence, named_keys in keys.items() if key in named_keys)
        or " ".join((getdoc(inner) or "").partition("\n")[0] for inner in models_in(field.annotation))
        for key, field in model.model_fields.items()
    }
    return " ".join((first, *rest)), meanings


def models_in(annotation: Any) -> Iterator[type[Spec]]:
    """Yield the sections that a key may contain."""
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        yield annotation
    for argument in get_args(annotation):
        yield from models_in(argument)


def default_of(field: FieldInfo) -> Any:
    """Return the default of a key; plugins declare the steps of a rescue."""
    if field is RescuePolicy.model_fields["steps"]:
        return plugins.rescue_steps()
    return field.get_default(call_default_factory=True)
