"""Code scored by its tests: right code passes, and side effects of an answer end with its namespaces."""

import os
import time
from pathlib import Path

import pytest

from harness.errors import UserError
from harness.metrics import _run_code, load_metrics
from harness.metrics._run_code import ALLOWED, ProgramLimits, explain_not_isolated, passes
from harness.metrics.code import extract_code
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


@pytest.mark.parametrize("answer", ["I cannot do that.", "def add(a, b):\n    return a + b or 1"])
def test_code_that_fails_a_test_or_is_none_is_wrong(answer):
    assert score(answer, TESTS) == (0.0,)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (f"```python\n{ADD}```", ADD.strip()),
        ("```\nx = 1\n```\nor\n```python\nx = 2\n```", "x = 2"),
        ("Install:\n```\npip install foo\n```\nCode:\n```python\nx = 1\n```", "x = 1"),
        ("```py\nx = 1", "x = 1"),
        ("1. Use:\n   ```python\n   if x:\n       y = 2\n   ```\n", "if x:\n    y = 2"),
        ("````\nx = 1\n```\n````", "x = 1\n```"),
    ],
)
def test_the_code_of_an_answer_is_its_first_block_or_all_of_it(text, code):
    assert extract_code(text) == code


@pytest.mark.parametrize("tests", ["def check(candidate):\n    assert candidate(1, 2) == 3\n", "42"])
def test_a_reference_that_tests_nothing_is_refused(tests):
    with pytest.raises(UserError, match="item i: found tests that pass without any code"):
        score(ADD, tests)


@pytest.mark.e2e
@pytest.mark.parametrize(
    "tests",
    [
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


@pytest.mark.parametrize(
    "program",
    [
        "import sys\nsys.exit(0)",
        "def add(a, b):\n    import os\n    os._exit(0)",
        "print('+' + '0' * 32, flush=True)\nimport os\nos._exit(0)",
        "import builtins\nbuiltins.AssertionError = SystemExit\n" + ADD.replace("+", "-"),
    ],
)
def test_a_program_that_ends_before_its_tests_has_not_passed(program):
    assert not passes(program, TESTS, SOON)


@pytest.mark.e2e
def test_builtins_that_an_answer_replaces_do_not_decide_its_tests():
    program = "import builtins\nbuiltins.all = builtins.isinstance = lambda *found: True\n" + ADD
    assert passes(program, "assert all([add(1, 2) == 3])", SOON)
    assert not passes(program, "assert all([add(1, 2) == 4])", SOON)
    assert not passes(program, "assert isinstance(add(1, 2), str)", SOON)


# What code must not do


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
    """Count the processes of this machine whose command line contains `words`."""
    n_found = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            n_found += words in path.read_bytes().decode(errors="replace")
        except OSError:
            continue
    return n_found


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


REACHING = (
    f"open({str(Path(__file__))!r})", f"open({str(Path.home() / 'secret')!r})",
    "os.listdir('/old')[0]", "open('/etc/passwd')", "open('/proc/1/environ')",
    "open('/usr/written', 'w')", "open('/written', 'w')",
    "socket.create_connection(('127.0.0.1', PORT), 2)",
    "socket.create_connection(('1.1.1.1', 53), 2)", "os.kill(PARENT, 0)",
    "os.environ['SECRET_KEY']",
    "1 / (ctypes.CDLL(None).mount(b'x', b'/tmp', b'tmpfs', 0, None) == 0)", "os.setuid(1)",
    "open('/tmp/large', 'wb').write(bytes(40 * 2**20))",
)  # fmt: skip


def test_a_program_reaches_nothing_of_the_machine(monkeypatch):
    import socket

    monkeypatch.setenv("SECRET_KEY", "secret")
    secret = Path.home() / "secret"
    is_new = not secret.exists()
    if is_new:
        secret.write_text("secret")
    program = "import ctypes, os, socket\nreached = []\n"
    for step in REACHING:
        program += f"try:\n    {step}\n    reached.append({step!r})\nexcept Exception:\n    pass\n"
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            program = program.replace("PORT", str(server.getsockname()[1])).replace(
                "PARENT", str(os.getpid())
            )
            assert passes(program, "assert reached == []", SOON._replace(wall_s=15.0))
            assert not passes(program.replace("/etc/passwd", "/dev/null"), "assert reached == []", SOON)
    finally:
        if is_new:
            secret.unlink()


def test_nothing_runs_unless_somebody_allows_it(monkeypatch):
    monkeypatch.delenv(ALLOWED)
    with pytest.raises(UserError, match=f"export {ALLOWED}=1"):
        score(ADD, TESTS)


def test_nothing_runs_where_it_cannot_be_isolated(monkeypatch, tmp_path):
    program = tmp_path / "unshare"
    program.write_text("#!/bin/sh\necho 'unshare failed: Operation not permitted' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setitem(_run_code._ENVIRONMENT, "PATH", f"{tmp_path}:{_run_code._ENVIRONMENT['PATH']}")
    for function in (explain_not_isolated, passes):
        function.cache_clear()
    try:
        with pytest.raises(UserError, match="Operation not permitted"):
            score("open('/tmp/ran', 'w')", TESTS)
    finally:
        for function in (explain_not_isolated, passes):
            function.cache_clear()
