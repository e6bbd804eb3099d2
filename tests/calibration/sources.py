"""The definitions of a checkout's modules, and what their names stand for.

Invariant: docstrings, comments and import statements are no part of a definition; an import inside a function
counts there alone. Annotations name nothing but in pydantic's models, which act by them.
"""

import ast
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from harness.records import digest

PACKAGES = ("harness", "tests")
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_IMPORTS = (ast.Import, ast.ImportFrom)
_DOCUMENTED = (ast.Module, ast.ClassDef, *_FUNCTIONS)
_NOT_RUN = ("TYPE_CHECKING", "__name__ == '__main__'")
_RECORDS = {
    "NamedTuple",
    "Protocol",
    "Generic",
    "Enum",
    "StrEnum",
    "TypedDict",
    "object",
}  # call no method by name


class Definition(NamedTuple):
    """A function, a constant, a class without its members, or a member; `place` is its module and its name there."""

    place: tuple[str, str]
    code: str
    nodes: tuple[ast.AST, ...]


class Class(NamedTuple):
    """A class: its body, and apart from it its methods and, of a dataclass, its fields."""

    body: Definition
    members: tuple[Definition, ...]
    bases: tuple[str, ...]


class Use(NamedTuple):
    """What a definition uses: by each of its names, dotted through modules, what that stands for; and attributes.

    `digest` is of its code and of what its names stand for.
    """

    names: "Mapping[str, Named]"
    attributes: frozenset[str]
    digest: str


Named = Definition | Class | str  # what a name stands for; dotted, where that is a module or not ours


class Module:
    """A file of ours: its definitions, its imports as dotted names, and the statements that define nothing."""

    def __init__(self, name: str, path: Path) -> None:
        self.name, self._is_package = name, path.name == "__init__.py"
        self.defined: dict[str, Definition | Class] = {}
        self.imports: dict[str, str] = {}
        tree, others = ast.parse(path.read_text("utf-8")), []
        for node in ast.walk(tree):
            if isinstance(node, _DOCUMENTED):
                node.body = [line for line in node.body if not _is_text(line)] or [ast.Pass()]
        for line in tree.body:
            if isinstance(line, ast.ClassDef):
                self.defined[line.name] = self._class(line)
            elif names := _list_defined_names(line):
                self.defined |= {one: self._redefine(one, line) for one in names}
            elif not (isinstance(line, ast.If) and ast.unparse(line.test) in _NOT_RUN):
                self.imports |= self.map_imports(line)
                others.append(line)
        self.others = self.define(
            "", *(line for line in others if not isinstance(line, (*_IMPORTS, ast.Pass)))
        )

    def define(self, name: str, *nodes: ast.AST) -> Definition:
        """Make a definition of this module."""
        return Definition((self.name, name), "\n".join(_code(node) for node in nodes), nodes)

    def _redefine(self, name: str, line: ast.stmt) -> Definition:
        known = self.defined.get(name)
        return self.define(name, *(known.nodes if isinstance(known, Definition) else ()), line)

    def _class(self, node: ast.ClassDef) -> Class:
        record = any(ast.unparse(by).startswith("dataclass") for by in node.decorator_list)
        members = [line for line in node.body if isinstance(line, _FUNCTIONS) or (record and _is_field(line))]
        node.body = [line for line in node.body if line not in members] or [ast.Pass()]
        return Class(
            self.define(node.name, node),
            tuple(
                self.define(f"{node.name}.{name}", line)
                for line in members
                for name in _list_defined_names(line)
            ),
            tuple(ast.unparse(base).partition("[")[0] for base in node.bases),
        )

    def map_imports(self, line: ast.AST) -> dict[str, str]:
        """Map the names that the imports in a piece of code bind to what they stand for."""
        out = {}
        for node in ast.walk(line):
            if isinstance(node, ast.Import):
                out |= {
                    a.asname or a.name.split(".")[0]: a.name if a.asname else a.name.split(".")[0]
                    for a in node.names
                }
            elif isinstance(node, ast.ImportFrom):
                parents = self.name.split(".")[: self._is_package - node.level or None] if node.level else []
                of = ".".join([*parents, *filter(None, [node.module])])
                out |= {a.asname or a.name: f"{of}.{a.name}" for a in node.names}
        return out


