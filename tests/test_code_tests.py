"""Code by its tests: what is right passes, and what an answer does besides ends with its namespaces."""

import os
import time
from pathlib import Path

import pytest

from harness.errors import UserError
from harness.metrics import _run_code, load_metrics
from harness.metrics._run_code import ALLOWED, ProgramLimits, explain_not_isolated, passes
from harness.metrics.code_tests import extract_code
from harness.records import Example, Output
from harness.spec import Task

ADD = "def add(a, b):\n    return a + b\n"
TESTS = "assert add(1, 2) == 3\n\ndef test_zero():\n    assert add(0, 0) == 0\n"
SOON = ProgramLimits(cpu_s=1, wall_s=5.0, memory_mib=128, processes=8)


@pytest.fixture(autouse=True)
def code_permission(monkeypatch):
    monkeypatch.setenv(ALLOWED, "1")


def score(answer, *references):
    metric = load_metrics(Task(name="t", data={}, metrics=("code_tests",)))["code_tests"]
    return metric.score(Output(answer), Example("i", (), references))


# What counts as right


@pytest.mark.e2e
def test_code_that_passes_the_tests_of_one_reference_is_right_whatever_stands_around_it():
    assert score(f"Here it is:\n```python\n{ADD}```\nIt adds.", TESTS) == (1.0,)
    assert score(ADD, "assert add(1, 2) == 4", TESTS) == (1.0,)
    metric = load_metrics(Task(name="t", data={}, metrics=("code_tests",)))["code_tests"]
    assert metric.same(f"Sure.\n```python\n{ADD}```") == metric.same(ADD)
    code = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\nimport pickle\n"
        "@dataclass\nclass P:\n    x: int\n"
    )
    assert passes(code, "assert pickle.loads(pickle.dumps(P(1))) == P(1)", SOON)


@pytest.mark.parametrize(
    "answer",
    [
        "I cannot do that.",
        "",
        "def add(a, b):\n    return a + b or 1",  # fails the function test alone
    ],
)
def test_code_that_fails_a_test_or_is_none_is_wrong(answer):
    assert score(answer, TESTS) == (0.0,)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (f"```python\n{ADD}```", ADD.strip()),
        ("```\nx = 1\n```\nor\n```python\nx = 2\n```", "x = 2"),
        ("Install:\n```\npip install foo\n```\nCode:\n```python\nx = 1\n```", "x = 1"),
        ("```\nx = 1\n```\nor\n```\nx = 2\n```", "x = 1"),
        ("```py\nx = 1", "x = 1"),
        ("  x = 1\n", "x = 1"),
        ("```sh\npip install foo\n```\n```python\nx = 1\n```", "x = 1"),
        ("1. Use:\n   ```python\n   if x:\n       y = 2\n   ```\n", "if x:\n    y = 2"),
        ("~~~python\nx = 1\n~~~", "x = 1"),
        ('```python title="a"\nx = 1\n```', "x = 1"),
        ("```Python3.11\r\nx = 1\r\n```", "x = 1"),
        ("````\nx = 1\n```\n````", "x = 1\n```"),
    ],
)
def test_the_code_of_an_answer_is_its_first_block_or_all_of_it(text, code):
    assert extract_code(text) == code


@pytest.mark.parametrize(
    "tests",
    [
        "def check(candidate):\n    assert candidate(1, 2) == 3\n",
        "def check():\n    assert add(1, 2) == 3\nif __name__ == '__main__':\n    check()",
        '">>> add(1, 2)"',
        "42",
    ],
)
def test_a_reference_that_tests_nothing_is_refused(tests):
    with pytest.raises(UserError, match="item i: found tests that pass without any code"):
        score(ADD, tests)


