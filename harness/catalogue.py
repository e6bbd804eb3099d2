"""What there is to choose from: plugins by folder, suites and tasks by file, with their purpose.

Invariant: the purpose of a plugin is the first line of its module's docstring, read without
importing it.
"""

import ast
from pathlib import Path

from harness import plugins
from harness.errors import Problem, UserError, did_you_mean

_FOLDER = Path(__file__).parent


def listing(what: str, suites: Path = Path("suites")) -> dict[str, str]:
    """Map names to purposes.

    Raises:
        UserError: `what` is none of the kinds that can be listed.
    """
    if what in plugins.KINDS:
        return {name: _purpose(_FOLDER / what / f"{name}.py") for name in plugins.names(what)}
    if what in ("suites", "tasks"):
        return _suites(suites, what)
    if what == "lm-eval":
        from harness import capability

        return capability.names()
    kinds = (*plugins.KINDS, "suites", "tasks", "lm-eval")
    raise UserError(
        Problem("harness ls", repr(what), "something that can be listed", did_you_mean(what, kinds))
    )


def _purpose(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]


def _suites(folder: Path, what: str) -> dict[str, str]:
    from harness.config import read_suites

    found = read_suites(folder)
    if what == "suites":
        return {s.name: f"{s.role}: {', '.join(t.name for t in s.tasks)}" for s in found}
    return {t.name: f"{s.name}: {t.stands_for or 'lm-eval'}" for s in found for t in s.tasks}
