"""Runs of code from answers, isolated, where somebody has allowed them; and the fenced blocks it stands in.

Invariant: nothing of an answer runs outside of namespaces of its own, under limits of time, memory, processes
and files, and nothing runs unless `HARNESS_ALLOW_CODE_EXECUTION=1` says so.
"""

import json
import os
import re
import secrets
import textwrap
from collections.abc import Iterator
from functools import lru_cache

from harness.errors import HarnessError, Problem, refuse
from harness.metrics._isolation import ProgramLimits, run_isolated
from harness.metrics._tested_program import DRIVER

ALLOWED = "HARNESS_ALLOW_CODE_EXECUTION"
_FENCE = re.compile(r"\s*(`{3,}|~{3,})\s*([^`\s]*)")
_BEGUN = b"+"  # says that what follows ran isolated


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
        yield Problem(where, found, "permission on this machine", step)
    elif reason := explain_not_isolated():
        step = "a Linux that allows user namespaces (sysctl user.max_user_namespaces), or another metric"
        yield Problem(where, f"no isolation ({reason})", "namespaces of one's own", step)


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
            str(Problem("a metric that runs code", reason, "a program in isolation", "harness doctor"))
        )
    return said == _BEGUN + nonce


@lru_cache(maxsize=1)
def explain_not_isolated() -> str:
    """Say why a program cannot be isolated here; empty where it can."""
    try:
        return "" if passes("", "assert True") else "a program that passes does not"
    except (HarnessError, OSError) as error:
        return str(error).splitlines()[0]
