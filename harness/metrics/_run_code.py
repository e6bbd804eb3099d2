"""Isolated runs of code from answers, and the fenced blocks that contain it.

Invariant: answers run only in namespaces of their own, under limits of time, memory, processes and files,
and only with `HARNESS_ALLOW_CODE_EXECUTION=1`. A program reports that it has begun, and returns the nonce
only after all tests have ended. Builtins that the code replaced are restored before the tests run.
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

from harness.errors import HarnessError, Problem

_NOBODY = 65534
_MOST_READ = 200  # bytes of the program's output
# Programs and libraries, read-only; nothing else of the machine is visible.
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
# umount(8) needs /proc, which is missing here. Memory that no limit of a process counts is refused:
# the filter (seccomp(2), on x86-64 and ARM64) forbids shmget, msgget, memfd_create and memfd_secret.
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


def _command() -> list[str]:
    prefix = str(Path(sys.base_prefix).resolve())
    places = [*_PLACES, *([] if prefix.startswith("/usr/") or prefix == "/usr" else [prefix])]
    cmd = ["unshare", "--user", "--map-root-user", "--net", "--mount", "--pid", "--ipc", "--uts", "--fork"]
    cmd.append("--kill-child=SIGKILL")
    if os.geteuid() != 0:
        return [*cmd, "sh", "-c", _BUILD + _ENTER, "sh", *places]
    # Root lays out the files and then becomes nobody, so that the limit of processes holds.
    drop = f'exec setpriv --reuid={_NOBODY} --regid={_NOBODY} --clear-groups {" ".join(cmd)} sh -c "$ENTER"\n'
    return ["env", f"ENTER={_ENTER}", "unshare", "--mount", "sh", "-c", _BUILD + drop, "sh", *places]


# The nonce is read only after the tests have ended; code that inspects `__main__` could read it earlier.
DRIVER = """
import builtins, fcntl, json, os, random, sys, types
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
def run(read=os.read, write=os.write, leave=os._exit):
    module = sys.modules["answer"] = types.ModuleType("answer")
    scope, own = vars(module), dict(vars(builtins))
    try:
        exec(compile(program["code"], "answer.py", "exec"), scope)
        vars(builtins).update(own)
        tests, known = compile(program["tests"], "tests.py", "exec"), dict(scope)
        exec(tests, scope)
        for name, found in list(scope.items()):
            if known.get(name) is not found:
                test(name, found)
    except BaseException:
        leave(1)
    write(out, read(pipe, 100))
    leave(0)
run()
"""


ALLOWED = "HARNESS_ALLOW_CODE_EXECUTION"
_FENCE = re.compile(r"\s*(`{3,}|~{3,})\s*([^`\s]*)")
_BEGUN = b"+"  # written first by a program that runs isolated


def extract_fenced(text: str, language_pattern: re.Pattern[str]) -> str:
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
    in_language = [code for language, code in blocks if language_pattern.fullmatch(language)]
    without_language = [code for language, code in blocks if not language]
    chosen = [*in_language, *without_language, *(code for _, code in blocks), text][0]
    return textwrap.dedent(chosen).strip()


def problems(where: str) -> Iterator[Problem]:
    """Yield why an answer's code must not run here: it is not allowed, or cannot be isolated."""
    if os.environ.get(ALLOWED) != "1":
        found, step = "a metric that runs the code of answers", f"export {ALLOWED}=1 where that may be"
        yield Problem(where, found, "permission on this machine", step)
    elif reason := explain_not_isolated():
        step = "a Linux that allows user namespaces (sysctl user.max_user_namespaces), or another metric"
        yield Problem(where, f"no isolation ({reason})", "namespaces of one's own", step)


@lru_cache(maxsize=4096)
def passes(code: str, tests: str, limits: ProgramLimits = ProgramLimits()) -> bool:  # noqa: B008 (a constant)
    """Tell whether code passes tests, which run after it; HarnessError if it could not be isolated."""
    nonce = secrets.token_hex(16).encode()
    program = json.dumps({"code": code, "tests": tests}).encode()
    options = f"--cpu={limits.cpu_s} --as={limits.memory_mib * 2**20} --nproc={limits.processes}"
    options += f" --fsize={16 * 2**20} --nofile=64 --core=0"
    texts = {"PYTHON": os.path.realpath(sys.executable), "LEAVE": _LEAVE, "DRIVER": DRIVER, "LIMITS": options}
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            _command(),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=errors,
            env=_ENVIRONMENT | texts,
            cwd="/",
            start_new_session=True,
        )
        try:
            process.communicate(b"%010d" % len(program) + program + nonce, timeout=limits.wall_s)
        except subprocess.TimeoutExpired:
            process.kill()  # its namespace ends with it, and with that all that it has started
            process.communicate()
        output.seek(0)
        errors.seek(0)
        written, reason = output.read(_MOST_READ), errors.read(_MOST_READ).decode(errors="replace").strip()
    if not written.startswith(_BEGUN):
        found, expected = reason.split("\n")[0] or "it never began", "a program in isolation"
        raise HarnessError(str(Problem("a metric that runs code", found, expected, "harness doctor")))
    return written == _BEGUN + nonce


@lru_cache(maxsize=1)
def explain_not_isolated() -> str:
    """Say why a program cannot be isolated here; empty if it can."""
    try:
        return "" if passes("", "assert True") else "a program that passes does not"
    except (HarnessError, OSError) as error:
        return str(error).splitlines()[0]
