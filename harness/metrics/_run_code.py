"""Runs of code from answers, isolated, where they are allowed; and the fenced blocks it stands in.

Invariant: nothing of an answer runs outside of namespaces of its own, under limits of time, memory, processes
and files, and nothing runs unless `HARNESS_ALLOW_CODE_EXECUTION=1` says so. A program says that it has begun,
and gives the nonce back only once all tests have ended. Builtins that the code replaced are put back before
the tests run; a value that tells no others apart ends it.
Source: Linux's manual namespaces(7), pivot_root(2) and seccomp(2)
"""

import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from harness.errors import HarnessError, Problem, refuse

_NOBODY = 65534
_MOST_READ = 200  # bytes of what the program says
# Programs and libraries, read-only; everything else of the machine is not there.
_PLACES = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/libx32", "/lib64")
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/tmp"}
_BUILD = """
set -e
root=/media
mount -t tmpfs -o size=1m,mode=755,nosuid,nodev tmpfs $root
for place in "$@"; do
    if [ -L "$place" ]; then ln -s "$(readlink "$place")" "$root$place"; continue; fi
    [ -d "$place" ] || continue
    mkdir -p "$root$place"
    mount --rbind "$place" "$root$place"
    mount -o remount,bind,ro,nosuid,nodev "$root$place"
done
mkdir -p $root/dev $root/etc $root/tmp $root/old
for file in /dev/null /dev/urandom /etc/ld.so.cache; do
    [ -e $file ] || continue
    : > $root$file
    mount --bind $file $root$file
done
mount -t tmpfs -o size=16m,mode=1777,nosuid,nodev tmpfs $root/tmp
mount -o remount,bind,ro,nosuid,nodev $root
"""
# Mounts that another namespace made cannot be pivoted to, but a copy of them can. A further user namespace
# would give rights back to mount.
_ENTER = """
set -e
{ echo 0 > /proc/sys/user/max_user_namespaces; } 2> /dev/null || :
mount --rbind /media /media
cd /media
pivot_root . old
cd /tmp
exec "$PYTHON" -I -S -c "$LEAVE" setpriv --no-new-privs --bounding-set=-all --inh-caps=-all \\
    prlimit $LIMITS -- "$PYTHON" -I -S -c "$DRIVER"
"""
# umount(8) wants a /proc, which is not there. Memory that no limit of a process counts cannot be requested:
# the filter (seccomp(2), on x86-64 and ARM64) refuses shmget, msgget, memfd_create and memfd_secret.
_LEAVE = """
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
def must(name, *arguments):
    if getattr(libc, name)(*arguments):
        sys.exit(name + ": " + os.strerror(ctypes.get_errno()))
must("umount2", b"/old", 2)
calls = {"x86_64": (0xC000003E, 29, 68, 319, 447), "aarch64": (0xC00000B7, 194, 186, 279, 447)}
known = calls.get(os.uname().machine)
if known:
    machine, *refused = known
    load, equal, beyond, end = 0x20, 0x15, 0x35, 0x06
    rules = [(load, 0, 0, 4), (equal, 1, 0, machine), (end, 0, 0, 0x80000000), (load, 0, 0, 0)]
    rules += [(equal, len(refused) + 1 - at, 0, call) for at, call in enumerate(refused)]
    rules += [(beyond, 1, 0, 0x40000000), (end, 0, 0, 0x7FFF0000), (end, 0, 0, 0x00050001)]
    filters = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *rule) for rule in rules))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(rules), ctypes.addressof(filters)))
    must("prctl", 38, 1, 0, 0, 0)
    must("prctl", 22, 2, ctypes.c_void_p(ctypes.addressof(program)), 0, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""


class ProgramLimits(NamedTuple):
    """Limits of one program: seconds of a processor and by the clock, MiB of memory a process, processes."""

    cpu_s: int = 10
    wall_s: float = 30.0
    memory_mib: int = 512
    processes: int = 16


def run_isolated(driver: str, given: bytes, limits: ProgramLimits) -> tuple[bytes, str]:
    """Run a program, given its standard input, to its end or its limits.

    Returns what it told us, and what its start said of errors.
    """
    n_bytes = limits.memory_mib * 2**20
    prlimit = (
        f"--cpu={limits.cpu_s} --as={n_bytes} --nproc={limits.processes} --fsize={16 * 2**20} "
        "--nofile=64 --core=0"
    )
    python = os.path.realpath(sys.executable)
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            _command(),
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=errors,
            env={**_ENVIRONMENT, "PYTHON": python, "LEAVE": _LEAVE, "DRIVER": driver, "LIMITS": prlimit},
            cwd="/",
            start_new_session=True,
        )
        try:
            process.communicate(given, timeout=limits.wall_s)
        except subprocess.TimeoutExpired:
            process.kill()  # with it, as its namespace ends, all that it has started
            process.communicate()
        said.seek(0)
        errors.seek(0)
        reason = errors.read(_MOST_READ).decode(errors="replace").strip().splitlines()
        return said.read(_MOST_READ), reason[0] if reason else ""


def _command() -> list[str]:
    """Return the command that enters the namespaces.

    Root lays out the files and then becomes nobody, so that the limit of processes holds.
    """
    prefix = str(Path(sys.base_prefix).resolve())
    places = [*_PLACES, *([] if prefix.startswith("/usr/") or prefix == "/usr" else [prefix])]
    own = ["unshare", "--user", "--map-root-user", "--net", "--mount", "--pid", "--ipc", "--uts", "--fork"]
    own.append("--kill-child=SIGKILL")
    if os.geteuid() != 0:
        return [*own, "sh", "-c", _BUILD + _ENTER, "sh", *places]
    drop = f'exec setpriv --reuid={_NOBODY} --regid={_NOBODY} --clear-groups {" ".join(own)} sh -c "$ENTER"\n'
    return ["env", f"ENTER={_ENTER}", "unshare", "--mount", "sh", "-c", _BUILD + drop, "sh", *places]


# The nonce is read only once the tests have ended; code that looks for the pipe in `__main__` can read it.
# Of numbers one, the next and the double are not all equal by any modulus.
DRIVER = """
import ast, builtins, fcntl, json, os, random, sys, types
from operator import contains, eq, ge, gt, le, lt, ne
def read(n):
    found = b""
    while len(found) < n:
        found += os.read(0, n - len(found)) or os._exit(3)
    return found
