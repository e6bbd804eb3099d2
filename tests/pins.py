"""Pins of `code_versions.toml`: digests of the syntax trees of each concern's modules.

`python -m tests.pins` (or `make pins`) runs the tests of golden answers, log-probabilities and weights,
then renews changed pins and adds new entries: plugins at version 1, and defaults of settings.

Invariant: docstrings and imports of our own modules are left out, so that rewording and moves change no pin.
"""

import ast
import json
import subprocess
import sys
from pathlib import Path

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from harness import plugins, spec
from harness.provenance import TABLE, CodeVersion, code_versions
from harness.records import digest

PACKAGE = Path(__file__).parents[1] / "harness"
DEFAULTS = Path(__file__).with_name("golden_defaults.json")
GOLDEN_TESTS = "tests/models/test_golden_model.py"
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def files_of(version: CodeVersion) -> list[Path]:
    return sorted({file for pattern in version.files for file in PACKAGE.glob(pattern)})


def pin_of(files: list[Path]) -> str:
    """Digest the syntax trees of files, whatever their names."""
    return digest(sorted(_code(file.read_text("utf-8")) for file in files))


def _code(source: str) -> str:
    """Return a module's code without docstrings and without imports of our own modules."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED):
            node.body = [line for line in node.body if not _is_left_out(line)] or [ast.Pass()]
    return ast.unparse(tree)


def _is_left_out(line: ast.stmt) -> bool:
    if isinstance(line, ast.ImportFrom):
        return (line.module or "").partition(".")[0] == "harness"
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)


def list_unlisted_plugins() -> list[str]:
    """List the plugins that the table lacks."""
    concerns = [f"{kind}/{name}" for kind in plugins.KINDS for name in plugins.names(kind)]
    return [concern for concern in concerns if concern not in code_versions()]


def defaults() -> dict[str, dict[str, str]]:
    """Return the defaults that identities leave out, as text, by model and field."""
    models: dict[str, type[BaseModel]] = {"Task": spec.Task}
    models |= {
        f"{kind}/{name}": plugins.load(kind, name).Params
        for kind in ("methods", "prompting", "regularizers")
        for name in plugins.names(kind)
    }
    return {name: _defaults_of(model) for name, model in models.items()}


def _defaults_of(model: type[BaseModel]) -> dict[str, str]:
    raw = {name: field.get_default(call_default_factory=True) for name, field in model.model_fields.items()}
    defined = {name: value for name, value in raw.items() if value is not PydanticUndefined}
    return {name: repr(value) for name, value in defined.items()}


def read_known_defaults() -> dict[str, dict[str, str]]:
    known_defaults: dict[str, dict[str, str]] = json.loads(DEFAULTS.read_text("utf-8"))
    return known_defaults


def renew() -> list[str]:
    """Write changed pins and unlisted plugins; return the concerns that changed."""
    text, changed = TABLE.read_text("utf-8"), list_unlisted_plugins()
    for concern in changed:
        kind, name = concern.split("/")
        file = plugins.places(kind)[name].file.name
        text += f'\n["{concern}"]\nversion = 1\nfiles = ["{kind}/{file}"]\npin = ""\n'
    for concern, version in code_versions().items():
        head, rest = text.split(f'["{concern}"]\n', 1)
        new = rest.replace(f'pin = "{version.pin}"', f'pin = "{pin_of(files_of(version))}"', 1)
        changed += [concern] if new != rest else []
        text = f'{head}["{concern}"]\n{new}'
    TABLE.write_text(text, "utf-8")
    code_versions.cache_clear()
    return changed


def main() -> None:
    """Run the golden tests, then renew; a new plugin gets its entry first and its pin in a second pass."""
    run = subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "not slow", GOLDEN_TESTS], check=False)
    if run.returncode:
        sys.exit("Results changed: raise the version of the concern, and say why in the commit.")
    # Add defaults of new fields; known ones stay, so that a change is noticed.
    known_defaults = read_known_defaults()
    merged = {model: {**fields, **known_defaults.get(model, {})} for model, fields in defaults().items()}
    DEFAULTS.write_text(json.dumps(merged, indent=1, sort_keys=True) + "\n", "utf-8")
    changed = renew()
    changed += renew() if list_unlisted_plugins() or any(not v.pin for v in code_versions().values()) else []
    sys.stdout.write(f"Pins renewed: {', '.join(dict.fromkeys(changed)) or 'none differed'}\n")


if __name__ == "__main__":
    main()
