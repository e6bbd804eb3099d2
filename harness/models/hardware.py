"""Hardware probe: device, fastest precision and matrix speed, measured once and cached.

Invariant: the probe's result is cached under a key of everything it depends on, so an
unchanged second command knows its precision without importing torch.
"""

import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from harness.cache import memo
from harness.errors import Problem, UserError
from harness.records import digest

if TYPE_CHECKING:
    import torch

# A GPU is done with a smaller product before the next one is launched.
_MATRIX = {"cpu": 1024, "cuda": 8192}
_ROUNDS, _ROUND_S = 5, 0.08
# bf16 units are some four times faster than fp32, emulation four times slower. Between both bf16 is taken,
# because it needs half the memory.
_SLOW_BELOW = 0.7


class Machine(NamedTuple):
    """The device, its fastest trustworthy precision and the matrix speed measured for it.

    `gflops` is the measured speed of a large square matrix product in `precision` (1,024 rows on a
    CPU, 8,192 on a GPU), in 1e9 floating-point operations a second. On a CPU `bf16_gflops` and
    `fp32_gflops` are what the choice was made from.
    """

    device: str
    name: str
    precision: str
    gflops: float
    bf16_gflops: float | None = None
    fp32_gflops: float | None = None


class Memory(NamedTuple):
    """Free and total memory in GiB; `of` says whether of the GPU or the machine."""

    free_gib: float
    total_gib: float
    of: str


def memory(device: str) -> Memory:
    """Ask how much memory the device has; on a CPU what the system could give without swapping."""
    if device == "cuda":
        import torch

        free, total = torch.cuda.mem_get_info()
        return Memory(free / 2**30, total / 2**30, "GPU")
    page = os.sysconf("SC_PAGE_SIZE")
    total = page * os.sysconf("SC_PHYS_PAGES")
    return Memory(_available_bytes(total) / 2**30, total / 2**30, "main memory")


def _available_bytes(otherwise: int) -> int:
    found = proc_line("meminfo", "MemAvailable:").split()
    return int(found[1]) * 1024 if found else otherwise


def proc_line(file: str, begins: str) -> str:
    """Return the line of a file below /proc that begins so; empty where there is none."""
    with suppress(OSError):
        lines = Path("/proc", file).read_text().splitlines()
        return next((line for line in lines if line.startswith(begins)), "")
    return ""


def probe(device: str = "auto", precision: str = "auto") -> Machine:
    """Choose device and precision, measuring for about a second the first time.

    Raises:
        UserError: `cuda` is asked for and torch sees no GPU, or fp16 is asked for on a CPU.
    """
    key = digest(
        [device, precision, version("torch"), platform.machine()]
        + [proc_line("cpuinfo", "flags") or platform.processor()]
        + [sorted(str(node) for node in Path("/dev").glob("nvidia[0-9]*")), _MATRIX, Machine._fields]
        + [os.environ.get(k, "") for k in ("ONEDNN_MAX_CPU_ISA", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")]
    )
    return Machine(**memo("machines", key, lambda: _measure(device, precision)._asdict()))


def _measure(device: str, precision: str) -> Machine:
    import torch

    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise UserError(Problem("device", "cuda", "a GPU that torch can see", "device: auto or cpu"))
    if device == "cuda" or (device == "auto" and has_gpu):
        # A GPU older than Ampere runs bf16 in emulation; fp16 is its fast type.
        best = "bf16" if torch.cuda.get_device_capability()[0] >= 8 else "fp16"
        chosen = best if precision == "auto" else precision
        return Machine("cuda", torch.cuda.get_device_name(), chosen, _gflops("cuda", chosen))
    if precision == "fp16":
        raise UserError(Problem("precision", "fp16 on a CPU", "auto, bf16 or fp32", "precision: auto"))
    return cpu(f"CPU, {torch.get_num_threads()} threads", precision, _cpu_speeds())


def cpu(name: str, precision: str, gflops: Mapping[str, float]) -> Machine:
    """Describe a CPU of these speeds in bf16 and fp32; `auto` takes bf16 unless it is markedly slower."""
    if precision == "auto":
        precision = "fp32" if gflops["bf16"] < _SLOW_BELOW * gflops["fp32"] else "bf16"
    return Machine("cpu", name, precision, gflops[precision], gflops["bf16"], gflops["fp32"])


def slow_bf16(machine: Machine) -> str:
    """Say how slow bf16 is on this CPU; nothing where it is about as fast as fp32, and of a GPU."""
    bf16, fp32 = machine.bf16_gflops, machine.fp32_gflops
    if bf16 is None or fp32 is None or bf16 >= _SLOW_BELOW * fp32:
        return ""
    return f"bf16 is slower here: {bf16:,.0f} GFLOP/s against {fp32:,.0f} in fp32"


def _cpu_speeds() -> dict[str, float]:
    """Measure both types in turns and keep each one's best round: another job must not decide."""
    rounds = [{p: _gflops("cpu", p) for p in ("bf16", "fp32")} for _ in range(_ROUNDS)]
    return {p: max(speeds[p] for speeds in rounds) for p in rounds[0]}


def _gflops(device: str, precision: str) -> float:
    import time

    import torch

    n = _MATRIX[device]
    a = torch.randn(n, n, device=device).to(dtype(precision))
    (a @ a)[0, 0].item()
    start, products = time.perf_counter(), 0
    while (passed := time.perf_counter() - start) < _ROUND_S:
        (a @ a)[0, 0].item()
        products += 1
    return 2 * n**3 * products / passed / 1e9


def dtype(precision: str) -> "torch.dtype":
    """Return torch's type for a precision's name."""
    import torch

    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
