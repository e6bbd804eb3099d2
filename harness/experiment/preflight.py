"""What this machine, its packages and this experiment are ready for, and what each candidate will take.

Invariant: nothing is trained, and but for the noise nothing is answered; a model that is not in the
cache yet is fetched, because its size is what everything else depends on. Every problem is listed, none
stops the others.
"""

import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from harness import config, provenance
from harness.errors import Problem, UserError
from harness.evaluation.session import Bench
from harness.experiment import Scope, bench_of
from harness.experiment.engine_compatibility import key_problems
from harness.experiment.layout_noise import measure_noise
from harness.experiment.preflight_costs import Cost, estimate_costs
from harness.formatting import count
from harness.models import vllm
from harness.models.hardware import Machine, Memory, memory, probe
from harness.progress import Progress

__all__ = ["Checkup", "Cost", "estimate_costs", "examine", "measure_noise"]

# What is optional, and the extra that brings it.
_EXTRAS = {
    "bitsandbytes": "qlora",
    "lm_eval": "lm-eval",
    "evaluate": "evaluate",
    "sentence-transformers": "dense",
    "liger-kernel": "gpu",
    "vllm": "vllm",
}
_LEAST_DISK_GB = 5.0  # runs, checkpoints of a training and the cache of a small model


@dataclass(frozen=True, slots=True)
class Checkup:
    """What was found: the machine, its memory, free disk in GB, versions, the experiment, its costs.

    `vllm` is its version and the device that it is built for, empty where it is not installed.
    `absent` maps optional packages that are not there to the command that brings them. `problems` hold
    what stands in the way, each with what to do; where there are some `costs` may be empty.
    """

    machine: Machine
    memory: Memory
    disk_free_gb: float
    packages: dict[str, str | None]
    vllm: str
    absent: dict[str, str]
    experiment: tuple[str, ...]
    costs: tuple[Cost, ...]
    problems: tuple[Problem, ...]


def examine(path: Path, overrides: list[str], progress: Progress) -> Checkup:
    """Look at everything that a comparison needs."""
    problems: list[Problem] = []
    bench, selected = _opened(path, overrides, progress, problems)
    machine = bench.machine if bench else probe()
    free_gb = shutil.disk_usage(path.parent.resolve() if path.parent.exists() else Path()).free / 1e9
    if free_gb < _LEAST_DISK_GB:
        found = f"{free_gb:.1f} GB free"
        problems.append(Problem(str(path.parent), found, f"{_LEAST_DISK_GB:g} GB or more", "free some"))
    served_by = _vllm(
        machine.device, problems, wanted=bench is not None and bench.experiment.engine == "vllm"
    )
    room = memory(machine.device)
    return Checkup(
        machine=machine,
        memory=room,
        disk_free_gb=free_gb,
        packages=provenance.package_versions(),
        vllm=served_by,
        absent={name: f"pip install 'harness-evals[{e}]'" for name, e in _EXTRAS.items() if not _has(name)},
        experiment=_experiment(bench) if bench else (),
        costs=estimate_costs(bench, selected, room) if bench else (),
        problems=tuple(problems),
    )


def _opened(
    path: Path, overrides: list[str], progress: Progress, problems: list[Problem]
) -> tuple[Bench | None, tuple[str, ...]]:
    """Open the experiment with its data and models; what forbids that goes to the problems."""
    try:
        loaded = config.load(path, overrides)
        bench = bench_of(loaded, Scope(), progress)
        problems.extend(key_problems(bench, {name: loaded.places[name] for name in loaded.selected}))
        return bench, loaded.selected
    except UserError as error:
        problems.extend(error.problems)
        return None, ()


def _vllm(device: str, problems: list[Problem], *, wanted: bool) -> str:
    """Say which vLLM is there; where it is wanted and cannot answer here, that goes to the problems."""
    release = vllm.installed()
    if release is None:
        return ""
    try:
        built, problem = vllm.built_for(), vllm.wrong_build(device)
    except ImportError as error:
        built, problem = "nothing that can be imported", vllm.broken(error)
    problems += [problem] if problem and wanted else []
    return f"{release}, built for {built}"


def _has(package: str) -> bool:
    if package == "vllm":  # two packages bring it
        return vllm.installed() is not None
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


def _experiment(bench: Bench) -> tuple[str, ...]:
    """Say which models and data were found."""
    models = [
        f"model {s.name}: {count(s.n_parameters / 1e6)} million parameters" for s in bench.sources.values()
    ]
    items = bench.target.items
    rows = f"{count(len(items.train))} training, {count(len(items.validation))} validation, "
    target = f"target {bench.target.task.name}: {rows}{count(len(items.test))} test rows"
    others = [_counted(items.pairs, "pairs"), _counted(items.documents, "documents")]
    n_items = sum(len(m.items.test) for m in bench.suites)
    suites = f"suites: {count(len(bench.suites))} tasks, {count(n_items)} items"
    return (*models, ", ".join([target, *filter(None, others)]), suites)


def _counted(things: tuple[object, ...], what: str) -> str:
    return f"{count(len(things))} {what}" if things else ""