program = json.loads(read(int(read(10))))
pipe, out = (fcntl.fcntl(fd, fcntl.F_DUPFD, random.SystemRandom().randrange(10, 50)) for fd in (0, 1))
null = os.open("/dev/null", os.O_RDWR)
for fd in (0, 1, 2):
    os.dup2(null, fd)
os.write(out, b"+")
def call(test):
    found = test()
    if hasattr(found, "__await__"):
        import asyncio
        asyncio.run(found)
def test(name, found):
    unittest = sys.modules.get("unittest")
    if not isinstance(found, type):
        if name.startswith("test_") and callable(found):
            call(found)
    elif unittest and issubclass(found, unittest.TestCase):
        unittest.defaultTestLoader.loadTestsFromTestCase(found).debug()
    elif name.startswith("Test"):
        for each in dir(found):
            if each.startswith("test_"):
                call(getattr(found(), each))
build, classes = builtins.__build_class__, {"answer.py": [], "tests.py": []}
def build_class(function, *arguments, **named):
    made = build(function, *arguments, **named)
    classes.get(function.__code__.co_filename, []).append(made)
    return made
builtins.__build_class__ = build_class
n = random.SystemRandom().randrange(10**6, 10**9)
kinds = {int: (n, n + 1, 2 * n), str: (str(n), str(n + 1), ""), list: ([n], [n + 1], [])}
kinds |= {float: kinds[int], object: (object(), types.SimpleNamespace(n=n))}
def holds(compare, *values):
    try:
        return bool(compare(*values))
    except Exception:
        return False
