"""Device and precision are probed once and remembered; what a machine cannot do is refused."""

import json
import subprocess
import sys

import pytest

from harness.cache import cache_dir, remember
from harness.errors import UserError
from harness.models.hardware import Machine, cpu, dtype, probe, slow_bf16


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    return tmp_path


def remembered(folder):
    (file,) = (folder / "machines").glob("*.json")
    return file


def test_the_probe_is_measured_once_and_read_afterwards(empty_cache):
    first = probe("cpu")
    assert first.device == "cpu"
    assert first.precision == ("fp32" if slow_bf16(first) else "bf16")
    assert first.gflops > 0
    file = remembered(empty_cache)
    file.write_text(json.dumps({**json.loads(file.read_text()), "name": "remembered"}))
    assert probe("cpu") == first._replace(name="remembered")


def test_reading_the_probe_needs_no_torch(empty_cache):
    probe("cpu", "fp32")
    code = "import sys; from harness.models.hardware import probe; probe('cpu', 'fp32'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_another_instruction_set_is_measured_anew(empty_cache, monkeypatch):
    probe("cpu", "fp32")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    probe("cpu", "fp32")
    assert len(list((empty_cache / "machines").glob("*.json"))) == 2


def test_what_cannot_be_written_leaves_the_old_file_and_no_half(tmp_path):
    remember(tmp_path / "checksums" / "a", "whole")
    with pytest.raises(UnicodeEncodeError):
        remember(tmp_path / "checksums" / "a", "half \ud800")
    assert [(p.name, p.read_text()) for p in (tmp_path / "checksums").iterdir()] == [("a", "whole")]


@pytest.mark.parametrize(
    ("bf16", "fp32", "precision"),
    [(890, 220, "bf16"), (276, 276, "bf16"), (200, 276, "bf16"), (190, 276, "fp32"), (30, 120, "fp32")],
)
def test_bf16_is_chosen_unless_it_is_markedly_slower_than_fp32(bf16, fp32, precision):
    speeds = {"bf16": bf16, "fp32": fp32}
    assert cpu("CPU", "auto", speeds)[2:4] == (precision, speeds[precision])


@pytest.mark.parametrize("precision", ["auto", "bf16", "fp32"])
def test_bf16_is_called_slower_only_where_it_is(precision):
    assert slow_bf16(cpu("CPU", precision, {"bf16": 276, "fp32": 276})) == ""
    assert slow_bf16(cpu("CPU", precision, {"bf16": 890, "fp32": 220})) == ""
    said = "bf16 is slower here: 69 GFLOP/s against 276 in fp32"
    assert slow_bf16(cpu("CPU", precision, {"bf16": 69, "fp32": 276})) == said


def test_nothing_is_said_of_bf16_on_a_gpu():
    assert slow_bf16(Machine("cuda", "GPU", "fp16", 9000.0)) == ""


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_precision_that_is_asked_for_is_taken(empty_cache, precision):
    assert probe("cpu", precision).precision == precision


def test_half_precision_on_a_cpu_is_refused(empty_cache):
    with pytest.raises(UserError, match="fp16 on a CPU"):
        probe("cpu", "fp16")
    assert not (empty_cache / "machines").exists()


def test_a_gpu_that_is_not_there_is_refused(empty_cache, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UserError, match="a GPU that torch can see; next: device: auto or cpu"):
        probe("cuda")


def test_each_precision_has_its_type():
    import torch

    assert [dtype(p) for p in ("bf16", "fp16", "fp32")] == [torch.bfloat16, torch.float16, torch.float32]


def test_the_cache_lies_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HARNESS_CACHE", "~/mine")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert str(cache_dir()) == "/home/somebody/mine"
    monkeypatch.delenv("HARNESS_CACHE")
    assert cache_dir() == tmp_path / "harness"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert str(cache_dir()) == "/home/somebody/.cache/harness"
