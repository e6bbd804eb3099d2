"""After any interruption of a compare, the next one resumes and ends with the rows of an undisturbed one.

Invariant: kills are drawn with a seed, over the experiment's progress and not its time. CI affords up to five
kills of an experiment of seconds; with more (`--kills 20`) the experiment takes about two minutes
undisturbed.
"""

import random
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import tiny_experiment
from tiny_experiment import read_all_rows

from harness import store
from harness.records import BLOCK
from harness.store import Store
from harness.store.garbage import size as disk_size

pytestmark = pytest.mark.slow

COMPARE = ("compare",)


class Size(NamedTuple):
    """Length of an experiment: blocks of one task, epochs and seeds of its trainings."""

    blocks: int
    epochs: int
    seeds: str
    pause_s: float  # longest pause between progress and a kill


SECONDS = Size(2, 3, "[0]", 0.2)
TWO_MINUTES = Size(160, 20, "[0, 1, 2, 3, 4]", 2.0)


@pytest.fixture(scope="module")
def model(tiny, tmp_path_factory):
    return shutil.copytree(tiny, tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def size(pytestconfig):
    return SECONDS if pytestconfig.getoption("kills") <= 5 else TWO_MINUTES


@pytest.fixture(scope="module")
def reference_folder(command_driver, model, size, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    write(folder, model, size)
    assert command_driver.run(folder, *COMPARE) == 0, read_output(folder)
    return folder


@pytest.fixture
def folder(model, size, tmp_path):
    write(tmp_path, model, size)
    return tmp_path


def write(folder, model, size):
    """Write the tiny experiment with enough items for several blocks, and a preference training."""
    dpo = "  dpo: {method: dpo, init_from: lora, params: {max_length: 200, per_device_train_batch_size: 2}}\n"
    candidates = tiny_experiment.CANDIDATES.replace("epochs: 1", f"epochs: {size.epochs}") + dpo
    pairs, extra = tiny_experiment.parcel_pairs(24), f"seeds: {size.seeds}\n"
    tiny_experiment.write(folder, model, candidates, extra=extra, pairs=pairs)
    tiny_experiment.write_facts(folder, size.blocks * BLOCK)


def read_output(folder):
    return (folder / "said.txt").read_text()


def weights(folder):
    return {path.name for path in (folder / "runs" / "weights").iterdir()}


def assert_same(folder, undisturbed):
    """Assert that a finished experiment equals an undisturbed one."""
    assert {run.run_id for run in store.list_runs(Store(folder / "runs"))} == {
        run.run_id for run in store.list_runs(Store(undisturbed / "runs"))
    }
    assert read_all_rows(folder) == read_all_rows(undisturbed)
    assert weights(folder) == weights(undisturbed)
    runs = folder / "runs"
    assert [*runs.glob("rows/*/blocks"), *runs.glob("weights/*.part")] == []


def things(folder: Path) -> int:
    """Count the started and finished things of an experiment."""
    runs = folder / "runs"
    matches = (
        runs.glob(p) for p in ("rows/*", "rows/*/blocks/*", "rows/*/rows.parquet", "*/run.json", "weights/*")
    )
    return sum(1 for each in matches for _ in each)


def moments(folder, undisturbed, n, size):
    """Draw moments: the number of further things started or finished, and a pause after that."""
    draw = random.Random(5)
    total = things(undisturbed)
    for at in sorted(draw.uniform(0, total) for _ in range(n)):
        pause_s, reached = draw.uniform(0, size.pause_s), []

        def is_due(at=at, pause_s=pause_s, reached=reached):
            if not reached and things(folder) >= at:
                reached.append(time.monotonic())
            return bool(reached) and time.monotonic() - reached[0] > pause_s

        yield is_due, draw.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGINT])


def test_a_compare_that_is_killed_at_random_moments_ends_with_the_same_rows(
    command_driver, folder, reference_folder, size, pytestconfig
):
    codes = []
    for when, sent in moments(folder, reference_folder, pytestconfig.getoption("kills"), size):
        codes.append((sent, command_driver.run(folder, *COMPARE, ends=(when, sent))))
        if sent == signal.SIGINT:
            assert codes[-1][1] in (0, 130), read_output(folder)
            assert codes[-1][1] == 0 or "run the same command to go on" in read_output(folder)
    assert sum(code != 0 for _, code in codes) > len(codes) // 2
    assert command_driver.run(folder, *COMPARE) == 0, read_output(folder)
    assert_same(folder, reference_folder)


@contextmanager
def mount_small_disk(folder, n_bytes):
    """Mount a file system of this size, if the machine permits it; yield a function that enlarges it."""
    folder.mkdir()

    def mount(*options):
        words = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
        return not subprocess.run(words, capture_output=True, check=False).returncode

    if not shutil.which("mount") or not mount(f"size={n_bytes}"):
        pytest.skip("mounting needs root; a file that may not grow stands for a small disk")
    try:
        yield lambda: mount("remount", "size=1g")
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("share", [0.1, pytest.param(0.5, marks=pytest.mark.weekly), 0.9])
def test_a_compare_on_a_full_disk_says_so_and_goes_on_when_there_is_room(
    command_driver, folder, reference_folder, share
):
    n_bytes = round(share * disk_size(reference_folder / "runs"))
    with mount_small_disk(folder / "runs", n_bytes) as enlarge:
        assert command_driver.run(folder, *COMPARE) == 2, read_output(folder)
        assert "no room to write" in read_output(folder)
        assert "Traceback" not in read_output(folder)
        assert enlarge()
        assert command_driver.run(folder, *COMPARE) == 0, read_output(folder)
        assert_same(folder, reference_folder)


def test_a_compare_whose_files_may_not_grow_says_so_and_goes_on_when_they_may(
    command_driver, folder, reference_folder
):
    assert command_driver.run(folder, *COMPARE, most_bytes=20_000) == 2, read_output(folder)
    assert "no room to write" in read_output(folder)
    assert "Traceback" not in read_output(folder)
    assert command_driver.run(folder, *COMPARE) == 0, read_output(folder)
    assert_same(folder, reference_folder)


def test_files_that_were_cut_in_half_or_damaged_inside_are_made_again(
    command_driver, reference_folder, tmp_path
):
    folder = shutil.copytree(reference_folder, tmp_path / "copy")
    for i, path in enumerate(sorted((folder / "runs" / "rows").glob("*/rows.parquet"))[::3]):
        held, middle = path.read_bytes(), path.stat().st_size // 2
        turned = bytes(255 - byte for byte in held[middle:][:8]) + held[middle + 8 :]
        path.write_bytes(held[:middle] + (turned if i % 2 else b""))
    index = folder / "runs" / "harness.duckdb"
    index.write_bytes(index.read_bytes()[: index.stat().st_size // 2])
    assert command_driver.run(folder, *COMPARE) == 0, read_output(folder)  # runs do not wait for the index
    assert_same(folder, reference_folder)
    assert command_driver.run(folder, "sql", "SELECT count(*) AS n FROM runs", "--csv") == 0, read_output(
        folder
    )
    n_runs = len(list((folder / "runs").glob("*/run.json")))
    assert f"n\n{n_runs}\n" in read_output(folder)
    assert command_driver.run(folder, "reindex") == 0, read_output(folder)
    index.unlink()
    assert command_driver.run(folder, *COMPARE) == 0, read_output(folder)
    assert_same(folder, reference_folder)
