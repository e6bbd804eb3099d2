"""Share of answers whose code passes the tests of a reference, run without network, files or rights.

Invariant: nothing of an answer runs outside of namespaces of its own, under limits of time, memory, processes
and files, and nothing runs unless `HARNESS_ALLOW_CODE_EXECUTION=1` says so. Tests pass where they are seen to
have ended: what ends a program before them does not, unless it is written against `_tested_program.py`. They
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

import json
import os
import re
import secrets
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

from harness.errors import HarnessError, Problem, UserError, refuse
from harness.metrics import Metric, mean_metric
from harness.metrics._isolation import ProgramLimits, run_isolated
from harness.metrics._tested_program import DRIVER
from harness.records import Example, Output
from harness.spec import Task

ALLOWED = "HARNESS_ALLOW_CODE_EXECUTION"
_NAME = "code_tests"
_FENCE = re.compile(r"\s*(`{3,}|~{3,})\s*([^`\s]*)")
_PYTHON = re.compile(r"\{?\.?py(?:thon)?[\d.]*\}?", re.IGNORECASE)
_BEGUN = b"+"  # says that what follows ran isolated


def metric(task: Task) -> Metric:
    """Build the share of answers in [0, 1] that pass; equal answers are those of the same code."""
    return replace(mean_metric(_NAME, _score), same=extract_code)


def _score(output: Output, example: Example) -> float | None:
    refuse_forbidden(f"metric {_NAME}")
    tests = [reference for reference in example.references if reference.strip()]
    for one in tests:
        _refuse_untested(one, example)
    code = extract_code(output.text)
    return float(any(passes(code, one) for one in tests)) if tests else None


def _refuse_untested(tests: str, example: Example) -> None:
    """Refuse tests that pass without any code: they call nothing, so they pass whatever is wrong.

    Raises:
        UserError: they do.
    """
    if passes("", tests):
        where = f"metric {_NAME}: the reference of item {example.id}"
        step = "call what it defines, as check(add) behind HumanEval's def check(candidate)"
        found = "tests that pass without any code"
        raise UserError(Problem(where, found, "an assert, a function test_… or a class of tests", step))


def extract_code(text: str) -> str:
    """Return the code of an answer: its first fenced block of Python, else of no language, or all of it."""
    return extract_fenced(text, _PYTHON)


def extract_fenced(text: str, wanted: re.Pattern[str]) -> str:
    """Return the first fenced block of a language, else of no language or of any, or all of a text."""
    blocks = list(_find_fenced_blocks(text))
    named = [code for language, code in blocks if wanted.fullmatch(language)]
    unnamed = [code for language, code in blocks if not language]
    every = [code for _, code in blocks]
    return textwrap.dedent([*named, *unnamed, *every, text][0]).strip()


def _find_fenced_blocks(text: str) -> Iterator[tuple[str, str]]:
    """Yield language and lines of each fenced block; the last one may be open."""
    mark, language, lines = "", "", list[str]()
    for line in text.splitlines():
        fence = _FENCE.match(line)
        if not mark:
            mark, language = fence.groups() if fence else ("", "")
            lines = []
        elif fence and fence.group(1).startswith(mark):
            yield language, "\n".join(lines)
            mark = ""
        else:
            lines.append(line)
    if mark:
        yield language, "\n".join(lines)


def problems(where: str) -> Iterator[Problem]:
    """Yield what forbids to run an answer's code here: nobody has allowed it, or it cannot be isolated."""
    if os.environ.get(ALLOWED) != "1":
        found, step = "a metric that runs the code of answers", f"export {ALLOWED}=1 where that may be"
        yield Problem(where, found, "somebody on this machine who allows it", step)
    elif reason := _explain_not_isolated():
        step = "a Linux that allows user namespaces (sysctl user.max_user_namespaces), or another metric"
        yield Problem(where, f"{_NAME}, and no isolation ({reason})", "namespaces of one's own", step)


def refuse_forbidden(where: str) -> None:
    """Refuse to run anything that is not allowed or cannot be isolated.

    Raises:
        UserError: it is so.
    """
    refuse(problems(where))


@lru_cache(maxsize=4096)
def passes(code: str, tests: str, limits: ProgramLimits = ProgramLimits()) -> bool:  # noqa: B008 (a constant)
    """Tell whether code passes tests, isolated: no network, no files, no processes but its own.

    The tests run after the code among its names; the functions `test_…` and the classes of
    tests that they define are called.

    Raises:
        HarnessError: the program could not be isolated, so nothing of it ran.
    """
    nonce = secrets.token_hex(16).encode()
    program = json.dumps({"code": code, "tests": tests}).encode()
    said, errors = run_isolated(DRIVER, b"%010d" % len(program) + program + nonce, limits)
    if not said.startswith(_BEGUN):
        reason = errors or "it never began"
        raise HarnessError(
            str(Problem(f"metric {_NAME}", reason, "a program in isolation", "harness doctor"))
        )
    return said == _BEGUN + nonce


@lru_cache(maxsize=1)
def _explain_not_isolated() -> str:
    """Say why a program cannot be isolated here; empty where it can."""
    try:
        return "" if passes("", "assert True") else "a program that passes does not"
    except (HarnessError, OSError) as error:
        return str(error).splitlines()[0]
