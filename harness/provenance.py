"""Provenance of a number besides its recipe: code, packages, machine, and files of further models.

`code_versions.toml` lists concerns with their files and a pin, the digest of their syntax trees; a test fails
if a pin differs. If results change, raise the version; otherwise run `make pins`.

Invariant: moving, renaming and documenting code changes no identity. Unknown values are None or empty;
nothing here imports a heavy package or a user's file, or fails.
"""

import ast
import os
import platform
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from harness import __version__
from harness.records import checksum, digest

TABLE = Path(__file__).with_name("code_versions.toml")


class CodeVersion(NamedTuple):
    """The version of one concern; `files` are globs below `harness/`, `pin` the digest of their code."""

    version: int
    files: tuple[str, ...]
    pin: str


@cache
def code_versions() -> Mapping[str, CodeVersion]:
    """Read the table: concern, such as `layout` or `methods/lora`, to its version."""
    rows = tomllib.loads(TABLE.read_text("utf-8"))
    return {name: CodeVersion(row["version"], tuple(row["files"]), row["pin"]) for name, row in rows.items()}


def versions_of(*concerns: str) -> dict[str, int]:
    """Return the versions of some concerns, for use in a digest."""
    return {name: code_versions()[name].version for name in concerns}


_OURS = __name__.partition(".")[0]


def digest_code(file: Path) -> str:
    """Digest a Python file with the modules of its folder that it imports, directly or indirectly."""
    modules, unread = set[Path](), [file]
    while unread:
        imported = {m for m in _list_imports(unread.pop(), file.parent) if m.is_relative_to(file.parent)}
        imported -= modules | {file}
        modules |= imported
        unread += imported
    named_checksums = [[str(module.relative_to(file.parent)), checksum(module)] for module in sorted(modules)]
    file_checksum = checksum(file)
    return digest([file_checksum, named_checksums]) if named_checksums else file_checksum


def _list_imports(file: Path, root: Path) -> Iterator[Path]:
    """Yield the files that a module imports; absolute names are below `root`, relative ones in its folder."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return  # the import will refuse it
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _list_files(root, alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = file.parents[node.level - 1] if 0 < node.level <= len(file.parents) else root
            for alias in node.names:
                yield from _list_files(base, f"{node.module}.{alias.name}" if node.module else alias.name)
        elif isinstance(node, ast.Call) and node.args:
            function, name = ast.unparse(node.func).rpartition(".")[2], node.args[0]
            if function in ("import_module", "__import__") and isinstance(name, ast.Constant):
                yield from _list_files(root, name.value) if isinstance(name.value, str) else ()


def _list_files(base: Path, name: str) -> Iterator[Path]:
    """Yield the files of a module and of its parent packages; none for our own package."""
    parts = name.split(".")
    for n in range(1, len(parts) + 1) if parts[0] != _OURS else ():
        path = base.joinpath(*parts[:n])
        yield from filter(Path.is_file, (path.with_name(f"{path.name}.py"), path / "__init__.py"))


PACKAGES = ("torch", "transformers", "peft", "trl", "tokenizers", "numpy")
_GIT_TIMEOUT_S = 5


def collect(device: str | None = None, folder: Path | None = None) -> dict[str, Any]:
    """Describe code (of a folder's git), packages and machine (or accelerator) as one JSON object."""
    sha, dirty = git_state(folder or Path.cwd())
    return {
        "harness": __version__,
        "git_sha": sha,
        "git_dirty": dirty,
        "packages": package_versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "device": device or processor_name(),
        "threads": thread_count(),
    }


def describe_environment(device: str | None = None) -> dict[str, str]:
    """Describe what may change answers of the same model: packages, Python, machine, device, threads."""
    packages = {name: number or "missing" for name, number in package_versions().items()}
    return {
        **packages,
        "Python": platform.python_version(),
        "machine": platform.machine(),
        "device": device or processor_name() or "unknown",
        "threads": str(thread_count() or "unknown"),
    }


def changes(then: Mapping[str, str], now: Mapping[str, str]) -> str:
    """List the differences between two environments: `transformers 5.1 → 5.2`."""
    if not then:
        return "nothing is known of the one then"
    names = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    return ", ".join(f"{name} {then.get(name, 'missing')} → {now.get(name, 'missing')}" for name in names)


@cache
def package_versions() -> dict[str, str | None]:
    """Return the versions of the packages that compute, from their metadata."""
    versions: dict[str, str | None] = dict.fromkeys(PACKAGES)
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def timestamp() -> str:
    """Return the time in UTC as ISO 8601 to the millisecond, so that runs within a second are ordered."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def git_state(folder: Path) -> tuple[str | None, bool | None]:
    """Ask git for the commit of a folder, and whether files differ from it, also untracked ones."""
    sha, changes = _git(folder, "rev-parse", "HEAD"), _git(folder, "status", "--porcelain")
    return sha or None, None if changes is None else bool(changes)


def git_user(folder: Path) -> str:
    """Return the name and address that git would sign a commit in a folder with, else "unknown"."""
    signed = _git(folder, "var", "GIT_AUTHOR_IDENT") or ""
    return signed.partition(">")[0] + ">" if ">" in signed else "unknown"


def processor_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """Return the processor's model name."""
    try:
        lines = cpuinfo.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or None


def thread_count() -> int | None:
    """Return how many threads numerical libraries start: `OMP_NUM_THREADS`, else the usable cores."""
    limit = os.environ.get("OMP_NUM_THREADS", "")
    if limit.isdigit():
        return int(limit)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _git(folder: Path, *arguments: str) -> str | None:
    # Without optional locks, this never disturbs a git command of the user.
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def source_digest(model: str) -> str:
    """Digest the files of a model, a folder or a hub id; "" where they are not on this machine."""
    if files := sorted(path for path in Path(model).rglob("*") if path.is_file()):
        return digest([[file.name, checksum(file)] for file in files])
    from huggingface_hub import try_to_load_from_cache

    # The folder of a cached hub id is named by its commit.
    config = try_to_load_from_cache(model, "config.json") if "/" in model else None
    return Path(config).parent.name if isinstance(config, str) else ""
