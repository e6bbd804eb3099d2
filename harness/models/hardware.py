"""Hardware probe: device, fastest precision and speed, measured once and cached; and contention.

Invariant: the result is cached under a key of everything it depends on, so later commands know the precision
without importing torch. A measurement that other work disturbed is cached for an hour.
Source: /proc/PID/task/TID/schedstat counts how long a thread was runnable and did not run; 5 in
/proc/PID/clear_refs resets the peak (proc(5))
"""

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from statistics import geometric_mean
from typing import NamedTuple

from harness.cache import cache_dir, memo, recall, remember
from harness.errors import UserError
from harness.formatting import figure, pluralize
from harness.models.hub import SHAPE
from harness.models.later import torch
from harness.models.shapes import Shape
from harness.progress import spins_briefly
from harness.provenance import processor_name
from harness.records import digest

# A GPU finishes a smaller product before the next one is launched.
_MATRIX = {"cpu": 1024, "cuda": 8192}
_ROUNDS, _ROUND_S = 5, 0.08
# Emulated bf16 is some hundred times slower; a smaller product shows the same speed.
_MOST_PRODUCT_S = 4 * _ROUND_S
# A measurement is contended if its threads waited for a processor for more than this share of the time.
# Where the system does not count waiting: if they ran for less than the second share of the time.
MOST_WAITED, _LEAST_RUN = 0.1, 0.85
_DISTURBED_KEPT_S = 3600.0
STEP_TOKENS = (320, 80)  # of the long and of the short training step that are timed
# bf16 needs half the memory, so it is used unless its steps are slower by more than measurement noise.
# No steps are timed in a precision whose products are this much slower: emulated bf16 would take minutes.
_SLOW_BELOW, _HOPELESS_BELOW = 0.9, 0.5


class Machine(NamedTuple):
    """Device, its fastest reliable precision and the measured speed.

    `gflops` is the speed of a large square matrix product in `precision`, in GFLOP/s. On a CPU `speeds` has,
    for bf16 and fp32, that speed and those of reading, generating, and a long and a short training step
    (`pass_costs`) if they were timed; the precision is chosen by them. `contended` means that other work
    disturbed the measurement, so the machine may be faster.
    """

    device: str
    name: str
    precision: str
    gflops: float
    contended: bool = False
    speeds: Mapping[str, Sequence[float]] = {}

    @property
    def step_speeds(self) -> Sequence[float]:
        """Speeds of reading, generating, and two training steps in `precision`; empty if not timed."""
        return self.speeds.get(self.precision, ())[1:]


class Load(NamedTuple):
    """Seconds of wall time, of this process's CPU time, and of its threads waiting for a processor.

    `waited_s` is None where the system does not count it. The difference of two readings is the load of what
    ran between them.
    """

    wall_s: float
    cpu_s: float
    waited_s: float | None

    def since(self, start: "Load") -> "Load":
        """Return the difference to an earlier reading."""
        unknown = self.waited_s is None or start.waited_s is None
        waited_s = None if unknown else max(0.0, (self.waited_s or 0.0) - (start.waited_s or 0.0))
        return Load(self.wall_s - start.wall_s, self.cpu_s - start.cpu_s, waited_s)

    def is_contended(self, n_threads: int = 0) -> bool:
        """Tell whether other work took the processors; always False if `HARNESS_IGNORE_LOAD` is set.

        Where the system does not count waiting, `n_threads` threads are expected to have run all the time;
        with 0 the answer is False.
        """
        if ignores_load():
            return False
        if self.waited_s is not None:
            return self.waited_s > MOST_WAITED * self.wall_s
        return self.cpu_s < _LEAST_RUN * n_threads * self.wall_s


def ignores_load() -> bool:
    """Tell whether `HARNESS_IGNORE_LOAD` makes all measurements count as undisturbed."""
    return bool(os.environ.get("HARNESS_IGNORE_LOAD"))


def load() -> Load:
    """Return the wall time, CPU time and waiting time of this process so far."""
    waited_ns = []  # time of each thread in which it was runnable but did not run
    for thread in Path("/proc/self/task").glob("*"):
        with suppress(OSError, IndexError, ValueError):
            waited_ns.append(int((thread / "schedstat").read_text().split()[1]))
    return Load(time.perf_counter(), time.process_time(), sum(waited_ns) / 1e9 if waited_ns else None)


