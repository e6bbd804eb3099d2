"""Settings from the command line, `a.b=value`, and the options that the commands a command proposes repeat.

Invariant: settings of different keys give the same experiment in any order; of two with the same key the
later wins. A command that is proposed can be pasted into a shell.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from shlex import join
from typing import Any, NamedTuple

from ruamel.yaml.error import YAMLError

from harness.config.yaml_loading import Keys, Tree, load_yaml, plain, short_repr
from harness.errors import Problem, UserError, did_you_mean

_FORM, _CHOICE = "KEY.KEY=VALUE", "a candidate is chosen by --candidates, or --candidate of gate"
_SUCH_AS = f"such as candidates.lora.params.r=8; {_CHOICE}"
_OVERRIDE = "override "  # begins the place of a value that the command line gave


class Setting(NamedTuple):
    """One `a.b=value`: as written, its keys, its value read as YAML."""

    text: str
    keys: tuple[str, ...]
    value: Any


def parse(texts: Iterable[str], tree: Tree) -> list[Setting]:
    """Read the settings, shortest keys first; what is none becomes a problem of the tree."""
    settings = []
    for text in texts:
        key, equals, value = text.partition("=")
        keys = tuple(key.strip().split("."))
        try:
            read = plain(load_yaml(value, "safe"))
        except YAMLError:
            found = f"no YAML: {short_repr(value)}"
            tree.problems.append(Problem(f"{_OVERRIDE}{text[:60]}", found, _FORM, "quote the value"))
            continue
        if not equals or not all(keys):
            tree.problems.append(Problem(f"{_OVERRIDE}{text}", repr(text), _FORM, _SUCH_AS))
        else:
            settings.append(Setting(text, keys, read))
    return sorted(settings, key=lambda setting: len(setting.keys))


def replaces_a_reference(setting: Setting) -> bool:
    """Tell whether it may name a file or a short recipe, and so comes before these are read."""
    listed = ("candidates", "suites", "more_targets")
    return len(setting.keys) == 1 or (len(setting.keys) == 2 and setting.keys[0] in listed)


def apply(tree: Tree, settings: Iterable[Setting]) -> None:
    """Write settings into the tree; its places then name the setting."""
    for setting in settings:
        where = f"{_OVERRIDE}{setting.text}"
        try:
            keys = _walk(tree, setting, where)
        except UserError as error:
            tree.problems += error.problems
        else:
            tree.put(keys, setting.value, {(): where})


def place_of(tree: Tree, keys: Keys) -> str:
    """Return `file:line` of the value at these keys, with the settings that changed anything in it."""
    inside = (mark for at, mark in tree.marks.items() if at[: len(keys)] == keys and at != keys)
    settings = (mark for mark in inside if mark.startswith(_OVERRIDE))
    return ", ".join(dict.fromkeys([tree.where(keys), *settings]))


def _walk(tree: Tree, setting: Setting, where: str) -> Keys:
    """Return the keys with list entries as indices, making the mappings that are missing."""
    around: Any = tree.data
    keys: Keys = ()
    for depth, key in enumerate(setting.keys):
        found = _entry(around, key, keys, where)
        keys = (*keys, found)
        if depth == len(setting.keys) - 1:
            return keys
        if isinstance(around, dict) and around.get(found) is None:
            known = tree.data.get("candidates")
            if len(keys) == 2 and keys[0] == "candidates" and isinstance(known, dict) and key not in known:
                problem, hint = f"unknown candidate {key!r}", did_you_mean(key, known)
                raise UserError(Problem(where, problem, "a candidate of the experiment", hint))
            around[found] = {}
            tree.marks[keys] = where
        around = around[found]
    return keys


def _entry(around: Any, key: str, keys: Keys, where: str) -> str | int:
    if isinstance(around, dict):
        return key
    if not isinstance(around, list):
        found = f"{'.'.join(map(str, keys))}: {around!r}, which has no keys"
        raise UserError(Problem(where, found, "a mapping", "set it as a whole"))
    named = {e["name"]: i for i, e in enumerate(around) if isinstance(e, dict) and "name" in e}
    if key.isdigit() and int(key) < len(around):
        return int(key)
    if key in named:
        return int(named[key])
    hint = did_you_mean(key, map(str, named))
    raise UserError(Problem(where, f"no entry {key!r}", "the name or index of an entry", hint))


_DEFAULT = Path("harness.yaml")
_NEXT = re.compile(r"(next|try): .*")


class CommandLine(NamedTuple):
    """Options of a command that the next one repeats; `config` is empty for ./harness.yaml.

    `runs` is the folder of stored runs where that was named.
    """

    config: str = ""
    overrides: tuple[str, ...] = ()
    candidates: tuple[str, ...] = ()
    runs: str = ""

    @classmethod
    def from_options(
        cls, config: Path, overrides: Sequence[str] = (), candidates: Sequence[str] = ()
    ) -> "CommandLine":
        """Keep what was typed that the next commands need as well."""
        return cls("" if config == _DEFAULT else str(config), tuple(overrides), tuple(candidates))

    def with_settings(self, settings: Sequence[str]) -> "CommandLine":
        """Add settings, in place of those of the same keys."""
        keys = {setting.partition("=")[0] for setting in settings}
        kept = [setting for setting in self.overrides if setting.partition("=")[0] not in keys]
        return self._replace(overrides=(*kept, *settings))

    def command(self, *words: str) -> str:
        """Write a command as a shell reads it; how candidates are executed is for `compare` alone."""
        config = ("-c", self.config) if self.config else ()
        kept = [one for one in self.overrides if words[0] == "compare" or not one.startswith("execution.")]
        return join(["harness", *words, *config, *kept])

    def complete(self, text: str) -> str:
        """Repeat the options in each command of what a text says to do next, where it has none."""
        reindex = self._replace(overrides=()).command("reindex")
        if self.runs:
            reindex = join(["harness", "reindex", "--runs", self.runs])
        lines = {"harness compare": self.command("compare"), "harness reindex": reindex}
        options = {bare: line.removeprefix(bare) for bare, line in lines.items()}
        alone = "|".join(rf"{bare}(?![^;\n]*{re.escape(of)})" for bare, of in options.items() if of)
        if not alone:
            return text
        return _NEXT.sub(lambda said: re.sub(alone, lambda bare: lines[bare[0]], said[0]), text)