def equal(one, other):
    return holds(eq, one, other) or holds(eq, other, one) or holds(is_no_other, one, other)
def is_no_other(one, other):
    return not one != other
held = [n, n + 1], [n], []
expected = {bool: (False, True), bytes: (b"%d" % n, b"%d" % (n + 1), b""), dict: ({n: n}, {n: n + 1}, {})}
expected |= {kind: tuple(map(kind, held)) for kind in (frozenset, list, set, tuple)}
expected |= {float: kinds[int], int: kinds[int], str: kinds[str]}
def equals_all(value, kind):
    return all(equal(value, other) for other in expected[kind])
def refuse_any(first, second, leave=os._exit):
    left = [(first, second)]
    while left:
        one, other = left.pop()
        if type(one) in (list, tuple) and type(other) in (list, tuple):
            left += [pair for pair in zip(one, other) if not plain.issuperset(map(type, pair))]
        elif type(one) is type(other) is dict:
            left += zip(one.values(), map(other.get, one))
        else:
            for value, wanted in ((one, other), (other, one)):
                is_plain = type(value) in expected or type(value) in plain
                if type(wanted) in expected and not is_plain and not is_of_tests(value):
                    if equals_all(value, type(wanted)):
                        leave(1)
    return refuse_alike(first), refuse_alike(second)
def compare_equal(one, other):
    return eq(*refuse_any(one, other))
def compare_unequal(one, other):
    return ne(*refuse_any(one, other))
def sorts_alike(value, other):
    is_below, is_above = (any(holds(one, value, other) for one in both) for both in ((lt, le), (gt, ge)))
    return is_below and is_above
def compares_alike(value):
    of_its_kind = [others for kind, others in kinds.items() if isinstance(value, kind)]
    is_anywhere = any(sorts_alike(value, other) for other in (n, str(n), [n]))
    return is_anywhere or any(all(equal(value, other) for other in others) for others in of_its_kind)
def made_alike(made):
    return compares_alike(made.__new__(made))
plain = {bool, bytes, complex, float, int, str, type(None)}
def parts_of(value):
    if type(value) is dict:
        return [*value, *value.values()]
    if type(value) in (frozenset, list, set, tuple):
        return value
    return list(getattr(value, "__dict__", {}).values()) if type(value).__module__ == "answer" else ()
mocks = set()
def is_of_tests(value):
    mock = sys.modules.get("unittest.mock")
    if mock and "ANY" in mocks and value is mock.ANY:
        return True
    is_mock = mock and "unittest.mock" in mocks and isinstance(value, mock.NonCallableMock)
    return is_mock or type(value) in classes["tests.py"]
def read_by_tests(value):
    known, left = set(), [value]
    while left:
        one = left.pop()
        if type(one) in plain or id(one) in known:
            continue
        known.add(id(one))
        parts = parts_of(one)
        left += [part for part in parts if type(part) not in plain]
        if not (parts is one or is_of_tests(one)):
            yield one
def refuse_alike(value, leave=os._exit):
    if type(value) not in plain and any(map(compares_alike, read_by_tests(value))):
        leave(1)
    return value
def fits_all(value):
    holds_all = hasattr(type(value), "__contains__") and type(value) not in expected
    if holds_all and all(holds(contains, value, other) for other in (object(), n, str(n))):
        return True
    return any(equals_all(value, kind) for kind in expected)
def refuse_fitting(value, leave=os._exit):
    if type(value) not in plain and any(map(fits_all, read_by_tests(value))):
        leave(1)
    return refuse_alike(value)
