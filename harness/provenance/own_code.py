"""Identity of a Python file of the user's own: its content, and that of the modules beside it that it uses.

Invariant: nothing is imported. Modules count that lie in the file's own folder, by what the syntax trees
name, in imports and in calls of `import_module` with a text; our own package has versions of its own, and a
file that imports nothing local has its checksum alone.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

from harness.records import checksum, digest

_OURS = __name__.partition(".")[0]


def digest_code(file: Path) -> str:
    """Digest a Python file with the modules of its folder that it imports, and those that they import."""
    own, beside = checksum(file), sorted(_find_beside(file))
    named = [[str(one.relative_to(file.parent)), checksum(one)] for one in beside]
    return digest([own, named]) if named else own


def _find_beside(file: Path) -> set[Path]:
    found: set[Path] = set()
    left = [file]
    while left:
        new = {one for one in _list_imports(left.pop(), file.parent) if one.is_relative_to(file.parent)}
        new -= found | {file}
        found |= new
        left += new
    return found


def _list_imports(file: Path, root: Path) -> Iterator[Path]:
    """Yield the files that a module imports; absolute names are below `root`, relative ones in its folder."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return  # is refused where it is imported
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for one in node.names:
                yield from _list_files(root, one.name)
        elif isinstance(node, ast.ImportFrom):
            base = file.parents[node.level - 1] if 0 < node.level <= len(file.parents) else root
            for one in node.names:
                yield from _list_files(base, f"{node.module}.{one.name}" if node.module else one.name)
        elif isinstance(node, ast.Call) and (name := _find_imported(node)):
            yield from _list_files(root, name)


def _find_imported(call: ast.Call) -> str:
    """Return the module that a call of `import_module` or `__import__` names; empty where it names none."""
    if ast.unparse(call.func).rpartition(".")[2] not in ("import_module", "__import__"):
        return ""
    name = call.args[0] if call.args else None
    return name.value if isinstance(name, ast.Constant) and isinstance(name.value, str) else ""


def _list_files(base: Path, name: str) -> Iterator[Path]:
    """Yield the files of a module and of the packages that it lies in; of our own none."""
    parts = name.split(".")
    for n in range(1, len(parts) + 1) if parts[0] != _OURS else ():
        path = base.joinpath(*parts[:n])
        yield from filter(Path.is_file, (path.with_name(f"{path.name}.py"), path / "__init__.py"))
