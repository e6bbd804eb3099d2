"""README is held to the truth: its tree is the real tree, its commands are the CLI's.

The tree is the block fenced with ```text that starts with `harness/`: one name a line, two spaces a
level, folders end with a slash, a comment follows after two or more spaces. A folder whose
children are shown shows all of them. Commands are the lines of ```sh blocks, and `harness …` or
`make …` in backticks.
"""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from harness import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
NOT_SHOWN = {"__init__.py", "__pycache__", "__main__.py", "py.typed", "dist", "build", "shared"}
OPTIONS_OF_ALL = {"--help", "--version"}


def blocks(language: str) -> list[list[str]]:
    return [
        block.splitlines()
        for block in re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    ]


def tree() -> list[Path]:
    """Return the paths of README's tree, folders before what is in them."""
    lines = next(block for block in blocks("text") if block[0].startswith("harness/"))
    paths: list[Path] = []
    parents: list[Path] = []
    for line in filter(str.strip, lines):
        depth = (len(line) - len(line.lstrip())) // 2
        name = re.split(r"\s{2,}", line.strip())[0]
        path = Path(*parents[:depth][-1:], name.rstrip("/"))
        assert (ROOT / path).is_dir() == name.endswith("/"), f"{path}: README says {name!r}"
        parents[depth:] = [path]
        paths.append(path)
    return paths


def children(folder: Path) -> set[Path]:
    names = [entry.name for entry in (ROOT / folder).iterdir()]
    return {folder / name for name in names if name[0] not in "._" and name not in NOT_SHOWN}


def test_everything_in_the_tree_exists():
    assert [path for path in tree() if not (ROOT / path).exists()] == []


def test_the_tree_shows_every_folder_at_the_root():
    folders = {
        path for path in children(Path()) if (ROOT / path).is_dir() and not path.name.endswith(".egg-info")
    }
    assert folders == {path for path in tree() if path.parent == Path() and (ROOT / path).is_dir()}


def test_a_folder_that_shows_children_shows_all_of_them():
    shown = tree()
    opened = {path.parent for path in shown} - {Path()}
    assert Path("harness") in opened
    assert {f: {p for p in shown if p.parent == f} for f in opened} == {f: children(f) for f in opened}


def commands(program: str) -> list[list[str]]:
    """Return the words after `program` wherever README calls it."""
    lines = [line.strip().removeprefix("$ ") for block in blocks("sh") for line in block]
    prose = re.sub(r"^```.*?^```", "", README, flags=re.MULTILINE | re.DOTALL)
    lines += re.findall(r"`([^`\n]+)`", prose)
    # A word on its own (`harness`) names the package, not a command.
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith(f"{program} ")]


def verb(words: list[str]):
    """Follow the words that are verbs down to the command they name."""
    command = get_command(cli.app)
    for word in words:
        if not getattr(command, "commands", None):
            break
        assert word in command.commands, f"README calls `harness {' '.join(words)}`"
        command = command.commands[word]
    return command


def options(command) -> set[str]:
    return {opt for param in command.params for opt in (*param.opts, *param.secondary_opts)} | OPTIONS_OF_ALL


def test_readme_shows_harness_and_make():
    assert commands("harness")
    assert ["compare"] in commands("make")
    assert ["test"] in commands("make")


@pytest.mark.parametrize("words", commands("harness"), ids=" ".join)
def test_a_harness_command_in_readme_is_one_of_the_cli(words):
    verbs = [word for word in words if not word.startswith("-")]
    flags = {word.partition("=")[0] for word in words if word.startswith("-")}
    assert flags <= options(verb(verbs))


@pytest.mark.parametrize("words", commands("make"), ids=" ".join)
def test_a_make_target_in_readme_is_one_of_the_makefile(words):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {word for word in words if "=" not in word} <= targets


def every_command(command, name: str = "harness"):
    yield name, command
    for child, below in getattr(command, "commands", {}).items():
        yield from every_command(below, f"{name} {child}")


EVERY = list(every_command(get_command(cli.app)))


@pytest.mark.parametrize("command", [c for _, c in EVERY], ids=[name for name, _ in EVERY])
def test_every_verb_and_every_option_has_help(command):
    assert command.help
    assert [p.name for p in command.params if p.param_type_name == "option" and not p.help] == []


def test_every_verb_stands_in_readme():
    called = {words[0] for words in commands("harness") if words}
    assert set(get_command(cli.app).commands) <= called