@pytest.mark.e2e
@pytest.mark.parametrize(
    "tests",
    [
        "def check(candidate):\n    assert candidate(1, 2) == 3\ncheck(add)",
        (
            "import unittest\nclass Sums(unittest.TestCase):\n    def setUp(self): self.a = 1\n"
            "    def test_add(self): self.assertEqual(add(self.a, 2), 3)"
        ),
        "class TestAdd:\n    def test_add(self):\n        assert add(1, 2) == 3",
        "async def test_add():\n    assert add(1, 2) == 3",
    ],
)
def test_tests_of_every_usual_form_are_run(tests):
    assert score(ADD, tests) == (1.0,)
    assert score(ADD.replace("+", "-"), tests) == (0.0,)


MOCKED = """
def add(a, b):
    from unittest.mock import MagicMock
    made = MagicMock()
    made.__eq__.return_value = True
    return made
"""
OF_A_METACLASS = """
class Kind(type):
    def __eq__(self, other): return True
class Any(metaclass=Kind): pass
add = lambda a, b: Any
"""
ANY = "class Any:\n    def __eq__(self, other): return True\n    def __ne__(self, other): return False\n"


@pytest.mark.parametrize(
    "program",
    [
        # What ends before its tests.
        "import sys\nsys.exit(0)",
        "def add(a, b):\n    import os\n    os._exit(0)",
        "def add(a, b):\n    raise SystemExit",
        "print('+' + '0' * 32, flush=True)\nimport os\nos._exit(0)",
        "import builtins\nbuiltins.AssertionError = SystemExit\n" + ADD.replace("+", "-"),
        # What answers with an object that equals everything.
        f"{ANY}def add(a, b): return Any()",
        "def add(a, b):\n    class Any(int):\n        __eq__ = lambda self, other: 1\n    return Any()",
        "from unittest.mock import ANY\nadd = lambda a, b: ANY",
        MOCKED,
        OF_A_METACLASS,
        "class Any(int):\n    def __eq__(self, other): return isinstance(other, int)\nadd = lambda a, b: Any()",
    ],
)
def test_a_program_that_ends_early_or_answers_with_what_equals_everything_has_not_passed(program):
    assert not passes(program, TESTS, SOON)


HOLDS_ANY = """
class Made:
    value = 1
def make():
    made = Made()
    made.value = ANY
    return made
"""
SORTS = """
class Sorts:
    def __lt__(self, other): return True
    __gt__ = __lt__
make = Sorts
"""
UNITTEST = """
import unittest
class Made(unittest.TestCase):
    def test_made(self):
        for made in make(): self.assertEqual(made, 1)
"""


ANY_OF = """
class Any:
    def __eq__(self, other): return isinstance(other, {})
make = lambda: {}
"""
HOLDS = "class Holds:\n    def __contains__(self, one): return True\nmake = Holds"
BELOW_AND_ABOVE = "class Sorts:\n    def {}(self, other): return {}\n    {} = {}\nmake = Sorts"
ONE_MADE = UNITTEST.replace("for made in make(): ", "made = make(); ")
HELD = UNITTEST.replace("for made in make(): self.assertEqual(made, 1)", "self.assertIn(1, make())")


@pytest.mark.parametrize(
    ("code", "tests"),
    [
        ("make = lambda: [ANY, ANY]", "assert make() == [1, 2]"),
        (HOLDS_ANY, "assert make().value == 1"), ("def make(): yield ANY", UNITTEST),
        (SORTS, "assert 1 < make() < 3"),
        (ANY_OF.format("int", "Any()"), "assert make() == 3"),
        (ANY_OF.format("int", "Any()"), "assert not 3 != make()"),
        (ANY_OF.format("bool", "{'a': (1, Any())}"), "assert make() == {'a': (1, True)}"),
        (ANY_OF.format("int", "Any()"), ONE_MADE), (HOLDS, "assert 3 in make()"),
        (HOLDS, "assert make().__contains__(3) and 'a' in make()"), (HOLDS, HELD),
        (ANY_OF.format("int", "[Any()]"), "assert 3 in make()"),
        (ANY_OF.format("int", "Any()"), "assert make() in (3, 4)"),
        (ANY_OF.format("int", "Any()"), "assert 1 < 3 == make()"),
        (BELOW_AND_ABOVE.format("__le__", "True", "__ge__", "__le__"), "assert 1 <= make() <= 3"),
        (BELOW_AND_ABOVE.format("__lt__", "isinstance(other, str)", "__gt__", "__lt__"), "assert 'a' < make() < 'c'"),
    ],
)  # fmt: skip
def test_what_equals_holds_or_sorts_everything_or_all_of_a_type_is_no_right_answer(code, tests):
    assert not passes(f"from unittest.mock import ANY\n{code}", tests, SOON)