def reset_peak() -> bool:
    """Reset the peak memory of this process; return whether the system supports it."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        return True
    return False


class Memory(NamedTuple):
    """Free and total memory in GiB; `of` names the GPU or the machine."""

    free_gib: float
    total_gib: float
    of: str


def memory(device: str) -> Memory:
    """Return the memory of the device; on a CPU, free memory is what can be used without swapping."""
    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
        return Memory(free / 2**30, total / 2**30, "GPU")
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    words = proc_line("meminfo", "MemAvailable:").split()
    free = int(words[1]) * 1024 if words else total
    return Memory(free / 2**30, total / 2**30, "main memory")


def _cpu_flags() -> str:
    return proc_line("cpuinfo", "flags") or platform.processor()


def proc_line(file: str, begins: str) -> str:
    """Return the first line of a file under /proc that begins with `begins`; empty if there is none."""
    with suppress(OSError):
        lines = Path("/proc", file).read_text().splitlines()
        return next((line for line in lines if line.startswith(begins)), "")
    return ""


def measure_machine(device: str, precision: str, shape: Shape = SHAPE) -> Machine:
    """Measure the device, a CPU by steps of a model of the shape (some six seconds); errors of `probe`."""
    spins_briefly()

    from harness.models.pass_costs import measure_speeds

    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise UserError("device", "cuda", "a GPU that torch can see", "device: auto or cpu")
    if device == "cuda" or (device == "auto" and has_gpu):
        # GPUs older than Ampere emulate bf16; fp16 is their fast type.
        best = "bf16" if torch.cuda.get_device_capability()[0] >= 8 else "fp16"
        chosen = best if precision == "auto" else precision
        return Machine("cuda", torch.cuda.get_device_name(), chosen, _gflops("cuda", chosen))
    n_threads = torch.get_num_threads()
    start = load()
    rounds = [{name: _gflops("cpu", name) for name in ("bf16", "fp32")} for _ in range(_ROUNDS)]
    products = {name: max(speeds[name] for speeds in rounds) for name in rounds[0]}
    min_speed = _HOPELESS_BELOW * max(products.values())
    candidates = products if precision == "auto" else [name for name in products if precision == name]
    timed = [name for name in candidates if products[name] > min_speed or precision == "fp32"]
    steps = {name: measure_speeds(shape, name) for name in timed}
    contended = load().since(start).is_contended()
    if precision == "fp16":
        products["fp16"] = _gflops("cpu", "fp16")
    speeds = {name: [product, *steps.get(name, ())] for name, product in products.items()}
    return cpu(cpu_name(n_threads), precision, speeds)._replace(contended=contended)


def cpu_name(n_threads: int) -> str:
    """Return the name of the CPU with its number of threads."""
    return f"CPU, {pluralize(n_threads, 'thread')}"


def current_device(device: str) -> str:
    """Return the name of the device of this kind that torch uses."""
    if device == "cpu":
        return cpu_name(torch.get_num_threads())
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU that torch can see"


def torch_threads() -> int:
    """Return the number of CPU threads that torch uses."""
    spins_briefly()
    return torch.get_num_threads()


def use_threads(n: int) -> None:
    """Set the number of threads of this process and of libraries that it has not loaded yet."""
    os.environ["OMP_NUM_THREADS"] = str(n)
    torch.set_num_threads(n)


def visible_gpus() -> list[str]:
    """List the GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them."""
    if setting := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return setting.split(",")
    return [str(index) for index in range(torch.cuda.device_count())]


def probe(
    device: str = "auto",
    precision: str = "auto",
    shape: Shape | None = None,
    *,
    renew: bool = False,
    measure: Callable[[str, str, Shape], Machine] = measure_machine,
    root: Path = Path("/"),
) -> Machine:
    """Choose device and precision; the first call measures for some seconds.

    A CPU is measured by steps of a model of this `shape`, by default the embedded model's. A disturbed
    measurement is kept for an hour. `renew` measures again, unless other work disturbs that; the precision
    stays the same, because stored weights and answers depend on it, unless only the earlier measurement was
    disturbed. The choice of a CPU over an unused GPU is not cached. `measure` replaces the measurement,
    `root` the root of the file system.

    Raises:
        UserError: `cuda` is requested and torch sees no GPU.
    """
    shape = SHAPE if shape is None else shape
    nodes = sorted(str(node) for node in Path("/dev").glob("nvidia[0-9]*"))
    key = digest(
        [device, precision, version("torch"), platform.machine(), shape]
        + [_cpu_flags(), nodes, _MATRIX, STEP_TOKENS, Machine._fields]
        + [os.environ.get(k, "") for k in ("ONEDNN_MAX_CPU_ISA", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")]
        + gpus_of_driver(root)
    )
    memory, cached, is_old = cache_dir() / "machines" / f"{key}.json", None, False
    with suppress(OSError, ValueError, TypeError):
        cached = Machine(**recall(memory))
        is_old = cached.contended and time.time() - memory.stat().st_mtime > _DISTURBED_KEPT_S
    if cached and not (renew or is_old):
        return cached
    machine = measure(device, precision, shape)
    if device == "auto" and describe_unused_gpu(machine, root):
        return machine  # the key does not change when a driver is repaired
    if cached and (machine.contended or not cached.contended) and cached.precision in machine.speeds:
        machine = cpu(machine.name, cached.precision, machine.speeds)._replace(contended=machine.contended)
    if cached and machine.contended and not cached.contended:
        return max(machine, cached, key=lambda m: m.gflops)
    with suppress(OSError):
        remember(memory, machine._asdict())
    return machine


def cpu_kernels() -> dict[str, str]:
    """Describe what selects this CPU's kernels, and so the last digits of results; asks torch once."""
    settings = {"processor": processor_name() or "", "flags": _cpu_flags()}
    settings |= {name: os.environ.get(name, "") for name in ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")}
    key = digest([settings, platform.machine(), version("torch")])
    capability = memo("cpu_capability", key, lambda: torch.backends.cpu.get_cpu_capability())
    return {"capability": capability, **settings}


def cpu(name: str, precision: str, speeds: Mapping[str, Sequence[float]]) -> Machine:
    """Return the machine of a CPU with these speeds; `auto` is bf16 unless that is slower than fp32."""
    machine = Machine("cpu", name, precision, 0.0, speeds=speeds)
    chosen = ("fp32" if slow_bf16(machine) else "bf16") if precision == "auto" else precision
    return machine._replace(precision=chosen, gflops=speeds[chosen][0])


def gpus_of_driver(root: Path = Path("/")) -> list[str]:
    """Return the GPU models and driver version that the driver reports; empty without a GPU."""
    if not any((root / "dev").glob("nvidia[0-9]*")):
        return []
    driver = root / "proc" / "driver" / "nvidia"
    lines: list[str] = []
    for file in [*sorted(driver.glob("gpus/*/information")), driver / "version"]:
        begins = "NVRM" if file.name == "version" else "Model"
        with suppress(OSError):
            lines += [line for line in file.read_text().splitlines() if line.startswith(begins)]
    return lines or ["unknown"]


def describe_unused_gpu(machine: Machine, root: Path = Path("/")) -> str:
    """Return a note if a CPU was chosen although a GPU is present that torch does not see; else empty."""
    if machine.device != "cpu" or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return ""
    if not (lines := gpus_of_driver(root)):
        return ""
    driver = " ".join(lines[-1].split()) if lines[-1].startswith("NVRM") else "driver unknown"
    step = "a newer driver, or a torch that was built for this one"
    return f"a GPU is here, and torch {version('torch')} does not use it ({driver}); next: {step}"


def probe_notes(machine: Machine) -> str:
    """Return notes on the probe: an unused GPU, a slow precision, a disturbed measurement."""
    disturbed = "measured while other work ran; the machine may be faster" if machine.contended else ""
    slow = slow_bf16(machine)
    if (machine.device, machine.precision) == ("cpu", "fp16"):
        slow = "fp16 on a CPU is for tests of what a GPU without bf16 does"
    return "; ".join(filter(None, (describe_unused_gpu(machine), slow, disturbed)))


def slow_bf16(machine: Machine) -> str:
    """Say how slow bf16 is on this CPU, by the mean over timed steps; empty if about as fast as fp32."""
    bf16, fp32 = (machine.speeds.get(name, ()) for name in ("bf16", "fp32"))
    pairs = list(zip(bf16, fp32, strict=False))
    fast, plain = map(geometric_mean, zip(*(pairs[1:4] or pairs), strict=True)) if pairs else (1.0, 1.0)
    if fast >= _SLOW_BELOW * plain:
        return ""
    by = "in short steps" if pairs[1:] else "in a product"
    return f"bf16 is slower here: {describe_speed(fast)} {by} against {plain:,.0f} in fp32"


def describe_speed(gflops: float) -> str:
    """Format a speed in GFLOP/s: `67 GFLOP/s`, `0.15 GFLOP/s`."""
    return f"{figure(round(gflops, 2 if gflops < 1 else None))} GFLOP/s"


def _gflops(device: str, precision: str) -> float:
    def time_product(a: torch.Tensor) -> float:
        start = time.perf_counter()
        (a @ a)[0, 0].item()
        return time.perf_counter() - start

    a = torch.randn(_MATRIX[device], _MATRIX[device], device=device).to(dtype(precision))
    small = a[: len(a) // 4, : len(a) // 4].contiguous()
    time_product(small)
    a = a if 4**3 * time_product(small) <= _MOST_PRODUCT_S else small
    time_product(a)
    times = [time_product(a)]
    while sum(times) < _ROUND_S:
        times.append(time_product(a))
    return 2 * len(a) ** 3 * len(times) / sum(times) / 1e9


def dtype(precision: str) -> "torch.dtype":
    """Return torch's type for a precision's name."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
