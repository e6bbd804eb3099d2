"""Local workers, Ray and submitit give the rows of a single process, even if workers are killed.

Invariant: kills happen at a state of progress, not after a time; all compute with one thread.
"""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import tiny_experiment
from tiny_experiment import read_all_rows

from harness import store
from harness.store import Store

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
LORA = "{r: 2, num_train_epochs: 1, learning_rate: 0.01, max_length: 200}"
CANDIDATES = f"""\
  prompt: {{method: base}}
  bag: {{method: classifier}}
  lora: {{method: lora, params: {LORA}}}
  hybrid: {{weights_of: lora, prompting: {{few_shot: {{select: fixed, shots: 2}}}}}}
  dpo: {{method: dpo, init_from: lora, params: {{max_length: 200, per_device_train_batch_size: 4}}}}
  swept: {{method: lora, params: {{r: 2, num_train_epochs: 1, max_length: 200}}, sweep: {{learning_rate: [0.001, 0.02]}}}}
  broken: {{method: full, params: {{max_steps: 3, weight_decay: 1.0e+30, max_length: 200}}}}
"""
MAIN = "from harness.cli import main; main()"
LOCAL = ("execution.executor=local", "execution.threads=1")


@pytest.fixture(scope="module")
def model(tiny, tmp_path_factory):
    return shutil.copytree(tiny, tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module", autouse=True)
def one_thread(cache_folder, usual_threads):
    import torch

    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("HARNESS_CACHE", str(cache_folder))
        environment.setenv("OMP_NUM_THREADS", "1")
        environment.setenv("PYTHONPATH", str(ROOT))
        yield


@pytest.fixture(scope="module")
def reference_run(model, one_thread, tmp_path_factory):
    path = write(tmp_path_factory.mktemp("undisturbed"), model)
    return path, tiny_experiment.run(path)


@pytest.fixture
def path(model, tmp_path):
    return write(tmp_path, model)


def write(folder, model):
    """Write the tiny experiment with several blocks of one task, pairs, a sweep and a failing candidate."""
    path = tiny_experiment.write(folder, model, CANDIDATES, pairs=tiny_experiment.parcel_pairs(8))
    tiny_experiment.write_facts(folder, 150)
    return path


def trials(path):
    all_trials = store.list_trials(Store(path.parent / "runs"))
    return {t.run.run_id: (t.state, t.trial.params, t.trial.validation) for t in all_trials}


def assert_same(path, undisturbed):
    alone, _ = undisturbed
    runs, expected = (tiny_experiment.runs_of(p) for p in (path, alone))
    assert {name: (run.run_id, run.state, run.error) for name, run in runs.items()} == {
        name: (run.run_id, run.state, run.error) for name, run in expected.items()
    }
    assert read_all_rows(path.parent) == read_all_rows(alone.parent)
    assert trials(path) == trials(alone) != {}
    folder = path.parent / "runs"
    assert {entry.name for entry in (folder / "weights").iterdir()} == {
        entry.name for entry in (alone.parent / "runs" / "weights").iterdir()
    }
    assert [*folder.glob("rows/*/blocks"), *folder.glob("weights/*.part"), *folder.glob(".claims")] == []


def map_complete_files(path):
    runs = path.parent / "runs"
    return {
        file: file.stat().st_mtime_ns
        for p in ("rows/*/rows.parquet", "weights/*/fit.json")
        for file in runs.glob(p)
        if file.parent.suffix != ".part"  # of an unfinished training
    }


def changed_since(before, path):
    now = map_complete_files(path)
    return [str(file.relative_to(path.parent)) for file, at in before.items() if now.get(file) != at]


def wait_until(met, patience_s=120):
    """Wait for a condition; fail after the time limit."""
    end = time.monotonic() + patience_s
    while not met():
        assert time.monotonic() < end
        time.sleep(0.005)


def processes(words):
    pids = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if words in (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode():
                pids.append(int(folder.name))
        except OSError:
            continue
    return pids


def run_beside(path, *overrides):
    outcomes = []

    def work():
        try:
            outcomes.append(tiny_experiment.run(path, *overrides))
        except BaseException as error:  # noqa: BLE001 (the test looks at it)
            outcomes.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread, outcomes


def test_three_workers_of_which_one_is_killed_leave_the_rows_of_one_process(path, reference_run):
    thread, outcomes = run_beside(path, *LOCAL, "execution.workers=3")
    wait_until(lambda: len(map_complete_files(path)) >= 3 or outcomes)
    before = map_complete_files(path)
    assert thread.is_alive()
    os.kill(processes(f"--until-input-ends {path.parent}")[0], signal.SIGKILL)
    thread.join(240)
    assert [f.state for f in outcomes[0].facts].count("failed") == 1
    assert_same(path, reference_run)
    assert changed_since(before, path) == []


def test_a_command_that_is_killed_takes_its_workers_along_and_the_next_one_goes_on(path, reference_run):
    words = [sys.executable, "-c", MAIN, "compare", "--executor", "local", "--workers", "2", "--threads", "1"]
    command = subprocess.Popen(words, cwd=path.parent, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: len(map_complete_files(path)) >= 3 or command.poll() is not None)
    command.kill()
    command.wait()
    before = map_complete_files(path)
    wait_until(lambda: not processes(f"--until-input-ends {path.parent}"))
    result = subprocess.run(words, cwd=path.parent, capture_output=True, text=True, check=False, timeout=240)
    assert result.returncode == 1, result.stderr  # one candidate fails
    assert_same(path, reference_run)
    assert changed_since(before, path) == []


def test_an_array_of_workers_by_submitit_leaves_the_rows_of_one_process(path, reference_run):
    extra = "execution: {executor: slurm, address: local, workers: 2, threads: 1, slurm: {timeout_min: 5}}\n"
    path.write_text(path.read_text() + extra)
    tiny_experiment.run(path, candidates=("lora",))
    assert (
        tiny_experiment.runs_of(path)["lora"].run_id
        == tiny_experiment.runs_of(reference_run[0])["lora"].run_id
    )
    rows, expected = (read_all_rows(p.parent) for p in (path, reference_run[0]))
    assert rows == {name: expected[name] for name in rows}
    assert len(list((path.parent / "runs" / ".workers").glob("*/*/*_log.out"))) == 2


@pytest.fixture
def cluster():
    import ray
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False}
    started = Cluster(initialize_head=True, head_node_args=node)
    for _ in range(2):
        started.add_node(num_cpus=1, object_store_memory=80_000_000)
    yield started
    ray.shutdown()
    started.shutdown()


def test_a_ray_cluster_that_loses_a_worker_and_a_node_leaves_the_rows_of_one_process(
    path, reference_run, cluster
):
    thread, outcomes = run_beside(
        path, "execution.executor=ray", f"execution.address={cluster.address}", "execution.threads=1"
    )
    wait_until(lambda: len(map_complete_files(path)) >= 2 or outcomes)
    os.kill(processes("ray::work")[0], signal.SIGKILL)
    wait_until(lambda: len(map_complete_files(path)) >= 6 or outcomes)
    before = map_complete_files(path)
    assert thread.is_alive()
    # A node of the cluster to which this process is not connected, and which is not its head.
    from ray._private.worker import global_worker

    local = global_worker.node._raylet_socket_name
    cluster.remove_node(
        next(node for node in cluster.worker_nodes if node._raylet_socket_name != local), allow_graceful=False
    )
    thread.join(240)
    assert [f.state for f in outcomes[0].facts].count("failed") == 1
    assert_same(path, reference_run)
    assert changed_since(before, path) == []
