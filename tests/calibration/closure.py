"""The closure of definitions: the code of ours that an expression may run, and its digest.

From the names of the expression we go, through imports, to the functions, classes and constants that they stand
for, and on from there. A method, or a field of a dataclass, belongs to the closure where its class does and anything
in it takes an attribute of that name, from whatever object, or gives an argument by it; where the class derives from
one of a library, or a decorator may hand the method on, its name need not be seen. What a module runs beside its
definitions belongs to each of them.

Invariant: no less than what runs, but for plugins, which are loaded by names made at run time; a test holds cells to
what they were seen to run. Where a definition stands changes no digest, what its names stand for does.
"""

import ast
from collections.abc import Iterable, Iterator

from harness.records import digest
from tests.calibration.sources import Class, Definition, Sources, body_of

_NOT_SIMULATED = "in_tests"  # the argument of a cell that moves no figure
_KEPT_BY = {"property", "cached_property", "staticmethod", "classmethod", "abstractmethod"}


def elements(sources: Sources, place: str, name: str) -> list[Definition]:
    """Return the expressions in a tuple that a module writes out, as roots of closures."""
    found = sources.definition(place, name)
    (line,) = found.nodes
    assert isinstance(line, (ast.Assign, ast.AnnAssign))
    assert isinstance(line.value, ast.Tuple)
    module = sources.module_of(found)
    return [module.define(f"{name} {i}", _drop_unsimulated(one)) for i, one in enumerate(line.value.elts)]


def _drop_unsimulated(one: ast.expr) -> ast.expr:
    if isinstance(one, ast.Call):
        one.keywords = [k for k in one.keywords if k.arg != _NOT_SIMULATED]
    return one


def closure(sources: Sources, roots: Iterable[Definition]) -> frozenset[Definition]:
    """Return all definitions that these reach, themselves among them."""
    reached, classes, attributes = set[Definition](), set[Class](), set[str]()
    new = set(roots)
    while new:
        reached |= new
        used = [sources.use_of(d) for d in new]
        found = [one for use in used for one in use.names.values() if not isinstance(one, str)]
        classes |= {one for one in found if isinstance(one, Class)}
        attributes |= {name for use in used for name in use.attributes}
        next_to = (sources.module_of(d).others for d in new)
        members = (d for one in classes for d in _members(sources, one, attributes))
        new = {*map(body_of, found), *next_to, *members} - reached
    return frozenset(reached)


def _members(sources: Sources, one: Class, attributes: set[str]) -> Iterator[Definition]:
    """Yield the methods and fields of a class that something may use, where these attributes are taken."""
    called_by_libraries = bool(sources.libraries_of(one))
    for d in one.members:
        name = d.place[1].rpartition(".")[2]
        special = name.startswith("__") and name.endswith("__")
        if called_by_libraries or special or name in attributes or _is_handed_on(d):
            yield d


def _is_handed_on(d: Definition) -> bool:
    """Tell whether a decorator may give a method to something that calls it by no name."""
    decorators = [by for node in d.nodes for by in getattr(node, "decorator_list", ())]
    return any(ast.unparse(by).rpartition(".")[2] not in _KEPT_BY for by in decorators)


def digest_of(sources: Sources, definitions: Iterable[Definition]) -> str:
    """Digest the code of definitions, each with what its names stand for."""
    return digest(sorted(sources.use_of(d).digest for d in definitions if d.code))
