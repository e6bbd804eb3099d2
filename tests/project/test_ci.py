"""The CI script and time limit, on fake steps; hashes of pins; environment variables read at import."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hashes import CONSTRAINTS, HASHED, MODELS, pins, wanted_pins

ROOT = Path(__file__).parents[2]
MAKEFILE = """\
.venv/.installed: ; @echo made
test: ; @echo '7 passed in 1.20s'
e2e: ; @echo 'e2e tests $(ARGS)'; echo '4 passed in 3.00s'
docs: ; @echo built
gguf-tools: ; @echo compiled
slow: ; @echo 'slow tests $(ARGS)'; cat slow.txt
compare: ; @echo 'compare $(ARGS)'; {compare}
"""
PYTHON = """\
#!/bin/sh
case "$1" in -c) echo '{gflops} CPU, 2 threads, bf16, {gflops} GFLOP/s';; *) echo '2 passed in 0.10s';; esac
"""


def write_executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def project(tmp_path):
    """Return a function that lays out a project whose steps print the given texts, and runs the script."""
    for program in ("chromium", "g++"):
        write_executable(tmp_path / "bin" / program, "#!/bin/sh\n")
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")

    def run(*words, slow="3 passed in 5.00s", compare="echo ship", minutes="", gflops=890):
        write_executable(tmp_path / ".venv/bin/python", PYTHON.format(gflops=gflops))
        write_executable(tmp_path / "tests/slow/test_a.py", "pytestmark = pytest.mark.slow")
        write_executable(tmp_path / "tests/test_b.py", "@pytest.mark.e2e")
        (tmp_path / "Makefile").write_text(MAKEFILE.format(compare=compare))
        (tmp_path / "slow.txt").write_text(slow + "\n")
        environment = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "CI_MINUTES": minutes}
        command = [tmp_path / ".ci" / "run", *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    return run


def limits(output, column=0):
    """Read the limits in minutes by step: of a usual machine (column 0) or of a slow one (1)."""
    budget = re.findall(r"^(\S+) +(\d+) +(\d+)$", output.split("== ")[0], re.MULTILINE)
    return {name: int(columns[column]) for name, *columns in budget}


@pytest.mark.parametrize("column", [0, 1])
def test_the_limits_of_all_steps_are_printed_and_fit_into_less_than_88_minutes(project, column):
    process = project("--budget")
    minutes = limits(process.stdout, column)
    assert process.returncode == 0
    assert {"tests-fast", "docs", "tests-slow", "quickstart", "tests-quickstart"} < minutes.keys()
    assert minutes.pop("all") == sum(minutes.values()) < 88


STACK, HUNG = '  File "/x/tests/test_a.py", line 3 in test_a', "FAILED tests/test_a.py::test_a - crashed"
HANGS = {"slow": f"..Timeout (0:15:00)!\n{STACK}\n[gw0] node down: x\n{HUNG}\n3 passed in 5.00s\n{STACK}"}
OUTCOMES = {
    "limits that do not fit": ({"minutes": "80"}, 1, ["must be less than 80"], "== tests-fast"),
    "a skipped test": (
        {"slow": "2 passed, 1 skipped in 5.00s"},
        1,
        ["FAILED: 1 skipped", "\n15 passed, 0 failed, 1 skipped\n"],
        "slow machine",
    ),
    "a step that fails": (
        {"compare": "exit 3"},
        1,
        ["FAILED: quickstart", "== tests-quickstart took"],  # the later ones still run
        "slow machine",
    ),
    "a test that hangs": (HANGS, 0, [f"GFLOP/s\n{STACK}\n{HUNG}\n16 passed"], "slow machine"),
    "a usual machine": ({"gflops": 276}, 0, ["slow tests \n", "compare \n"], "slow machine"),
    "a slow machine": (
        {"slow": "3 passed, 80 not run in 5.00s", "gflops": 68},
        0,
        [
            "slow tests --no-loadscope-reorder --minutes=8 tests/slow/test_a.py",
            "e2e tests --no-loadscope-reorder --minutes=27 tests/test_b.py",
            "compare --quick",
            "a slow machine: 80 e2e and slow tests not run",
            "\n14 passed, 0 failed, 0 skipped\n",
        ],
        "== tests-quickstart",
    ),
}


@pytest.mark.parametrize(("given", "code", "said", "unsaid"), OUTCOMES.values(), ids=OUTCOMES)
def test_a_run_says_what_became_of_its_steps(project, given, code, said, unsaid):
    process = project(**given)
    assert process.returncode == code, process.stdout + process.stderr
    assert [text for text in said if text not in process.stdout] == []
    assert unsaid not in process.stdout


@pytest.mark.e2e
def test_what_a_step_leaves_running_is_ended_before_the_next_step(project, tmp_path):
    process = project(
        compare=f"setsid sh -c 'echo $$$$ > {tmp_path}/pid; exec sleep 60' >/dev/null 2>&1 & sleep 1"
    )
    pid = int((tmp_path / "pid").read_text())
    assert process.returncode == 0, process.stdout + process.stderr
    assert not Path(f"/proc/{pid}/cmdline").exists() or not Path(f"/proc/{pid}/cmdline").read_text()


LONG = """
import time

