"""Identity of a user's own Python file: its content, and that of the local modules that it uses.

Invariant: nothing is imported. Local modules are those in the file's own folder that the syntax trees name in
imports and in calls of `import_module` with a literal. Our own package has code versions instead, and the
identity of a file without local imports is its checksum.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

from harness.records import checksum, digest

_OURS = __name__.partition(".")[0]


def digest_code(file: Path) -> str:
    """Digest a Python file with the modules of its folder that it imports, directly or indirectly."""
    file_checksum, modules = checksum(file), sorted(_find_beside(file))
    named_checksums = [[str(module.relative_to(file.parent)), checksum(module)] for module in modules]
    return digest([file_checksum, named_checksums]) if named_checksums else file_checksum


def _find_beside(file: Path) -> set[Path]:
    modules: set[Path] = set()
    unread = [file]
    while unread:
        imported = {m for m in _list_imports(unread.pop(), file.parent) if m.is_relative_to(file.parent)}
        imported -= modules | {file}
        modules |= imported
        unread += imported
    return modules


def _list_imports(file: Path, root: Path) -> Iterator[Path]:
    """Yield the files that a module imports; absolute names are below `root`, relative ones in its folder."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return  # the import will refuse it
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _list_files(root, alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = file.parents[node.level - 1] if 0 < node.level <= len(file.parents) else root
            for alias in node.names:
                yield from _list_files(base, f"{node.module}.{alias.name}" if node.module else alias.name)
        elif isinstance(node, ast.Call) and (name := _find_imported(node)):
            yield from _list_files(root, name)


def _find_imported(call: ast.Call) -> str:
    """Return the module named in a call of `import_module` or `__import__`; empty for any other call."""
    if ast.unparse(call.func).rpartition(".")[2] not in ("import_module", "__import__"):
        return ""
    name = call.args[0] if call.args else None
    return name.value if isinstance(name, ast.Constant) and isinstance(name.value, str) else ""


def _list_files(base: Path, name: str) -> Iterator[Path]:
    """Yield the files of a module and of its parent packages; none for our own package."""
    parts = name.split(".")
    for n in range(1, len(parts) + 1) if parts[0] != _OURS else ():
        path = base.joinpath(*parts[:n])
        yield from filter(Path.is_file, (path.with_name(f"{path.name}.py"), path / "__init__.py"))