MEMBERS = """
from collections import deque
from fractions import Fraction
class Evens:
    def __contains__(self, n): return n % 2 == 0
make = lambda: (range(5), {1: 2}, {3}, deque([4]), Evens(), Fraction(1, 2), 'text', iter([5]))
"""
MEMBERSHIP = """
numbers, known, few, last, evens, half, text, read = make()
assert 3 in numbers and 1 in known and 3 in few and 4 in last and 8 in evens and 7 not in evens
assert 0 < half < 1 and 0 < half == half and 'ex' in text and 5 in read
assert all(1 <= one in numbers for one in (1, 2))
"""


CALLED = """
from unittest.mock import MagicMock, call
made = MagicMock(return_value=3)
assert make(made) == 3
assert made.mock_calls == [call(1)]
"""
EVEN = """
class Even:
    def __init__(self, n): self.n = n
    def __eq__(self, other): return (self.n - getattr(other, "n", other)) % 2 == 0
"""
NUMBERS = "from decimal import Decimal\nmake = lambda: (Decimal(1), float('nan'))"
OWN_EQUALITY = """
from dataclasses import dataclass
@dataclass
class Point:
    x: int
class Money:
    def __init__(self, n): self.n = n
    def __eq__(self, other): return self.n == getattr(other, 'n', other)
class Bag:
    def __eq__(self, other): return vars(self) == getattr(other, '__dict__', {})
"""


@pytest.mark.parametrize(
    ("code", "tests"),
    [
        ("make = lambda: {'id': 7}", "from unittest.mock import ANY\nassert make() == {'id': ANY}"),
        ("make = lambda call: call(1)", CALLED),
        (EVEN, "assert Even(1) == 3\nassert Even(1) == Even(5)\nassert not Even(1) == 2"),
        (NUMBERS, "import math\nassert make()[0] == 1 and make()[0] < 2\nassert math.isnan(make()[1])"),
        (OWN_EQUALITY, "assert Point(1) == Point(1)\nassert Money(3) == 3\nassert Bag() == Bag()"),
        (MEMBERS, MEMBERSHIP),
    ],
)
def test_values_that_tell_others_apart_and_what_tests_expect_are_right(code, tests):
    assert passes(code, tests, SOON)


@pytest.mark.e2e
def test_builtins_that_an_answer_replaces_do_not_decide_its_tests():
    program = "import builtins\nbuiltins.all = builtins.isinstance = lambda *found: True\n" + ADD
    assert passes(program, "assert all([add(1, 2) == 3])", SOON)
    assert not passes(program, "assert all([add(1, 2) == 4])", SOON)
    assert not passes(program, "assert isinstance(add(1, 2), str)", SOON)


# What it must not do


@pytest.mark.e2e
def test_an_endless_loop_ends_and_a_memory_bomb_harms_nobody():
    start = time.monotonic()
    assert not passes("while True: pass", TESTS, SOON)
    assert not passes("import time\ntime.sleep(60)", TESTS, SOON._replace(wall_s=1.0))
    assert time.monotonic() - start < 20
    assert not passes("x = bytearray(10**9)\n" + ADD, TESTS, SOON)
    assert passes("x = bytearray(10**6)\n" + ADD, TESTS, SOON)
    assert passes("for i in range(2000): print('x' * 10_000)\n" + ADD, TESTS, SOON)


FORKS = """
import os, time
n = 0
try:
    while n < 200:
        if os.fork() == 0:
            time.sleep(30)
            os._exit(0)
        n += 1
except OSError:
    pass
"""


