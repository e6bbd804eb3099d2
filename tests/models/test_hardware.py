"""Device and precision are probed once; cached values hold for all processes."""

import os

import pytest

from harness import cache
from harness.cache import cache_dir, recall, remember
from harness.errors import UserError
from harness.models import hardware
from harness.models.hardware import Load, Machine, cpu, describe_unused_gpu, probe, probe_notes, slow_bf16
from harness.models.shapes import Shape

pytestmark = pytest.mark.usefixtures("watched_load")
SMALL = Shape(1e7, 12, 64, 192, 6, 4, 11, 500)


def probe_quietly(*devices):
    """Probe as if on a quiet machine; the machine that runs the tests may be busy."""

    def measure(*options):
        return hardware.measure_machine(*options)._replace(contended=False)

    return probe(*devices, shape=SMALL, measure=measure)


def machine(gflops, *, contended=False):
    """Return a measuring function that reports a CPU of this speed."""
    speeds = {"bf16": [gflops], "fp32": [gflops / 4]}
    return lambda *_: Machine("cpu", "CPU", "bf16", gflops, contended, speeds)


def find_machine_file(folder):
    (file,) = (folder / "machines").glob("*.json")
    return file


@pytest.mark.e2e
def test_the_probe_is_measured_once_and_read_afterwards(empty_cache):
    cpu_machine = probe_quietly("cpu")
    assert cpu_machine.device == "cpu"
    assert cpu_machine.precision == ("fp32" if slow_bf16(cpu_machine) else "bf16")
    assert cpu_machine.gflops > 0
    file = find_machine_file(empty_cache)
    stored = recall(file)
    remember(file, stored | {"name": "remembered"})
    assert probe("cpu", shape=SMALL) == cpu_machine._replace(name="remembered")


def test_a_probe_beside_other_work_says_so_and_is_kept_for_an_hour(empty_cache):
    busy_machine = probe("cpu", measure=machine(166.0, contended=True))
    assert (busy_machine.gflops, busy_machine.contended) == (166.0, True)
    assert probe_notes(busy_machine) == "measured while other work ran; the machine may be faster"
    assert probe("cpu", measure=machine(804.0)) == busy_machine
    os.utime(find_machine_file(empty_cache), (0, 0))
    assert probe("cpu", measure=machine(804.0)).gflops == 804.0
    os.utime(find_machine_file(empty_cache), (0, 0))
    assert probe("cpu", measure=machine(1.0)).gflops == 804.0
    assert probe("cpu", renew=True, measure=machine(166.0, contended=True)).gflops == 804.0
    assert probe("cpu", renew=True, measure=machine(700.0)).gflops == 700.0


def test_a_load_is_contended_by_its_waiting_or_else_by_the_time_that_its_threads_did_not_run():
    assert Load(1.0, 1.0, 0.3).is_contended()
    assert not Load(1.0, 0.1, 0.05).is_contended(2)
    assert Load(1.0, 1.2, None).is_contended(2)
    assert not Load(1.0, 1.9, None).is_contended(2)
    assert not Load(1.0, 0.1, None).is_contended()


@pytest.mark.parametrize(
    ("bf16", "fp32", "precision", "said"),
    [
        ([276], [276], "bf16", ""),
        ([0.153], [67, 60, 50, 40], "fp32", "0.15 GFLOP/s in a product against 67"),
        ([69], [276, 300, 300, 300], "fp32", "69 GFLOP/s in a product against 276"),
        ([1000, 200, 100, 70], [250, 240, 200, 180], "fp32", "112 GFLOP/s in short steps against 205"),
        ([276, 270, 200, 200], [276, 276, 210, 210], "bf16", ""),
    ],
)
def test_bf16_is_chosen_unless_steps_in_it_are_slower_than_in_fp32(bf16, fp32, precision, said):
    """Matrix products alone decide if one precision is so slow that its steps were not timed."""
    speeds = {"bf16": bf16, "fp32": fp32}
    choice = cpu("CPU", "auto", speeds)
    assert (choice.precision, choice.gflops) == (precision, speeds[precision][0])
    assert choice.step_speeds == speeds[precision][1:]
    assert slow_bf16(choice) == (f"bf16 is slower here: {said} in fp32" if said else "")


def test_a_gpu_that_is_not_there_is_refused(empty_cache, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UserError, match="a GPU that torch can see; next: device: auto or cpu"):
        probe("cuda")


def test_the_cache_lies_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HARNESS_CACHE", "~/mine")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert str(cache_dir()) == "/home/somebody/mine"
    monkeypatch.delenv("HARNESS_CACHE")
    assert cache_dir() == tmp_path / "harness"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert str(cache_dir()) == "/home/somebody/.cache/harness"


# GPUs that the driver's files report


def test_a_cpu_taken_beside_a_gpu_is_not_remembered_and_said(empty_cache, tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    root = tmp_path / "root"  # holds the files of a machine with one GPU
    files = {
        "proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t\t NVIDIA A100-SXM4-80GB\nIRQ:   \t\t 16\n",
        "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Release Build\n",
        "dev/nvidia0": "",
    }
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    gpu = Machine("cuda", "A100", "bf16", 9000.0)
    cpu_machine = probe(measure=machine(100.0), root=root)
    assert "a GPU is here" in describe_unused_gpu(cpu_machine, root)
    assert "550.54.15" in describe_unused_gpu(cpu_machine, root)
    assert probe(measure=lambda *_: gpu, root=root).device == "cuda", "the driver was mended"
    assert describe_unused_gpu(gpu, root) == ""


# Cached values


def test_what_is_remembered_is_made_once_and_none_again(empty_cache):
    calls = []
    values = [cache.memo("kind", "key", lambda: calls.append(1) or [1, 2]) for _ in range(2)]
    assert values == [[1, 2]] * 2
    assert len(calls) == 1
    assert cache.memo("kind", "none", lambda: None) is None
    assert cache.memo("kind", "none", lambda: 1) == 1


def test_of_two_processes_that_make_it_together_the_first_holds_for_both(empty_cache):
    def make():
        cache.memo("costs", "card", lambda: "first")  # another process that finishes first
        return "second"

    assert cache.memo("costs", "card", make) == "first"
    assert cache.memo("costs", "card", lambda: "third") == "first"
