"""Placeholders of a command and of its template files: `{data}`, `{out}` and the others, put in by name.

Invariant: what stands in two pairs of braces, or is no lower-case name, is left as it is; in a template a
name that is none of ours is refused, so that a misspelt one is never trained with.
"""

import re
import shlex
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from harness.errors import did_you_mean
from harness.provenance import digest_code
from harness.records import checksum, digest

NAMES = ("data", "validation", "data_dir", "base", "out", "seed", "config")
_ONE = re.compile(r"(?<!\{)\{([a-z_]+)\}(?!\})")


def placeholders_in(text: str) -> set[str]:
    """Return the names that stand in a text as placeholders."""
    return set(_ONE.findall(text))


def misspelt(text: str) -> str:
    """Say which placeholder of a text is none, and what was meant; empty where all are known."""
    for name in sorted(placeholders_in(text) - set(NAMES)):
        return f"unknown placeholder {{{name}}}: {did_you_mean(name, NAMES)}"
    return ""


def fill(text: str, values: Mapping[str, str]) -> str:
    """Put values in place of the placeholders of a text."""
    return _ONE.sub(lambda found: values[found[1]], text)


def arguments(command: str, values: Mapping[str, str], *, shell: bool = False) -> list[str]:
    """Return a command as a list of arguments; a value is always within one, whatever it holds."""
    if shell:
        quoted = {name: shlex.quote(value) for name, value in values.items()}
        return ["/bin/sh", "-c", fill(command, quoted)]
    return [fill(argument, values) for argument in shlex.split(command)]


def template_files(template: Path) -> dict[str, Path]:
    """Map the files of a template, one or those of a folder, to their names within it."""
    if template.is_file():
        return {template.name: template}
    inside = sorted(path for path in template.rglob("*") if path.is_file())
    return {str(path.relative_to(template)): path for path in inside}


def template_problems(template: Path) -> Iterator[str]:
    """Say of each file of a template what is wrong with it."""
    for name, path in template_files(template).items():
        try:
            if said := misspelt(path.read_text("utf-8")):
                yield f"{name}: {said}, or {{{{two pairs of braces}}}} where none is meant"
        except UnicodeDecodeError:
            yield f"{name}: not UTF-8"


def fill_template(template: Path, folder: Path, values: Mapping[str, str]) -> Path:
    """Write a template with its placeholders filled into a folder; returns where the whole of it lies."""
    # Within the template `{config}` is that place too.
    whole = folder / template.name
    values = {**values, "config": str(whole)}
    for name, path in template_files(template).items():
        filled = folder / name if template.is_file() else whole / name
        filled.parent.mkdir(parents=True, exist_ok=True)
        filled.write_text(fill(path.read_text("utf-8"), values), "utf-8")
        shutil.copymode(path, filled)
    return whole


def files_digest(command: str, folder: Path, template: Path | None) -> str:
    """Digest the files that a command reads: of its template, and those below a folder that it names.

    Of a Python file that counts what it imports from its own folder.
    """
    named = [folder / argument for argument in command.split() if not placeholders_in(argument)]
    own = {
        str(path.relative_to(folder)): path for path in named if path.is_file() and _lies_below(path, folder)
    }
    of_template = template_files(template) if template else {}
    return digest([{name: _digest_file(path) for name, path in of.items()} for of in (own, of_template)])


def _digest_file(path: Path) -> str:
    return digest_code(path) if path.suffix == ".py" else checksum(path)


def _lies_below(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())
