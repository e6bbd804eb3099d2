"""Share of answers whose code passes the tests of a reference, run without network, files or rights.

Invariant: code runs only in its own namespaces, and only with `HARNESS_ALLOW_CODE_EXECUTION=1`. Tests have
passed only if they are seen to finish, with the original builtins. The tests make the comparisons, so an
answer that returns objects equal to everything passes unless they check types. Nothing is scored if the
isolation fails.
Source: functional correctness by Chen et al. 2021, arXiv:2107.03374.
"""

import re
from dataclasses import replace

from harness.errors import UserError, refuse
from harness.metrics import Metric, mean_metric
from harness.metrics._run_code import extract_fenced, passes, problems
from harness.records import Example, Output
from harness.spec import Task

__all__ = ["metric", "problems"]

_NAME = "code_tests"
_PYTHON = re.compile(r"\{?\.?py(?:thon)?[\d.]*\}?", re.IGNORECASE)


def metric(task: Task) -> Metric:
    """Build the share of answers in [0, 1] that pass; equal answers are those of the same code."""
    return replace(mean_metric(_NAME, _score), same=extract_code)


def _score(output: Output, example: Example) -> float | None:
    refuse(problems(f"metric {_NAME}"))
    tests = [reference for reference in example.references if reference.strip()]
    for one in tests:
        if passes("", one):  # calls nothing, so it passes whatever is wrong
            where = f"metric {_NAME}: the reference of item {example.id}"
            step = "call what it defines, as check(add) behind HumanEval's def check(candidate)"
            found = "tests that pass without any code"
            raise UserError(where, found, "an assert, a function test_… or a class of tests", step)
    code = extract_code(output.text)
    return float(any(passes(code, one) for one in tests)) if tests else None


def extract_code(text: str) -> str:
    """Return the code of an answer: its first fenced block of Python, else of no language, or all of it."""
    return extract_fenced(text, _PYTHON)