import pytest

{fixture}
def test_long({argument}):
    {body}

def test_later():
    pass
"""
FAILING = "try:\n        time.sleep(60)\n    except BaseException:\n        raise KeyError from None"


def run_session(folder, text, *arguments):
    (folder / "test_it.py").write_text(text)
    plugins = ["-p", "time_limit", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *plugins, "-q", *arguments, folder]
    environment = {"PYTHONPATH": str(Path(__file__).parents[1]), "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.e2e
def test_no_test_starts_when_the_time_is_over_and_within_it_each_ends_as_it_does(tmp_path):
    for minutes, code, summary in (("0", 0, "1 not run in"), ("5", 1, "1 failed in")):
        process = run_session(tmp_path, "def test_it(): assert False\n", "--minutes", minutes)
        assert (process.returncode, summary in process.stdout) == (code, True), process.stdout


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("parts", "processes"),
    [
        ({"fixture": "@pytest.fixture\ndef slow(): time.sleep(60)", "argument": "slow", "body": "pass"}, ()),
        ({"fixture": "", "argument": "", "body": FAILING}, ()),
    ],
    ids=["fixture", "interrupted into a failure"],
)
def test_a_test_under_way_when_the_time_is_over_ends_and_counts_as_not_run(tmp_path, parts, processes):
    process = run_session(tmp_path, LONG.format(**parts), "--minutes", "0.05", *processes)
    assert process.returncode == 0, process.stdout
    assert "2 not run in" in process.stdout
    assert "failed" not in process.stdout


def test_every_pin_that_is_installed_has_a_hash_and_the_version_of_the_constraints():
    blocks = re.split(r"\n(?=\w)", HASHED.read_text())[1:]
    assert {name: version for block in blocks for name, version in pins(block).items()} == wanted_pins()
    assert [block for block in blocks if not re.search(r"--hash=sha256:[0-9a-f]{64}", block)] == []
    assert {*wanted_pins()} - {*pins("\n".join(MODELS))} == {*pins(CONSTRAINTS.read_text())} - {"torch"}


CODE = """
import os, sys
from harness.progress import spins_briefly
readings = iter([100.0, 100.0 + float(sys.argv[1])])
print(spins_briefly(readings.__next__, 0.2), os.environ.get("GOMP_SPINCOUNT"))
"""


N_PROCESSORS = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("busy_s", "given", "settled"),
    [
        (0.04, {}, ["False", "20000"]),
        (0.2, {}, ["True", "1000"]),
        (0.2 * N_PROCESSORS, {"OMP_NUM_THREADS": "1"}, ["False", "None"]),  # it waits for no other thread
        (0.2, {"GOMP_SPINCOUNT": "7"}, ["False", "7"]),
    ],
)
def test_threads_spin_briefly_where_other_work_wants_their_processors(busy_s, given, settled):
    """A separate process measures that its processors were busy for `busy_s` of 0.2 seconds."""
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in names} | given
    command = [sys.executable, "-c", CODE, str(busy_s)]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert process.stdout.split() == settled
