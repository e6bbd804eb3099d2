"""`python -m tests.studies.code_size COMMIT …`: size of `harness/` at commits, counted by one script.

Files, lines and functions are those of Python; a name at the top is a module or package of `harness/`. A function is
named once more where its name stands once beside its definition, in any module of the package.
"""

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef


class CodeSize(NamedTuple):
    files: int
    lines: int
    median_lines: float
    top_names: int
    functions: int
    named_once_more: int


def measure_size(commit: str) -> CodeSize:
    """Count the files, lines, names and functions of a commit."""
    sources = dict(read_sources(commit))
    lines = [text.count("\n") for text in sources.values()]
    trees = [ast.parse(text) for text in sources.values()]
    defined = Counter(n.name for tree in trees for n in ast.walk(tree) if isinstance(n, FUNCTION))
    named = Counter(name for tree in trees for name in list_names(tree))
    tops = {path.split("/")[1].removesuffix(".py") for path in sources} - {"__init__"}
    once = sum(n for name, n in defined.items() if named[name] == 1)
    return CodeSize(len(sources), sum(lines), median(lines), len(tops), defined.total(), once)


def read_sources(commit: str) -> Iterator[tuple[str, str]]:
    """Yield the Python files of the package at a commit, with their texts."""
    for path in run_git("ls-tree", "-r", "--name-only", commit, "harness").split():
        if path.endswith(".py"):
            yield path, run_git("show", f"{commit}:{path}")


def list_names(tree: ast.AST) -> Iterator[str]:
    """Yield the names that a module uses: those of variables and attributes; imports are no use."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr


def run_git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    for commit in sys.argv[1:] or ["HEAD"]:
        found = ", ".join(f"{name} {value:n}" for name, value in measure_size(commit)._asdict().items())
        sys.stdout.write(f"{commit}: {found}\n")