comparisons = {ast.Eq: "__equal__", ast.NotEq: "__unequal__"}
class Checks(ast.NodeTransformer):
    def checked(self, node, by="__checked__"):
        if isinstance(node, (ast.Constant, ast.Starred)):
            return node
        return ast.Call(ast.Name(by, ast.Load()), [node], [])
    def visit_Compare(self, node):
        self.generic_visit(node)
        name = comparisons.get(type(node.ops[0])) if len(node.ops) == 1 else None
        if name:
            return ast.Call(ast.Name(name, ast.Load()), [node.left, *node.comparators], [])
        is_member = len(node.ops) > 1 or isinstance(node.ops[0], (ast.In, ast.NotIn))
        by = "__fitting__" if is_member else "__checked__"
        node.left, *node.comparators = (self.checked(one, by) for one in (node.left, *node.comparators))
        return node
    def visit_Call(self, node):
        self.generic_visit(node)
        first, rest = node.args[:2], node.args[2:]
        is_assertion = isinstance(node.func, ast.Attribute) and node.func.attr.startswith("assert")
        if is_assertion and len(first) == 2 and not any(isinstance(one, ast.Starred) for one in first):
            if node.func.attr in ("assertIn", "assertNotIn"):
                first = [self.checked(one, "__fitting__") for one in first]
            first = [ast.Starred(ast.Call(ast.Name("__refuse_any__", ast.Load()), first, []), ast.Load())]
        node.args = list(map(self.checked, (*first, *rest)))
        for given in node.keywords:
            given.value = self.checked(given.value)
        return node
def parse_tests(text):
    global mocks
    mocks = {word for word in ("ANY", "unittest.mock") if word in text}
    return ast.fix_missing_locations(Checks().visit(ast.parse(text, "tests.py")))
def run(read=os.read, write=os.write, leave=os._exit):
    module = sys.modules["answer"] = types.ModuleType("answer")
    scope, own = vars(module), dict(vars(builtins))
    try:
        exec(compile(program["code"], "answer.py", "exec"), scope)
        vars(builtins).update(own)
        tests = compile(parse_tests(program["tests"]), "tests.py", "exec")
        scope |= {"__checked__": refuse_alike, "__refuse_any__": refuse_any, "__fitting__": refuse_fitting}
        scope |= {"__equal__": compare_equal, "__unequal__": compare_unequal}
        known = dict(scope)
        exec(tests, scope)
        for name, found in list(scope.items()):
            if known.get(name) is not found:
                test(name, found)
        if any(holds(made_alike, made) for made in classes["answer.py"]):
            leave(1)
    except BaseException:
        leave(1)
    write(out, read(pipe, 100))
    leave(0)
run()
"""


ALLOWED = "HARNESS_ALLOW_CODE_EXECUTION"
_FENCE = re.compile(r"\s*(`{3,}|~{3,})\s*([^`\s]*)")
_BEGUN = b"+"  # says that what follows ran isolated


def extract_fenced(text: str, wanted: re.Pattern[str]) -> str:
    """Return the first fenced block of a language, else of no language or of any, or all of a text."""
    blocks, mark, language, lines = list[tuple[str, str]](), "", "", list[str]()
    for line in text.splitlines():
        fence = _FENCE.match(line)
        if not mark:
            mark, language = fence.groups() if fence else ("", "")
            lines = []
        elif fence and fence.group(1).startswith(mark):
            blocks.append((language, "\n".join(lines)))
            mark = ""
        else:
            lines.append(line)
    if mark:  # the last one may be open
        blocks.append((language, "\n".join(lines)))
    named = [code for language, code in blocks if wanted.fullmatch(language)]
    unnamed = [code for language, code in blocks if not language]
    every = [code for _, code in blocks]
    return textwrap.dedent([*named, *unnamed, *every, text][0]).strip()


def problems(where: str) -> Iterator[Problem]:
    """Yield what forbids to run an answer's code here: it is not allowed, or cannot be isolated."""
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