class Sources:
    """The modules of a checkout, each read once and when it is asked for."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._modules: dict[str, Module | None] = {}
        self._uses: dict[Definition, Use] = {}

    def module(self, name: str) -> Module | None:
        """Return a module of ours; None where the name is none."""
        if name not in self._modules:
            stem = self._root.joinpath(*name.split("."))
            paths = (stem / "__init__.py", stem.with_suffix(".py")) if name.split(".")[0] in PACKAGES else ()
            found = next((p for p in paths if p.exists()), None)
            self._modules[name] = Module(name, found) if found else None
        return self._modules[name]

    def definition(self, place: str, name: str) -> Definition:
        """Return what a module defines by a name; of a class that is its body.

        Raises:
            KeyError: there is no such module, or it defines no such name.
        """
        module = self.module(place)
        if module is None:
            raise KeyError(place)
        return body_of(module.defined[name])

    def module_of(self, d: Definition | Class) -> Module:
        """Return the module that a definition stands in."""
        found = self.module(body_of(d).place[0])
        assert found is not None
        return found

    def _find(self, dotted: str) -> Named:
        """Follow a dotted name, through what packages import, to what it stands for."""
        place, _, name = dotted.rpartition(".")
        module = self.module(place)
        if module is None or module.imports.get(name) == dotted:
            return dotted
        return self._look_up(name, module, module.imports) or dotted

    def _look_up(self, name: str, module: Module, imports: Mapping[str, str]) -> Named | None:
        """Return what a name stands for in a module; None where it neither defines nor imports it."""
        return module.defined.get(name) or (self._find(imports[name]) if name in imports else None)

    def use_of(self, d: Definition) -> Use:
        """Say what the names of a definition stand for, and which attributes it takes."""
        if d not in self._uses:
            nodes = tuple(self._walk_code(d))
            names = self._names(d, nodes)
            stands = sorted((name, _stands_for(found)) for name, found in names.items())
            self._uses[d] = Use(names, _attributes(nodes), digest([d.code, stands]))
        return self._uses[d]

    def _names(self, d: Definition, nodes: Sequence[ast.AST]) -> dict[str, Named]:
        module, out = self.module_of(d), dict[str, Named]()
        imports = module.imports | {k: v for node in d.nodes for k, v in module.map_imports(node).items()}
        for node in nodes:
            name, *rest = _path(node)
            found = self._look_up(name, module, imports)
            while isinstance(found, str) and rest:
                step = rest.pop(0)
                name, found = f"{name}.{step}", self._find(f"{found}.{step}")
            out |= {name: found} if found is not None else {}
        return out

    def _walk_code(self, d: Definition) -> Iterator[ast.AST]:
        """Walk a definition's code, leaving out annotations but those of pydantic's models."""
        owner = self.module_of(d).defined.get(d.place[1].partition(".")[0])
        model = isinstance(owner, Class) and any(b.startswith("pydantic") for b in self.libraries_of(owner))
        waiting = list(d.nodes)
        while waiting:
            node = waiting.pop()
            yield node
            for field, value in ast.iter_fields(node):
                if field == "returns" or (field == "annotation" and (isinstance(node, ast.arg) or not model)):
                    continue
                children = value if isinstance(value, list) else [value]
                waiting += [child for child in children if isinstance(child, ast.AST)]

    def libraries_of(self, one: Class) -> list[str]:
        """Name the classes of libraries that a class derives from, its bases' too, but for records and protocols."""
        module, out = self.module_of(one), list[str]()
        for base in one.bases:
            first, *rest = base.split(".")
            found = self._look_up(first, module, module.imports) or base
            if isinstance(found, str):
                found = self._find(".".join([found, *rest])) if rest else found
            if isinstance(found, Class):
                out += self.libraries_of(found)
            elif isinstance(found, str) and found.rpartition(".")[2] not in _RECORDS:
                out.append(found)
        return out


def body_of(found: Definition | Class) -> Definition:
    """Return a definition itself, and of a class its body."""
    return found.body if isinstance(found, Class) else found


def _stands_for(found: Named) -> str:
    """Say what a name stands for: code of ours, or a library's dotted name; modules of ours may move."""
    if isinstance(found, str):
        return "" if found.split(".")[0] in PACKAGES else found
    return body_of(found).code


def _is_text(line: ast.stmt) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)


def _list_defined_names(line: ast.stmt) -> list[str]:
    """Name what a statement defines: a function, or names that it assigns to."""
    if isinstance(line, _FUNCTIONS):
        return [line.name]
    targets = line.targets if isinstance(line, ast.Assign) else [getattr(line, "target", None)]
    if not isinstance(line, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
        return []
    flat = [one for t in targets for one in (t.elts if isinstance(t, ast.Tuple) else [t])]
    return (
        [one.id for one in flat if isinstance(one, ast.Name)]
        if all(isinstance(t, ast.Name) for t in flat)
        else []
    )


def _is_field(line: ast.stmt) -> bool:
    return isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)


def _path(node: ast.AST) -> list[str]:
    """Return the names of `a.b.c`, ["a", "b", "c"]; [""] for what is none."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute) and (before := _path(node.value)) != [""]:
        return [*before, node.attr]
    return [""]


def _code(node: ast.AST) -> str:
    """Return a piece of code without its imports, which names stand for."""
    lines = ast.unparse(node).splitlines()
    return "\n".join(line for line in lines if not line.lstrip().startswith(("import ", "from ")))


def _attributes(nodes: Iterable[ast.AST]) -> frozenset[str]:
    """List the attributes taken of anything, or named in a text as for `getattr`, and arguments by name."""
    out: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Attribute):
            out.add(node.attr)
        elif isinstance(node, ast.MatchClass):
            out.update(node.kwd_attrs)
        elif isinstance(node, ast.keyword) and node.arg:
            out.add(node.arg)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            out.add(node.value)
    return frozenset(out)
