"""Share of answers whose code passes the tests of a reference, run without network, files or rights.

Invariant: nothing of an answer runs outside of namespaces of its own, under limits of time, memory, processes
and files, and nothing runs unless `HARNESS_ALLOW_CODE_EXECUTION=1` says so. Tests pass where they are seen to
have ended: what ends a program before them does not, unless it is written against `_run_code.py`. They
find the builtins as they were. What they compare or hand to a call, and what that holds, must tell objects
apart, and of a number, text or list others of its type: a value that equals all of them is wrong, as is
`unittest.mock.ANY` in tests that do not name it. Where tests expect a number, text or collection of Python's,
a value that equals all of that type is wrong, whatever its own type is; so is one beside `in` or in a chain
of comparisons that equals all of a type, holds everything, or lies below and above everything. What remains
possible: a value of another type that equals or holds few others, as an answer may know its tests; one inside
a library's object or an iterator; mocks where tests use some, as these record a comparison as a call;
comparisons in a text that tests `exec`. Where the isolation fails nothing is scored.

Source: functional correctness by Chen et al. 2021, arXiv:2107.03374.
"""

import re
from dataclasses import replace

from harness.errors import Problem, UserError
from harness.metrics import Metric, mean_metric
from harness.metrics._run_code import extract_fenced, passes, problems, refuse_forbidden
from harness.records import Example, Output
from harness.spec import Task

__all__ = ["metric", "problems"]

_NAME = "code_tests"
_PYTHON = re.compile(r"\{?\.?py(?:thon)?[\d.]*\}?", re.IGNORECASE)


def metric(task: Task) -> Metric:
    """Build the share of answers in [0, 1] that pass; equal answers are those of the same code."""
    return replace(mean_metric(_NAME, _score), same=extract_code)


def _score(output: Output, example: Example) -> float | None:
    refuse_forbidden(f"metric {_NAME}")
    tests = [reference for reference in example.references if reference.strip()]
    for one in tests:
        if passes("", one):  # calls nothing, so it passes whatever is wrong
            where = f"metric {_NAME}: the reference of item {example.id}"
            step = "call what it defines, as check(add) behind HumanEval's def check(candidate)"
            found = "tests that pass without any code"
            raise UserError(Problem(where, found, "an assert, a function test_… or a class of tests", step))
    code = extract_code(output.text)
    return float(any(passes(code, one) for one in tests)) if tests else None


def extract_code(text: str) -> str:
    """Return the code of an answer: its first fenced block of Python, else of no language, or all of it."""
    return extract_fenced(text, _PYTHON)