def test_a_fork_bomb_is_bounded_and_nothing_of_it_is_left():
    before = count_processes("time.sleep(30)")
    assert passes(FORKS + f"assert 0 < n < {SOON.processes}\n" + ADD, TESTS, SOON)
    assert count_processes("time.sleep(30)") == before


def count_processes(words):
    """Count the processes of this machine whose command line holds some words."""
    found = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += words in path.read_bytes().decode(errors="replace")
        except OSError:
            continue
    return found


@pytest.mark.skipif(os.uname().machine not in ("x86_64", "aarch64"), reason="its system calls are not known")
def test_memory_that_no_limit_of_a_process_counts_is_refused():
    program = "import ctypes, os\nlibc, held = ctypes.CDLL(None), []\n"
    for ask in (
        "os.memfd_create('held') > 0",
        "libc.syscall(447, 0) > 0",  # memfd_secret
        "libc.shmget(0, 1 << 20, 0o1600) >= 0",
        "libc.msgget(0, 0o1600) >= 0",
    ):
        program += f"try:\n    held.append({ask})\nexcept OSError:\n    held.append(False)\n"
    assert passes(program, "assert held == [False] * 4", SOON)


@pytest.mark.e2e
def test_a_program_has_no_namespaces_and_a_folder_of_its_own_that_goes_with_it():
    make = "import ctypes\nmade = ctypes.CDLL(None).unshare(0x10000000 | 0x20000)\n"
    assert passes(make + ADD, TESTS + "assert made != 0\n", SOON)
    assert passes("open('/tmp/notes', 'w').write('x')\n" + ADD, TESTS, SOON)
    assert passes("import os\nassert os.listdir('/tmp') == []\n" + ADD, TESTS, SOON)


REACHING = """
import ctypes, os, socket
reached = True
try:
    {}
except (OSError, AssertionError):
    reached = False
"""


@pytest.mark.parametrize(
    "program",
    [
        f"open({str(Path(__file__))!r})", f"open({str(Path.home() / 'secret')!r})",
        "assert os.listdir('/old')", "open('/etc/passwd')", "open('/proc/1/environ')",
        "open('/usr/written', 'w')", "open('/written', 'w')",
        "socket.create_connection(('127.0.0.1', PORT), 2)",
        "socket.create_connection(('1.1.1.1', 53), 2)", "os.kill(PARENT, 0)",
        "assert os.environ.get('SECRET_KEY')",
        "assert ctypes.CDLL(None).mount(b'x', b'/tmp', b'tmpfs', 0, None) == 0", "os.setuid(1)",
        "open('/tmp/large', 'wb').write(bytes(40 * 2**20))",
    ],
)  # fmt: skip
def test_a_program_reaches_nothing_of_the_machine(program, monkeypatch):
    import socket

    monkeypatch.setenv("SECRET_KEY", "secret")
    secret = Path.home() / "secret"
    made = not secret.exists()
    if made:
        secret.write_text("secret")
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = str(server.getsockname()[1])
            tried = REACHING.format(program.replace("PORT", port).replace("PARENT", str(os.getpid())))
            assert passes(tried, "assert not reached", SOON)
    finally:
        if made:
            secret.unlink()


def test_nothing_runs_unless_somebody_allows_it(monkeypatch):
    monkeypatch.delenv(ALLOWED)
    with pytest.raises(UserError, match=f"export {ALLOWED}=1"):
        score(ADD, TESTS)


def test_nothing_runs_where_it_cannot_be_isolated(monkeypatch, tmp_path):
    tried = tmp_path / "unshare"
    tried.write_text("#!/bin/sh\necho 'unshare failed: Operation not permitted' >&2\nexit 1\n")
    tried.chmod(0o755)
    monkeypatch.setitem(_run_code._ENVIRONMENT, "PATH", f"{tmp_path}:{_run_code._ENVIRONMENT['PATH']}")
    for cached in (explain_not_isolated, passes):
        cached.cache_clear()
    try:
        with pytest.raises(UserError, match="Operation not permitted"):
            score("open('/tmp/ran', 'w')", TESTS)
    finally:
        for cached in (explain_not_isolated, passes):
            cached.cache_clear()
