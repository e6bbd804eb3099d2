"""Errors of usage in the form of all errors: text in place of a number, unknown choices, options and verbs.

Invariant: what the parser refuses ends as a `UserError`; only a verb that is given without a verb of its own
prints its help.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer

from harness.errors import Problem, UserError, did_you_mean

_USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]
_NUMBERS = {"integer": "a whole number", "float": "a number", "number": "a number"}  # by words of messages
_SUCH_AS = {"a whole number": "1", "a number": "0.5"}
_CHOICES = re.compile("one of|should be")
_QUOTED = re.compile(r"'([^']+)'")
_FURTHER = re.compile(r"extra arguments?(?:\(s\))? \((.*)\)")


@contextmanager
def usage_errors(typed: Sequence[str], context: Any = None) -> Iterator[None]:
    """Raise what the parser refuses of a command as an error of the harness; `context` is the group's."""
    try:
        yield
    except _USAGE_ERROR as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # prints the help of a group of verbs
            raise
        raise UserError(_describe(error, typed, context)) from None


def _describe(error: Any, typed: Sequence[str], context: Any) -> Problem:
    command = error.ctx.command_path if error.ctx else _find_called_verb(typed, context)
    usage = f"{command} --help"
    if parameter := getattr(error, "param", None):
        return _describe_value(error, parameter, find_given_value(parameter, typed), usage)
    if option := getattr(error, "option_name", ""):
        known = _list_options(error.ctx.command) if error.ctx else ["--help"]
        if error.ctx is None or option in known:
            return Problem(option, *_describe_misuse(error), usage)
        return Problem(command, option, "an option that it has", did_you_mean(option, [*known, "--help"]))
    verbs = getattr(error.ctx.command, "commands", {}) if error.ctx else {}
    if verbs and (unknown := next((word for word in typed if f"'{word}'" in error.message), "")):
        return Problem(command, unknown, "a verb that it has", did_you_mean(unknown, verbs))
    if further := _FURTHER.search(error.message):
        return Problem(command, further[1], "no further words", usage)
    return Problem(command, error.format_message().rstrip("."), "what its help shows", usage)


def _list_options(command: Any) -> list[str]:
    """List the options of a verb, without the words that it takes by their place."""
    return [name for one in command.params if one.param_type_name == "option" for name in one.opts]


def _find_called_verb(typed: Sequence[str], context: Any) -> str:
    """Return the verb that was typed, with the program's name: an error of an option's value knows none."""
    if context is None:
        return "harness"
    command, path = context.command, [context.command_path]
    for word in typed:
        if of := getattr(command, "commands", {}).get(word):
            command = of
            path.append(word)
    return " ".join(path)


def _describe_misuse(error: Any) -> tuple[str, str]:
    """Say what was found of an option that lacks its value, or was given one that it has not."""
    return ("a value", "none") if "not take a value" in error.message else ("no value", "one behind it")


def _describe_value(error: Any, parameter: Any, given: str | None, usage: str) -> Problem:
    is_option = parameter.param_type_name == "option"
    name = max(parameter.opts, key=len) if is_option else parameter.metavar or parameter.name.upper()
    message = error.message.lower()
    number = next((kind for word, kind in _NUMBERS.items() if word in message), "")
    choices = [name for part in _CHOICES.split(error.message)[1:] for name in _QUOTED.findall(part)]
    if type(error).__name__ == "MissingParameter":
        wanted = (parameter.help or "a value").rstrip(".")
        return Problem(name, "none", wanted[0].lower() + wanted[1:], usage)
    if given is not None and number:
        return Problem(name, given, number, f"such as {name} {_SUCH_AS[number]}")
    if given is not None and "match the format" in message:
        return Problem(name, given, "a date", f"such as {name} 2026-01-31")
    if given is not None and choices:
        return Problem(name, given, f"one of {', '.join(choices)}", did_you_mean(given, choices))
    return Problem(name, given or error.message.rstrip("."), "what its help says", usage)


def find_given_value(parameter: Any, typed: Sequence[str]) -> str | None:
    """Return what was given of an option: behind its name, or in its variable."""
    for place, word in enumerate(typed):
        name, mark, value = word.partition("=")
        if name in parameter.opts:
            return value if mark else next(iter(typed[place + 1 :]), None)
    variable = parameter.envvar
    return os.environ.get(variable) if isinstance(variable, str) else None
