"""Options of a command that the commands it proposes repeat.

Invariant: what it writes can be pasted into a shell.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from shlex import join
from typing import NamedTuple

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
