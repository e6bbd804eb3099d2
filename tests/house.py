"""The project's size, compared with its goals: run as `python -m tests.house`."""

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import Path
from statistics import median, quantiles

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "harness"
Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def trees() -> dict[Path, ast.Module]:
    return {file: ast.parse(file.read_text()) for file in sorted(PACKAGE.rglob("*.py"))}


def functions() -> Iterator[tuple[Path, Function]]:
    for file, tree in trees().items():
        yield from ((file, node) for node in ast.walk(tree) if isinstance(node, Function))


def count_lines(folder: Path) -> list[int]:
    return [len(file.read_text().splitlines()) for file in sorted(folder.rglob("*.py"))]


def package_of(module: str) -> str | None:
    """Return the first-level package of a module of harness; None for other modules."""
    parts = module.split(".")
    in_harness = len(parts) > 1 and parts[0] == "harness"
    is_package = in_harness and ((PACKAGE / parts[1]).is_dir() or (PACKAGE / f"{parts[1]}.py").is_file())
    return parts[1] if is_package else None


def imported_packages() -> dict[str, set[str]]:
    """Map each first-level package to the packages that it imports, at the top of a file or later."""
    graph: dict[str, set[str]] = {}
    for file, tree in trees().items():
        home = file.relative_to(PACKAGE).with_suffix("").parts[0]
        if home == "__init__":
            continue
        imported = graph.setdefault(home, set())
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                imported.update(package_of(alias.name) or home for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                imported.update(package_of(name) or home for name in names)
        imported.discard(home)
    return graph


def floors_and_circles(graph: dict[str, set[str]]) -> tuple[int, set[str]]:
    """Count the floors (layers), and list the packages in or above an import cycle, which have no floor."""
    remaining, floors = dict(graph), 0
    while lowest := {package for package, imported in remaining.items() if not imported & remaining.keys()}:
        remaining = {package: imported for package, imported in remaining.items() if package not in lowest}
        floors += 1
    return floors, set(remaining)


def share_named_once() -> float:
    """Return the share of functions (undecorated, no dunder) whose name is used in one other place."""
    nodes = chain.from_iterable(ast.walk(tree) for tree in trees().values())
    used = Counter(n.id if isinstance(n, ast.Name) else getattr(n, "attr", None) for n in nodes)
    function_names = [f.name for _, f in functions() if not f.name.startswith("__") and not f.decorator_list]
    return sum(used[name] == 1 for name in function_names) / len(function_names)


def parameters(function: Function) -> list[ast.arg]:
    return [node for node in ast.walk(function.args) if isinstance(node, ast.arg)]


def has_session(function: Function) -> bool:
    annotations = [*(p.annotation for p in parameters(function)), function.returns]
    written = chain.from_iterable(ast.walk(a) for a in annotations if a is not None)
    return any(getattr(n, "id", getattr(n, "value", None)) == "Session" for n in written)


def widest_records() -> list[tuple[int, str]]:
    """List the classes with the most annotated fields, the widest first."""
    classes = (n for tree in trees().values() for n in ast.walk(tree) if isinstance(n, ast.ClassDef))
    return sorted((sum(isinstance(n, ast.AnnAssign) for n in c.body), c.name) for c in classes)[:-4:-1]


def measure() -> list[tuple[str, str, str]]:
    lines, tests, graph = count_lines(PACKAGE), count_lines(ROOT / "tests"), imported_packages()
    lengths = [f.end_lineno - f.lineno + 1 for _, f in functions() if f.end_lineno]
    floors, circles = floors_and_circles(graph)
    sessions = [file for file, f in functions() if has_session(f)]
    makes = sum(
        p.arg == "make" and ast.unparse(p.annotation or p) == "bool"
        for _, f in functions()
        for p in parameters(f)
    )
    session_files = f"{len(sessions)} in {len(set(sessions))} files"
    return [
        ("lines of harness/", f"{sum(lines):,}", "at most 55,000"),
        ("files of harness/", f"{len(lines)}", "at most 300"),
        ("lines of its median file", f"{median(lines):g}", "at least 180"),
        ("folders with __init__", f"{len(list(PACKAGE.rglob('__init__.py')))}", "24"),
        ("floors of its packages", f"{floors}", "10"),
        ("packages on or above a circle", ", ".join(sorted(circles)) or "0", "0"),
        ("functions named once", f"{share_named_once():.0%} of {len(lengths):,}", "at most 20%"),
        ("p90 of a function's lines", f"{quantiles(lengths, n=10)[-1]:g}", "at most 35"),
        ("longest function", f"{max(lengths)}", "at most 120"),
        ("Session in signatures", session_files, "at most 120 in 20 files"),
        ("parameters make: bool", f"{makes}", "0"),
        ("fields of the widest records", ", ".join(f"{n} {name}" for n, name in widest_records()), "40"),
        ("lines of tests/", f"{sum(tests):,}", "at most 50,000"),
    ]


if __name__ == "__main__":
    for name, current, goal in [("figure", "current", "goal"), *measure()]:
        sys.stdout.write(f"{name:<30} | {current:<60} | {goal}\n")
