"""Isolation of a program of Python: namespaces without network, files or rights, and limits of its own.

Invariant: nothing of the program runs outside of namespaces of its own, under limits of time, memory,
processes and files.

Source: Linux's manual namespaces(7), pivot_root(2) and seccomp(2).
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

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
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            _command(),
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=errors,
            env={
                **_ENVIRONMENT,
                "PYTHON": os.path.realpath(sys.executable),
                "LEAVE": _LEAVE,
                "DRIVER": driver,
                "LIMITS": _limits(limits),
            },
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


def _limits(limits: ProgramLimits) -> str:
    n_bytes = limits.memory_mib * 2**20
    return (
        f"--cpu={limits.cpu_s} --as={n_bytes} --nproc={limits.processes} --fsize={16 * 2**20} "
        "--nofile=64 --core=0"
    )
